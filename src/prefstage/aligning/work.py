"""What each step does: fills its folder from the results of the steps before."""

import logging
import shlex
import shutil
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from prefstage.aligning.chain import PER_PROMPT, RELABEL, Chain, Policy
from prefstage.aligning.inputs import own_cure
from prefstage.aligning.keeping import Kept
from prefstage.aligning.recipe import EvaluateSettings, Recipe
from prefstage.building.build import CARD, build_pairs
from prefstage.building.build import RESULT as BUILT
from prefstage.core.config import write_config
from prefstage.core.errors import RunFolderError
from prefstage.core.files import read_json_lines, write_json, write_json_lines, write_text
from prefstage.core.runs import MANIFEST
from prefstage.data.records import Candidates
from prefstage.data.sets import CandidateSet
from prefstage.evaluating.alpaca_files import write_annotations
from prefstage.evaluating.answers import Answers, gather_answers
from prefstage.evaluating.win_rates import win_rate
from prefstage.measuring.measure import CANDIDATES, PROMPTS, STAGE, measure_stage
from prefstage.measuring.stage import on_policy_candidates, write_prompts
from prefstage.sampling.base import SamplingConfig, cut_thoughts, requests_for, to_candidates
from prefstage.serving import run_program
from prefstage.training.recipe import Recipe as TrainRecipe
from prefstage.training.recipe_run import MERGED, MODEL, train_recipe

_log = logging.getLogger(__name__)

PAIRS, ANSWERS, EVALUATION, ANNOTATIONS = (
    "pairs.parquet",
    "answers.jsonl",
    "evaluation.json",
    "annotations.json",
)


def run_measure(
    folder: Path, chain: Chain, kept: Kept, policy: Policy, *, off_policy: CandidateSet
) -> None:
    """Measure a policy's stage against the off-policy data.

    Args:
        folder: Gets ``stage.json``, ``prompts.parquet`` and ``candidates.parquet``.
        chain: The recipe's settings.
        kept: Stores and judge.
        policy: Who is measured.
        off_policy: The data that it is measured against.
    """
    with kept.sampler(policy, chain.recipe, chain.own_sampling) as who:
        stage = measure_stage(
            off_policy, judge=kept.judge, sampler=who, config=chain.measure_config
        )
    write_prompts(stage.prompts, folder / PROMPTS)
    CandidateSet.of(on_policy_candidates(stage.prompts, policy.name)).save(folder / CANDIDATES)
    # what one process asked and what it found in the store is no part of the result
    replace(stage, judge_counts={}).save(folder / STAGE)


def run_sample(
    folder: Path,
    kept: Kept,
    policy: Policy,
    *,
    prompts: CandidateSet,
    recipe: Recipe,
    config: SamplingConfig,
) -> None:
    """Let a policy answer prompts.

    Args:
        folder: Gets ``answers.jsonl`` (every answer) and ``candidates.parquet`` (those with
            text).
        kept: The stores.
        policy: Who answers.
        prompts: What is answered; responses that it has are left aside.
        recipe: How policies are loaded or served.
        config: How to sample.
    """
    rows = [Candidates(row.prompt_id, row.prompt, (), (), ()) for row in prompts]
    with kept.sampler(policy, recipe, config) as who:
        samples = list(who.sample(requests_for(rows, responses=config.responses)))
    for line in cut_thoughts(samples, max_new_tokens=config.max_new_tokens):
        _log.warning("%s: %s", policy.name, line)
    spoken = [each for each in samples if each.text.strip()]
    CandidateSet.of(to_candidates(rows, spoken, source=policy.name)).save(folder / CANDIDATES)
    asked = {row.prompt_id: row.prompt for row in rows}
    place = {prompt_id: number for number, prompt_id in enumerate(asked)}
    samples.sort(key=lambda one: (place[one.prompt_id], one.index))
    lines = (
        {
            "prompt": list(asked[each.prompt_id]),
            "text": each.text,
            "thought": each.thought,
            "thought_cut": each.thought_cut,
            "index": each.index,
            "finish_reason": each.finish_reason,
            "response_tokens": each.response_tokens,
            "policy": policy.name,
        }
        for each in samples
    )
    write_json_lines(folder / ANSWERS, lines)


def run_build(
    folder: Path,
    settings: Mapping[str, Any],
    data: Mapping[str, str],
    *,
    chain: Chain,
    kept: Kept,
    policy: Policy | None = None,
) -> None:
    """Build pairs.

    Args:
        folder: Gets ``pairs.parquet``, ``build.json`` and ``README.md``, the dataset card.
        settings: The method and its settings.
        data: "pairs" or "candidates", and "on_policy": files; how their bad rows are taken.
        chain: The recipe's settings.
        kept: Stores and judge.
        policy: Who answers, where the method needs one.
    """
    recipe = {
        **data,
        "judge": chain.recipe.judge,
        "method": dict(settings),
        "filters": chain.recipe.build.filters.model_dump(mode="json"),
        "seed": chain.recipe.seed,
    }
    if dict(settings)["name"] in (RELABEL, PER_PROMPT):
        # what is made does not depend on the yes: the loop asks for it before it trains
        recipe["accept_reversal"] = True
    if policy is None:
        with own_cure():
            built = build_pairs(recipe, judge=kept.judge)
    else:
        with kept.sampler(policy, chain.recipe, chain.own_sampling) as who:
            built = build_pairs({**recipe, "policy": policy.spec}, judge=kept.judge, sampler=who)
    built.train.save(folder / PAIRS)
    write_text(folder / CARD, built.card)
    write_json(folder / BUILT, dict(built.result))


def run_train(folder: Path, recipe: TrainRecipe, *, launch: str | None = None) -> None:
    """Train, going on from the last checkpoint in the folder.

    Args:
        folder: Gets what `train_recipe` writes.
        recipe: What to train.
        launch: Command that starts the processes; None: this process trains.

    Raises:
        RunFolderError: If the folder holds another training.
        ServiceError: If the launched training fails; the message ends with its log.
    """
    train = train_recipe if launch is None else partial(_launched, launch)
    try:
        train(recipe, folder)
    except RunFolderError:
        if not (folder / MANIFEST).exists():
            raise
        _clear(folder)
        train(recipe, folder)


def _launched(launch: str, recipe: TrainRecipe, folder: Path) -> None:
    """`prefstage train` by a launcher; its recipe and its log stand beside the folder."""
    begun = folder / MANIFEST
    if begun.exists() and str(recipe.data.path) not in begun.read_text("utf-8"):
        _clear(folder)  # begun where the run folder stood before
    file, log = (folder.with_name(f"{folder.name}{end}") for end in ("-recipe.yaml", ".log"))
    write_config(recipe, file)
    command = Path(sys.executable).with_name("prefstage")
    words = [*shlex.split(launch), str(command), "train", str(file), "--out", str(folder)]
    try:
        run_program(words, log_file=log)
    finally:
        file.unlink(missing_ok=True)
    log.rename(folder / "train.log")


def _clear(folder: Path) -> None:
    for child in folder.iterdir():  # begun where the run folder stood before
        if not child.name.startswith("."):
            shutil.rmtree(child) if child.is_dir() else child.unlink()


def trained_model(folder: Path) -> Path:
    """The model that a training left: whole, with its adapter merged.

    Args:
        folder: The step's.

    Returns:
        A folder that samplers and trainings load.
    """
    return folder / MERGED if (folder / MERGED).is_dir() else folder / MODEL


def run_evaluate(
    folder: Path, ours: Path, theirs: Path, *, chain: Chain, kept: Kept, evaluate: EvaluateSettings
) -> None:
    """Compare a policy's answers with the start's.

    Args:
        folder: Gets ``evaluation.json`` and ``annotations.json``.
        ours: Folder of the policy's answers.
        theirs: Folder of the start's.
        chain: The recipe's settings.
        kept: Stores and judge.
        evaluate: How to compare.
    """
    config = chain.recipe.seeded(evaluate.win_rate)
    found = win_rate(read_answers(ours), read_answers(theirs), judge=kept.judge, config=config)
    write_json(folder / EVALUATION, found.as_dict())
    write_annotations(folder / ANNOTATIONS, found.annotations())


def read_answers(folder: Path) -> Answers:
    """The answers of a sampling step, one a prompt.

    Args:
        folder: The step's.

    Returns:
        The answers, empty ones too.
    """
    rows = read_json_lines(folder / ANSWERS)
    return gather_answers(
        rows[0]["policy"] if rows else "nobody",
        [(tuple(row["prompt"]), row["text"]) for row in rows],
    )
