"""Steps that make data: samples, the measured stage, judged answers, pairs; and win rates."""

import logging
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from typing_extensions import override

from prefstage.aligning.recipe import (
    CHOOSE,
    PER_PROMPT,
    RELABEL,
    StageSettings,
)
from prefstage.aligning.steps.base import Estimate, Sizes, Step
from prefstage.aligning.steps.workspace import Policy, Workspace, naming_the_recipe
from prefstage.building.account import check_reversal
from prefstage.building.build import CARD, RESULT as BUILT, build_pairs
from prefstage.building.recipe import METHODS
from prefstage.core import (
    ConfigError,
    InputError,
    read_json_lines,
    write_json,
    write_json_lines,
    write_text,
)
from prefstage.data import Candidates, CandidateSet, Prompt
from prefstage.evaluating import WinRateConfig, win_rate, write_annotations
from prefstage.evaluating.answers import gather_answers, load_answers
from prefstage.measuring.measure import CANDIDATES, PROMPTS, STAGE, measure_stage
from prefstage.measuring.stage import Stage, on_policy_candidates, write_prompts
from prefstage.sampling.base import requests_for, shortfalls, to_candidates

_log = logging.getLogger(__name__)
ANSWERS, EVALUATION, ANNOTATIONS = "answers.jsonl", "evaluation.json", "annotations.json"
PAIRS, REVERSAL_SETTING = "pairs.parquet", "build.accept_reversal"
_OF_ANSWERS = ("text", "thought", "thought_cut", "index", "finish_reason", "response_tokens")


class Sample(Step):
    """A policy's answers to the prompts of training, or to the held-out prompts.

    Leaves ``answers.jsonl`` (every answer) and ``candidates.parquet`` (those with text).

    Args:
        space: The workspace.
        policy: Who answers.
        held_out: Answer the prompts of the evaluation, once; otherwise those of training.
    """

    kind = "sample"

    def __init__(self, space: Workspace, policy: Policy, *, held_out: bool = False) -> None:
        recipe, evaluate = space.recipe, space.recipe.evaluate
        self.policy, self.held_out = policy, held_out
        self.config = recipe.seeded(recipe.sampling)
        prompts = space.data_fingerprint()
        if held_out and evaluate is not None:
            prompts = space.fingerprint(evaluate.prompts)
            self.config = recipe.seeded(evaluate.sampling or recipe.sampling).model_copy(
                update={"responses": 1}
            )
        super().__init__(
            space,
            {
                "for": "evaluation" if held_out else "training",
                **space.sampling_settings(self.config, policy),
            },
            reads={"policy": policy.key},
            inputs={"prompts": prompts},
        )
        self.role = "answer" if held_out else self.kind

    # Sample; responses that the prompts come with are left aside.
    @override
    def run(self, folder: Path) -> None:
        rows = [
            Candidates(row.prompt_id, row.prompt, (), (), ())
            for row in (self.space.held_out if self.held_out else self.space.prompts)
        ]
        with self.space.sampler(self.policy, self.config) as sampler:
            answers = list(sampler.sample(requests_for(rows, responses=self.config.responses)))
        for line in shortfalls(answers, max_new_tokens=self.config.max_new_tokens):
            _log.warning("%s: %s", self.policy.name, line)
        # No reader of candidates takes an empty response; an evaluation judges them as they are.
        answers = [answer for answer in answers if not answer.refusal]
        spoken = (answer for answer in answers if answer.text.strip())
        CandidateSet.of(to_candidates(rows, spoken, source=self.policy.name)).save(
            folder / CANDIDATES
        )
        # Answers arrive in the order in which batches end; the file has the prompts' order.
        positions = {row.prompt_id: position for position, row in enumerate(rows)}
        answers.sort(key=lambda answer: (positions[answer.prompt_id], answer.index))
        write_json_lines(
            folder / ANSWERS,
            (
                {
                    "prompt": list(rows[positions[answer.prompt_id]].prompt),
                    **{name: getattr(answer, name) for name in _OF_ANSWERS},
                    "policy": self.policy.name,
                }
                for answer in answers
            ),
        )

    # Of all answers, at most.
    @override
    def estimate(self, sizes: Sizes) -> Estimate:
        rows, config = self.space.held_out if self.held_out else self.space.prompts, self.config
        return sizes.sampling(len(rows), config.responses, longest=config.max_new_tokens)


def read_answers(folder: Path) -> list[tuple[Prompt, str]]:
    """The answers of a sampling step, in the order of its prompts, empty ones too.

    Args:
        folder: The step's.

    Returns:
        (prompt, answer) of each.
    """
    return [(tuple(row["prompt"]), row["text"]) for row in read_json_lines(folder / ANSWERS)]


def prompt_ids_of(file: Path) -> set[str]:
    """The prompts of a Parquet file of a step, each once."""
    return {*pq.read_table(file, columns=["prompt_id"])["prompt_id"].to_pylist()}


class Measure(Step):
    """The stage of a policy, measured against the off-policy data.

    Leaves ``stage.json``, ``prompts.parquet`` and ``candidates.parquet``.

    Args:
        space: The workspace.
        policy: Who is measured.
    """

    kind = "measure"

    def __init__(self, space: Workspace, policy: Policy) -> None:
        recipe = space.recipe
        self.policy = policy
        self.sampling = recipe.seeded(recipe.sampling)
        self.config = recipe.seeded(recipe.measure or StageSettings())
        super().__init__(
            space,
            {
                # Data are known by their content, wherever they lie.
                "measure": self.config.model_dump(mode="json", exclude={"off_policy"}),
                **space.sampling_settings(self.sampling, policy),
            },
            reads={"policy": policy.key},
            inputs={
                "off_policy": (
                    space.fingerprint(self.config.off_policy)
                    if self.config.off_policy
                    else space.data_fingerprint(str(recipe.off_policy))
                ),
                "judge": space.judge.fingerprint,
            },
        )

    @override
    def run(self, folder: Path) -> None:
        off_policy, judge = self.space.measured, self.space.judge
        with self.space.sampler(self.policy, self.sampling) as sampler:
            stage = measure_stage(off_policy, judge=judge, sampler=sampler, config=self.config)
        write_prompts(stage.prompts, folder / PROMPTS)
        CandidateSet.of(on_policy_candidates(stage.prompts, self.policy.name)).save(
            folder / CANDIDATES
        )
        # How much one process asked, and how much was in the store, depends on kills: no result.
        replace(stage, judge_counts={}).save(folder / STAGE)

    # Of all prompts that the measurement may use.
    @override
    def estimate(self, sizes: Sizes) -> Estimate:
        prompts = min(len(self.space.measured), self.config.max_prompts or sys.maxsize)
        on, off = self.config.on_responses, min(sizes.responses, self.config.off_responses)
        return replace(
            sizes.sampling(prompts, on, longest=self.sampling.max_new_tokens),
            judgments=round(prompts * (on + off if self.space.judge.pointwise else on * off)),
        )

    def stage(self) -> Stage:
        """The stage; the step is done."""
        return Stage.load(self.path / STAGE)

    def prompt_ids(self) -> set[str]:
        """The prompts used; the step is done."""
        return prompt_ids_of(self.path / PROMPTS)

    @override
    def report(self) -> dict[str, Any]:
        return {"stage": self.stage().as_dict()}


class Evaluate(Step):
    """The win rate of one policy's held-out answers over another's.

    Leaves ``evaluation.json`` and ``annotations.json``.

    Args:
        space: The workspace.
        ours: Answers of the policy.
        theirs: Answers that they are compared with: the start's, another policy's, or a file's.
    """

    kind = "evaluate"

    def __init__(self, space: Workspace, ours: Sample, theirs: Sample | str) -> None:
        evaluate = space.recipe.evaluate
        self.ours, self.theirs = ours, theirs
        self.config = space.recipe.seeded(evaluate.win_rate if evaluate else WinRateConfig())
        settings, inputs = self.config.model_dump(mode="json"), dict[str, str]()
        reads = {"model": ours.key}
        if isinstance(theirs, Sample):
            reads["baseline"] = theirs.key
        else:
            path, _, settings["writer"] = theirs.partition("#")
            inputs["baseline"] = space.fingerprint(path)
        super().__init__(
            space, settings, reads=reads, inputs={**inputs, "judge": space.judge.fingerprint}
        )

    # Judge and compare.
    @override
    def run(self, folder: Path) -> None:
        ours, theirs = (
            gather_answers(step.policy.name, read_answers(step.path))
            if isinstance(step, Sample)
            else load_answers(step)
            for step in (self.ours, self.theirs)
        )
        rate = win_rate(ours, theirs, judge=self.space.judge, config=self.config)
        write_json(folder / EVALUATION, rate.as_dict())
        write_annotations(folder / ANNOTATIONS, rate.verdicts)

    # Of a comparison a prompt, or the rewards of two answers.
    @override
    def estimate(self, sizes: Sizes) -> Estimate:
        return Estimate(judgments=len(self.space.held_out) * (1 + self.space.judge.pointwise))

    # The win rate, its interval, and lengths.
    @override
    def report(self) -> dict[str, Any]:
        result = self.read(EVALUATION)
        rates, controlled = result["rates"], result["controlled"]
        return {
            "evaluation": {
                **{name: rates[name] for name in ("win_rate", "interval", "confidence")},
                "baseline": result["baseline"],
                "prompts": rates["n_total"],
                "undecided": rates["n_missing"],
                "length_controlled_win_rate": (
                    None if controlled is None else controlled["length_controlled_win_rate"]
                ),
                "length_controlled_interval": result["controlled_interval"],
                "avg_length": result["avg_length"],
                "avg_length_start": result["avg_length_baseline"],
                "notes": result["notes"],
            }
        }


def is_answers(baseline: str) -> bool:
    """Whether a baseline is a file of answers, and not a model that is still to answer."""
    return Path(baseline.partition("#")[0]).is_file()


def check_answers(baseline: str, prompts: CandidateSet) -> None:
    """Refuse a baseline that has not answered the held-out prompts.

    Args:
        baseline: File of answers, as for `load_answers`.
        prompts: The held-out prompts.

    Raises:
        DataError: If it cannot be read as answers.
        InputError: If it has answered fewer than two of them.
    """
    asked, answered = gather_answers("", [(r.prompt, "") for r in prompts]), load_answers(baseline)
    common = asked.by_prompt.keys() & answered.by_prompt.keys()
    InputError.unless(
        len(common) > 1,
        saw=f"evaluate.baseline {baseline} with answers to {len(common)} of the "
        f"{len(asked)} prompts of evaluate.prompts",
        expected="answers to the same prompts; they match by their exact text",
        cure="name the file that evaluate.prompts was made of, or a model, which answers them",
    )


class Build(Step):
    """Pairs for training.

    Leaves ``pairs.parquet``, ``build.json`` and ``README.md``, the dataset card.

    Args:
        space: The workspace.
        method: The method's name, or its settings with its name.
        data: By role, as in a recipe of `prefstage build` ("pairs", "candidates", "on_policy"):
            a file, a Hub id, or the step whose result it is.
        policy: Who answers, where the method samples.
        measured: The measurement that a choice by prompt goes by.
    """

    kind = "build"

    def __init__(
        self,
        space: Workspace,
        method: str | Mapping[str, Any],
        data: Mapping[str, str | Step],
        *,
        policy: Policy | None = None,
        measured: Measure | None = None,
    ) -> None:
        self.method: dict[str, Any] = {"name": method} if isinstance(method, str) else dict(method)
        self.data, self.policy, self.measured = dict(data), policy, measured
        self._sampling = space.recipe.seeded(space.recipe.sampling)
        # What is made of data and seed alone, whoever answers.
        self._settings: dict[str, Any] = {
            "filters": space.recipe.build.filters.model_dump(mode="json"),
            "seed": space.recipe.seed,
        }
        sources = {role: s for role, s in data.items() if isinstance(s, str)}
        # How the loader treats bad rows of data that no step made.
        self._bad_rows = space.bad_row_options("off_policy") if sources else {}
        made = {**data, "policy": policy, "measure": measured}
        super().__init__(
            space,
            {
                "method": self.method,
                **self._settings,
                **(space.bad_row_settings if sources else {}),
                **(space.sampling_settings(self._sampling, policy) if policy else {}),
            },
            reads={role: m.key for role, m in made.items() if m and not isinstance(m, str)},
            inputs={
                **{role: space.data_fingerprint(source) for role, source in sources.items()},
                "judge": space.judge.fingerprint,
            },
        )

    @classmethod
    def off_policy(cls, space: Workspace) -> "Build":
        """Pairs of the off-policy data, by the recipe's method.

        Args:
            space: The workspace.

        Returns:
            The step.

        Raises:
            ConfigError: If the recipe's method does not take what the data hold.
        """
        kind, source = space.off_policy_kind, str(space.recipe.off_policy)
        method = space.recipe.build.off or (RELABEL if kind == "pairs" else CHOOSE)
        step = cls(space, method, {kind: source})
        inputs = METHODS[step.method["name"]].inputs
        ConfigError.unless(
            kind in inputs,
            saw=f"build.off is {step.method['name']!r}, and {source} holds {kind}",
            expected=f"{' or '.join(sorted(inputs))} for this method",
            cure="leave build.off out, or name another method",
        )
        return step

    def prompt_ids(self) -> set[str]:
        """The prompts of its pairs; the step is done."""
        return prompt_ids_of(self.path / PAIRS)

    @property
    def relabels(self) -> bool:
        """Whether the judge replaces the labels of the data."""
        return bool(self.method["name"] == RELABEL)

    @override
    def run(self, folder: Path) -> None:
        space, policy, measured = self.space, self.policy, self.measured
        measurement = {} if measured is None else {"measurement": str(measured.path)}
        judge = space.judge if METHODS[self.method["name"]].judge != "none" else None
        recipe = {
            **{role: self._rows_of(role, source) for role, source in self.data.items()},
            **({} if space.rows else self._bad_rows),
            **self._settings,
            **({} if judge is None else {"judge": space.recipe.judge}),
            "method": self.method | measurement,
            **({} if policy is None else {"policy": policy.spec}),
        }
        if self.method["name"] in (RELABEL, PER_PROMPT):
            # What is made does not depend on the consent: `check` asks for it before training,
            # so that a run which is refused and then allowed need not build twice.
            recipe["accept_reversal"] = True
        sampling = nullcontext() if policy is None else space.sampler(policy, self._sampling)
        with naming_the_recipe(), sampling as sampler:
            built = build_pairs(recipe, judge=judge, sampler=sampler)
        built.train.save(folder / PAIRS)
        write_text(folder / CARD, built.card)
        write_json(folder / BUILT, dict(built.result))

    # The file of the data; of a part, its rows.
    def _rows_of(self, role: str, source: str | Step) -> Any:
        if isinstance(source, Step):
            return str(source.path / (PAIRS if isinstance(source, Build) else CANDIDATES))
        if self.space.rows is None:
            return source
        return self.space.off_pairs if role == "pairs" else self.space.off_policy

    # Of judging the data's responses, and of what the method samples.
    @override
    def estimate(self, sizes: Sizes) -> Estimate:
        answers = self._sampling.responses
        if self.method["name"] == "mixing":
            drawn = round((self.method["share"] or 0.0) * len(self.space.prompts))
            return replace(
                sizes.sampling(drawn, answers, longest=self._sampling.max_new_tokens),
                judgments=drawn * (answers + 1),
            )
        if METHODS[self.method["name"]].judge == "none":
            return Estimate()
        is_sampled = all(isinstance(source, Step) for source in self.data.values())
        count = answers if is_sampled else sizes.responses
        # Each response is rewarded, or every two of a prompt are compared.
        asked = count if self.space.judge.pointwise else count * (count - 1) / 2
        return Estimate(judgments=round(len(self.space.prompts) * asked))

    # How many pairs, what was left out, and how often labels were reversed.
    @override
    def report(self) -> dict[str, Any]:
        built = self.read(BUILT)
        return {
            "pairs": built["pairs_built"],
            "left_out": built["left_out"],
            "build_figures": built["figures"],
            **({"reversal": built["reversal"]} if self.relabels else {}),
        }

    def check(self) -> None:
        """Ask for consent where the judge reverses most labels that it replaces.

        Raises:
            InputError: If more than 40 % are reversed, and the recipe does not accept that.
        """
        if self.relabels:
            built = self.read(BUILT)
            check_reversal(
                built["reversal"],
                accepted=self.space.recipe.build.accept_reversal,
                judge=str(built["judge"]),
                setting=REVERSAL_SETTING,
            )
