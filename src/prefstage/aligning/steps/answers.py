"""Steps in which a policy answers: samples, the measurement of its stage, its win rate."""

import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from typing_extensions import override

from prefstage.aligning.steps.base import Estimate, Sizes, Step
from prefstage.aligning.steps.workspace import Policy, Workspace
from prefstage.core import read_json_lines, write_json, write_json_lines
from prefstage.data import Candidates, CandidateSet, Prompt
from prefstage.evaluating import WinRateConfig, win_rate, write_annotations
from prefstage.evaluating.answers import gather_answers
from prefstage.measuring.measure import CANDIDATES, PROMPTS, STAGE, measure_stage
from prefstage.measuring.settings import MeasureConfig
from prefstage.measuring.stage import Stage, on_policy_candidates, write_prompts
from prefstage.sampling.base import cut_thoughts, requests_for, to_candidates

_log = logging.getLogger(__name__)
ANSWERS, EVALUATION, ANNOTATIONS = "answers.jsonl", "evaluation.json", "annotations.json"
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
        prompts = space.data_fingerprint(space.prompts_source)
        if held_out and evaluate is not None:
            config = evaluate.sampling or recipe.sampling
            prompts = space.fingerprint(evaluate.prompts)
            self.config = recipe.seeded(config).model_copy(update={"responses": 1})
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
        for line in cut_thoughts(answers, max_new_tokens=self.config.max_new_tokens):
            _log.warning("%s: %s", self.policy.name, line)
        # No reader of candidates takes an empty response; an evaluation judges them as they are.
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
        self.config = recipe.seeded(recipe.measure or MeasureConfig())
        super().__init__(
            space,
            {
                "measure": self.config.model_dump(mode="json"),
                **space.sampling_settings(self.sampling, policy),
            },
            reads={"policy": policy.key},
            inputs={
                "off_policy": space.data_fingerprint(str(recipe.off_policy)),
                "judge": space.judge.fingerprint,
            },
        )

    @override
    def run(self, folder: Path) -> None:
        off_policy, judge = self.space.off_policy, self.space.judge
        with self.space.sampler(self.policy, self.sampling) as sampler:
            stage = measure_stage(off_policy, judge=judge, sampler=sampler, config=self.config)
        write_prompts(stage.prompts, folder / PROMPTS)
        candidates = on_policy_candidates(stage.prompts, self.policy.name)
        CandidateSet.of(candidates).save(folder / CANDIDATES)
        # How much one process asked, and how much was in the store, depends on kills: no result.
        replace(stage, judge_counts={}).save(folder / STAGE)

    # Of all prompts that the measurement may use.
    @override
    def estimate(self, sizes: Sizes) -> Estimate:
        prompts = min(len(self.space.off_policy), self.config.max_prompts or sys.maxsize)
        on, off = self.config.on_responses, min(sizes.responses, self.config.off_responses)
        return replace(
            sizes.sampling(prompts, on, longest=self.sampling.max_new_tokens),
            judgments=round(prompts * (on + off if self.space.judge.pointwise else on * off)),
        )

    def stage(self) -> Stage:
        """The stage; the step is done."""
        return Stage.load(self.path / STAGE)

    @override
    def report(self) -> dict[str, Any]:
        return {"stage": self.stage().as_dict()}


class Evaluate(Step):
    """The win rate of one policy's held-out answers over another's.

    Leaves ``evaluation.json`` and ``annotations.json``.

    Args:
        space: The workspace.
        ours: Answers of the policy.
        theirs: Answers of the policy it is compared with: in a run, the start.
    """

    kind = "evaluate"

    def __init__(self, space: Workspace, ours: Sample, theirs: Sample) -> None:
        evaluate = space.recipe.evaluate
        self.ours, self.theirs = ours, theirs
        self.config = space.recipe.seeded(evaluate.win_rate if evaluate else WinRateConfig())
        super().__init__(
            space,
            self.config.model_dump(mode="json"),
            reads={"model": ours.key, "baseline": theirs.key},
            inputs={"judge": space.judge.fingerprint},
        )

    # Judge and compare.
    @override
    def run(self, folder: Path) -> None:
        ours, theirs = (
            gather_answers(step.policy.name, read_answers(step.path))
            for step in (self.ours, self.theirs)
        )
        rate = win_rate(ours, theirs, judge=self.space.judge, config=self.config)
        write_json(folder / EVALUATION, rate.as_dict())
        write_annotations(folder / ANNOTATIONS, rate.annotations())

    # Of a comparison a prompt, or the rewards of two answers.
    @override
    def estimate(self, sizes: Sizes) -> Estimate:
        asked = 2 if self.space.judge.pointwise else 1
        return Estimate(judgments=len(self.space.held_out) * asked)

    # The win rate, its interval, and lengths.
    @override
    def report(self) -> dict[str, Any]:
        result = self.read(EVALUATION)
        rates, controlled = result["rates"], result["controlled"]
        return {
            "evaluation": {
                **{name: rates[name] for name in ("win_rate", "interval", "confidence")},
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
