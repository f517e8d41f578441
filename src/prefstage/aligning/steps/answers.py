"""Steps in which a policy answers: samples, the measurement of its stage, its win rate."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from prefstage.aligning.steps.base import Estimate, Sizes, Step
from prefstage.aligning.steps.workspace import Policy, Workspace
from prefstage.core.files import read_json_lines, write_json, write_json_lines
from prefstage.data.records import Candidates, Prompt
from prefstage.data.sets import CandidateSet
from prefstage.evaluating.alpaca_files import write_annotations
from prefstage.evaluating.answers import gather_answers
from prefstage.evaluating.settings import WinRateConfig
from prefstage.evaluating.win_rates import win_rate
from prefstage.measuring.measure import CANDIDATES, PROMPTS, STAGE, measure_stage
from prefstage.measuring.settings import MeasureConfig
from prefstage.measuring.stage import Stage, on_policy_candidates, write_prompts
from prefstage.sampling.base import Sample as Answer
from prefstage.sampling.base import cut_thoughts, requests_for, to_candidates

_log = logging.getLogger(__name__)
ANSWERS, EVALUATION, ANNOTATIONS = "answers.jsonl", "evaluation.json", "annotations.json"


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
        recipe = space.recipe
        self.policy, self.held_out = policy, held_out
        self.config = recipe.held_out_sampling if held_out else recipe.seeded(recipe.sampling)
        source = recipe.training_prompts
        if held_out and recipe.evaluate is not None:
            source = recipe.evaluate.prompts
        super().__init__(
            space,
            {
                "for": "evaluation" if held_out else "training",
                **space.sampling_settings(self.config, policy),
            },
            reads={"policy": policy.key},
            inputs={"prompts": space.fingerprint(source)},
        )
        self.role = "answer" if held_out else self.kind

    def run(self, folder: Path) -> None:
        """Sample; responses that the prompts come with are left aside."""
        rows = [
            Candidates(row.prompt_id, row.prompt, (), (), ())
            for row in (self.space.held_out if self.held_out else self.space.prompts)
        ]
        with self.space.sampler(self.policy, self.config) as sampler:
            answers = list(sampler.sample(requests_for(rows, responses=self.config.responses)))
        for line in cut_thoughts(answers, max_new_tokens=self.config.max_new_tokens):
            _log.warning("%s: %s", self.policy.name, line)
        # No reader of candidates takes an empty response; an evaluation judges them as they are.
        spoken = [answer for answer in answers if answer.text.strip()]
        CandidateSet.of(to_candidates(rows, spoken, source=self.policy.name)).save(
            folder / CANDIDATES
        )
        write_json_lines(folder / ANSWERS, self._lines(rows, answers))

    def _lines(self, rows: Sequence[Candidates], answers: list[Answer]) -> list[dict[str, Any]]:
        # Answers arrive in the order in which batches end; the file has the prompts' order.
        positions = {row.prompt_id: position for position, row in enumerate(rows)}
        answers.sort(key=lambda answer: (positions[answer.prompt_id], answer.index))
        return [
            {
                "prompt": list(rows[positions[answer.prompt_id]].prompt),
                "text": answer.text,
                "thought": answer.thought,
                "thought_cut": answer.thought_cut,
                "index": answer.index,
                "finish_reason": answer.finish_reason,
                "response_tokens": answer.response_tokens,
                "policy": self.policy.name,
            }
            for answer in answers
        ]

    def estimate(self, sizes: Sizes) -> Estimate:
        """Of all answers, at most."""
        return sizes.sampling(
            sizes.held_out if self.held_out else sizes.prompts,
            self.config.responses,
            longest=self.space.recipe.sampling.max_new_tokens,
        )


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
                "off_policy": space.fingerprint(str(recipe.off_policy)),
                "judge": space.judge.fingerprint,
            },
        )

    def run(self, folder: Path) -> None:
        """Measure."""
        off_policy, judge = self.space.off_policy, self.space.judge
        with self.space.sampler(self.policy, self.sampling) as sampler:
            stage = measure_stage(off_policy, judge=judge, sampler=sampler, config=self.config)
        write_prompts(stage.prompts, folder / PROMPTS)
        CandidateSet.of(on_policy_candidates(stage.prompts, self.policy.name)).save(
            folder / CANDIDATES
        )
        # How much one process asked, and how much was in the store, depends on kills: no result.
        replace(stage, judge_counts={}).save(folder / STAGE)

    def estimate(self, sizes: Sizes) -> Estimate:
        """Of all prompts that the measurement may use."""
        prompts = min(sizes.off_policy, self.config.max_prompts or sizes.off_policy)
        on, off = self.config.on_responses, min(sizes.responses, self.config.off_responses)
        return replace(
            sizes.sampling(prompts, on, longest=self.sampling.max_new_tokens),
            judgments=round(prompts * (on + off if sizes.pointwise else on * off)),
        )

    def stage(self) -> Stage:
        """The stage; the step is done."""
        return Stage.load(self.path / STAGE)

    def report(self) -> dict[str, Any]:
        """The stage."""
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

    def run(self, folder: Path) -> None:
        """Judge and compare."""
        ours, theirs = (
            gather_answers(step.policy.name, read_answers(step.path))
            for step in (self.ours, self.theirs)
        )
        rate = win_rate(ours, theirs, judge=self.space.judge, config=self.config)
        write_json(folder / EVALUATION, rate.as_dict())
        write_annotations(folder / ANNOTATIONS, rate.annotations())

    def estimate(self, sizes: Sizes) -> Estimate:
        """Of a comparison a prompt, or the rewards of two answers."""
        return Estimate(judgments=sizes.held_out * (2 if sizes.pointwise else 1))

    def report(self) -> dict[str, Any]:
        """The win rate, its interval, and lengths."""
        result = self.read(EVALUATION)
        rates, controlled = result["rates"], result["controlled"]
        return {
            "evaluation": {
                "win_rate": rates["win_rate"],
                "interval": rates["interval"],
                "confidence": rates["confidence"],
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
