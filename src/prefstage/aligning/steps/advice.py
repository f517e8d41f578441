"""Steps of advice: judged answers to go by, the forecast, and what pilots make of the answers."""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from typing_extensions import override

from prefstage.advising import Value, forecast_gains, value_by_scoring
from prefstage.aligning.recipe import pilot_settings, train_settings, whole_path
from prefstage.aligning.steps.base import Estimate, Sizes, Step
from prefstage.aligning.steps.build import PAIRS, Build
from prefstage.aligning.steps.workspace import Policy, Workspace
from prefstage.core import progress, write_json
from prefstage.data.loading import load_candidates, load_pairs
from prefstage.data.records import Candidates
from prefstage.data.rendering import load_tokenizer
from prefstage.data.sets import CandidateSet
from prefstage.data.tokenising import ResponseEncoder
from prefstage.judging.judged import score_candidates
from prefstage.measuring.measure import CANDIDATES
from prefstage.sampling.base import requests_for, to_candidates
from prefstage.scoring.scorer import Scorer
from prefstage.training.recipe_run import open_trainer

FORECAST, LOG_PROBS = "forecast.json", "log_probs.json"
_TRAINING_FLOP, _SCORING_FLOP = 6, 2  # a parameter and token
_FEWEST = 2  # answers of a prompt that can be compared


class Target(Step):
    """A policy's own answers, several a prompt, with the judge's scores.

    Leaves ``candidates.parquet``. Prompts with fewer than two answers of any text are left out.

    Args:
        space: The workspace, whose prompts no candidate trains on.
        policy: Who answers.
    """

    kind = "target"

    def __init__(self, space: Workspace, policy: Policy) -> None:
        self.policy = policy
        sampling = space.recipe.seeded(space.recipe.sampling)
        responses = space.recipe.advise.responses
        self.config = sampling.model_copy(update={"responses": responses})
        super().__init__(
            space,
            space.sampling_settings(self.config, policy),
            reads={"policy": policy.key},
            inputs={
                "prompts": space.data_fingerprint(space.prompts_source),
                "judge": space.judge.fingerprint,
            },
        )

    # Sample and judge.
    @override
    def run(self, folder: Path) -> None:
        rows = [Candidates(row.prompt_id, row.prompt, (), (), ()) for row in self.space.prompts]
        with self.space.sampler(self.policy, self.config) as sampler:
            answers = list(sampler.sample(requests_for(rows, responses=self.config.responses)))
        spoken = (answer for answer in answers if answer.text.strip())
        candidates = [
            row
            for row in to_candidates(rows, spoken, source=self.policy.name)
            if len(row.responses) >= _FEWEST
        ]
        scores = score_candidates(self.space.judge, candidates)
        CandidateSet.of(
            replace(row, scores=tuple(values))
            for row, values in zip(candidates, scores, strict=True)
        ).save(folder / CANDIDATES)

    @override
    def estimate(self, sizes: Sizes) -> Estimate:
        prompts, count = len(self.space.prompts), self.config.responses
        asked = count if self.space.judge.pointwise else count * (count - 1) // 2
        sampled = sizes.sampling(prompts, count, longest=self.config.max_new_tokens)
        return replace(sampled, judgments=prompts * asked)

    def answers(self) -> CandidateSet:
        """The answers; the step is done."""
        return load_candidates(str(self.path / CANDIDATES))


class Forecast(Step):
    """What a step on each of several data sets would gain, from gradients.

    Leaves ``forecast.json``.

    Args:
        space: The workspace.
        policy: Who would be trained.
        target: Its judged answers.
        candidates: By name, the pairs it might be trained on.
    """

    kind = "forecast"

    def __init__(
        self, space: Workspace, policy: Policy, target: Target, candidates: Mapping[str, Build]
    ) -> None:
        self.policy, self.target, self.candidates = policy, target, dict(candidates)
        self.recipe = train_settings(
            space.recipe, policy=whole_path(policy.spec), data="", reference="start"
        )
        super().__init__(
            space,
            self.recipe.model_dump(mode="json", exclude={"policy", "data", "eval", "dynamics"}),
            reads={
                "policy": policy.key,
                "target": target.key,
                **{f"pairs of {name}": built.key for name, built in candidates.items()},
            },
        )

    @override
    def run(self, folder: Path) -> None:
        pairs = {
            name: load_pairs(str(built.path / PAIRS)) for name, built in self.candidates.items()
        }
        with tempfile.TemporaryDirectory() as scratch:
            first = next(iter(pairs.values()))
            trainer = open_trainer(pilot_settings(self.recipe), Path(scratch), data=first)
            with progress("gradients", None) as tick:
                found = forecast_gains(trainer, self.target.answers(), pairs, tick=partial(tick, 1))
        leader = max(found.by_name, key=lambda name: found.by_name[name].gain.value)
        best = found.by_name[leader].gain
        write_json(
            folder / FORECAST,
            {
                "agreement": found.agreement,
                "learning_rate": found.rate,
                "candidates": {
                    name: {
                        "pairs": len(pairs[name]),
                        "gain": found.rate * made.gain.value,
                        "error": found.rate * made.gain.error,
                        "cosine": made.cosine.value,
                        "cosine_error": made.cosine.error,
                        "behind": found.rate * best.minus(made.gain).value,
                        "behind_error": found.rate * best.minus(made.gain).error,
                    }
                    for name, made in found.by_name.items()
                },
            },
        )

    @override
    def estimate(self, sizes: Sizes) -> Estimate:
        prompts = len(self.target.space.prompts)
        answers = self.target.config.responses * sizes.response_tokens
        tokens = prompts * (sizes.prompt_tokens + answers)
        for built in self.candidates.values():
            count = len(built.space.prompts)
            tokens += count * (sizes.prompt_tokens + 2 * sizes.response_tokens)
        return Estimate(tokens=round(tokens), seconds=sizes.seconds(round(tokens), _TRAINING_FLOP))


class Score(Step):
    """How likely a policy makes the judged answers of its start.

    Leaves ``log_probs.json``: of each answer, by prompt.

    Args:
        space: The workspace.
        target: The answers.
        policy: Who is asked.
    """

    kind = "score"

    def __init__(self, space: Workspace, target: Target, policy: Policy) -> None:
        self.target, self.policy = target, policy
        super().__init__(
            space,
            {"encoding": {name: str(value) for name, value in space.recipe.encoding.items()}},
            reads={"target": target.key, "policy": policy.key},
        )

    @override
    def run(self, folder: Path) -> None:
        encoder = ResponseEncoder(load_tokenizer(self.policy.spec), **self.space.recipe.encoding)
        trees = [encoder.encode(row.prompt, row.messages()) for row in self.target.answers()]
        scored = Scorer.load(self.policy.spec).score(trees)
        write_json(folder / LOG_PROBS, [answers.sums.tolist() for answers in scored])

    @override
    def estimate(self, sizes: Sizes) -> Estimate:
        answers = self.target.config.responses * sizes.response_tokens
        tokens = round(len(self.target.space.prompts) * (sizes.prompt_tokens + answers))
        return Estimate(tokens=tokens, seconds=sizes.seconds(tokens, _SCORING_FLOP))

    def log_probs(self) -> list[list[float]]:
        """Of each answer, by prompt; the step is done. [prompts][answers]."""
        values: list[list[float]] = json.loads((self.path / LOG_PROBS).read_text("utf-8"))
        return values


def value_of(pilot: Score, start: Score) -> Value:
    """Value a pilot by the judged answers of its start.

    Args:
        pilot: Done.
        start: Likewise, of the start.

    Returns:
        Its gain, prompt by prompt.
    """
    rows = zip(pilot.log_probs(), start.log_probs(), pilot.target.answers(), strict=True)
    # One prompt at a time: they may have different numbers of answers.
    values = [
        value_by_scoring(
            torch.tensor([after]).double() - torch.tensor([before]).double(),
            torch.tensor([row.scores]),
        )
        for after, before, row in rows
    ]
    return Value(
        torch.cat([value.by_prompt for value in values]),
        sum(value.sample_size for value in values),
    )
