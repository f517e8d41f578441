"""Steps of advice: judged answers of the start, the forecast, and what pilots gained."""

import logging
import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean

import torch
from typing_extensions import override

from prefstage.advising import Value, forecast_gains, value_by_scoring
from prefstage.aligning.recipe import pilot_settings, train_settings, whole_path
from prefstage.aligning.steps.answers import PAIRS, Build
from prefstage.aligning.steps.base import Estimate, Sizes, Step
from prefstage.aligning.steps.workspace import Policy, Workspace
from prefstage.core import progress, read_json, scratch_folder, write_json
from prefstage.data import (
    Candidates,
    CandidateSet,
    ResponseEncoder,
    load_candidates,
    load_pairs,
    load_tokenizer,
)
from prefstage.judging import Comparison
from prefstage.judging.judged import compare_all, score_all, score_candidates
from prefstage.measuring.measure import CANDIDATES
from prefstage.sampling.base import requests_for, shortfalls, to_candidates
from prefstage.scoring.scorer import Scorer
from prefstage.training.recipe_run import open_trainer

_log = logging.getLogger(__name__)
FORECAST, LOG_PROBS, GAINS = "forecast.json", "log_probs.json", "gains.json"
_FLOP, _FLOP_FORWARD = 6, 2  # a parameter and token; forward and backward, and forward alone


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
        self.config = space.recipe.seeded(space.recipe.sampling).model_copy(
            update={"responses": space.recipe.advise.responses}
        )
        super().__init__(
            space,
            space.sampling_settings(self.config, policy),
            reads={"policy": policy.key},
            inputs={
                "prompts": space.data_fingerprint(),
                "judge": space.judge.fingerprint,
            },
        )

    # Sample and judge.
    @override
    def run(self, folder: Path) -> None:
        rows = [Candidates(row.prompt_id, row.prompt, (), (), ()) for row in self.space.prompts]
        with self.space.sampler(self.policy, self.config) as sampler:
            answers = list(sampler.sample(requests_for(rows, responses=self.config.responses)))
        for line in shortfalls(answers):
            _log.warning("%s: %s", self.policy.name, line)
        spoken = (answer for answer in answers if answer.text.strip())
        candidates = [
            row
            for row in to_candidates(rows, spoken, source=self.policy.name)
            if len(row.responses) > 1  # which can be compared
        ]
        scores = score_candidates(self.space.judge, candidates)
        CandidateSet.of(
            replace(row, scores=tuple(values))
            for row, values in zip(candidates, scores, strict=True)
            if all(map(math.isfinite, values))  # where nothing was decided, no answer is a target
        ).save(folder / CANDIDATES)

    @override
    def estimate(self, sizes: Sizes) -> Estimate:
        prompts, count = len(self.space.prompts), self.config.responses
        asked = count if self.space.judge.pointwise else count * (count - 1) // 2
        return replace(
            sizes.sampling(prompts, count, longest=self.config.max_new_tokens),
            judgments=prompts * asked,
        )

    def answers(self) -> CandidateSet:
        """The answers; the step is done."""
        return load_candidates(str(self.path / CANDIDATES))


class Gain(Step):
    """What the judge thinks a policy's answers gained over those of its start.

    Leaves ``gains.json``: of every prompt of the target, the mean over the policy's answers: in
    reward over the mean of the start's answers, or for a judge that compares, P(wins) over ½
    against the start's answers, one each. Empty answers count, as in an evaluation.

    Args:
        space: The workspace.
        target: The start's answers.
        policy: Who answers now.
    """

    kind = "gain"

    def __init__(self, space: Workspace, target: Target, policy: Policy) -> None:
        self.target, self.policy = target, policy
        count = space.recipe.advise.pilot_responses
        self._numbers = range(count)
        self.config = target.config.model_copy(update={"responses": count})
        super().__init__(
            space,
            space.sampling_settings(self.config, policy),
            reads={"target": target.key, "policy": policy.key},
            inputs={"judge": space.judge.fingerprint},
        )

    @override
    def run(self, folder: Path) -> None:
        rows, judge = list(self.target.answers()), self.space.judge
        requests = requests_for(rows, responses=self.config.responses)
        with self.space.sampler(self.policy, self.config) as sampler:
            samples = list(sampler.sample(requests))
        for line in shortfalls(samples):
            _log.warning("%s: %s", self.policy.name, line)
        # What a server refused to answer says nothing of the policy: no gain, no loss.
        texts = {(s.prompt_id, s.index): s.text for s in samples if not s.refusal}
        answers = [
            (row, texts.get((row.prompt_id, k), row.responses[k % len(row.responses)]))
            for row in rows
            for k in self._numbers
        ]
        if judge.pointwise:
            rewards = score_all(judge, [(row.prompt, text) for row, text in answers])
            start = {row.prompt_id: float(torch.tensor(row.scores).double().mean()) for row in rows}
            gains = [r - start[row.prompt_id] for r, (row, _) in zip(rewards, answers, strict=True)]
        else:
            # Against the answer of the same number, which was drawn with the same seed.
            against = [row.responses[k % len(row.responses)] for row in rows for k in self._numbers]
            comparisons = [
                Comparison(row.prompt_id, row.prompt, text, other)
                for (row, text), other in zip(answers, against, strict=True)
            ]
            gains = [verdict.probability - 0.5 for verdict in compare_all(judge, comparisons)]
        count = self.config.responses
        write_json(
            folder / GAINS, [fmean(gains[k : k + count]) for k in range(0, len(gains), count)]
        )

    @override
    def estimate(self, sizes: Sizes) -> Estimate:
        prompts, count = len(self.target.space.prompts), self.config.responses
        return replace(
            sizes.sampling(prompts, count, longest=self.config.max_new_tokens),
            judgments=prompts * count,
        )

    def value(self) -> Value:
        """The gain over the start, prompt by prompt; the step is done."""
        return Value(torch.tensor(read_json(self.path / GAINS, list), dtype=torch.float64))


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
        with scratch_folder() as scratch:
            trainer = open_trainer(
                pilot_settings(self.recipe), scratch, {"data": next(iter(pairs.values()))}
            )
            with progress("gradients", None) as tick:
                found = forecast_gains(
                    trainer,
                    self.target.answers(),
                    pairs,
                    compared=not self.space.judge.pointwise,
                    tick=partial(tick, 1),
                )
        ratings = {name: made.rating for name, made in found.by_name.items()}
        best = ratings[max(ratings, key=lambda name: ratings[name].value)]
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
                        "agreement": made.agreement.value,
                        "rating": found.rate * ratings[name].value,
                        "behind": found.rate * best.minus(ratings[name]).value,
                        "behind_error": found.rate * best.minus(ratings[name]).error,
                    }
                    for name, made in found.by_name.items()
                },
            },
        )

    @override
    def estimate(self, sizes: Sizes) -> Estimate:
        # Prompts, and responses to each of them.
        counts = [(len(self.target.space.prompts), self.target.config.responses)]
        counts += [(len(built.space.prompts), 2) for built in self.candidates.values()]
        tokens = round(
            sum(n * (sizes.prompt_tokens + m * sizes.response_tokens) for n, m in counts)
        )
        return Estimate(tokens=tokens, seconds=sizes.seconds(tokens, _FLOP))


class Score(Step):
    """How likely a policy makes the judged answers of its start.

    Leaves ``log_probs.json``: of each answer, by prompt.

    Args:
        space: The workspace.
        target: The answers.
        policy: Who is asked.
        start: The same step of the start.
    """

    kind = "score"

    def __init__(
        self, space: Workspace, target: Target, policy: Policy, start: "Score | None" = None
    ) -> None:
        self.target, self.policy, self.start = target, policy, start or self
        super().__init__(
            space,
            {"encoding": {name: str(value) for name, value in space.recipe.encoding.items()}},
            reads={"target": target.key, "policy": policy.key},
        )

    @override
    def run(self, folder: Path) -> None:
        encoder = ResponseEncoder(load_tokenizer(self.policy.spec), **self.space.recipe.encoding)
        trees = [encoder.encode(row.prompt, row.messages()) for row in self.target.answers()]
        write_json(
            folder / LOG_PROBS,
            [answers.sums.tolist() for answers in Scorer.load(self.policy.spec).score(trees)],
        )

    @override
    def estimate(self, sizes: Sizes) -> Estimate:
        answers = self.target.config.responses * sizes.response_tokens
        tokens = round(len(self.target.space.prompts) * (sizes.prompt_tokens + answers))
        return Estimate(tokens=tokens, seconds=sizes.seconds(tokens, _FLOP_FORWARD))

    def value(self) -> Value:
        """The gain over the start, prompt by prompt; both steps are done."""
        files = (read_json(s.path / LOG_PROBS, list) for s in (self, self.start))
        # One prompt at a time: they may have different numbers of answers.
        values = [
            value_by_scoring(
                torch.tensor([after]).double() - torch.tensor([before]).double(),
                torch.tensor([row.scores]),
                compared=not self.space.judge.pointwise,
            )
            for after, before, row in zip(*files, self.target.answers(), strict=True)
        ]
        return Value(
            torch.cat([value.by_prompt for value in values]),
            sum(value.sample_size or 0.0 for value in values),
        )
