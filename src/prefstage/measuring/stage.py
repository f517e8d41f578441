"""The result: which stage, how sure, and what it took."""

import json
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, Self

from prefstage.core.errors import DataError
from prefstage.core.files import write_json
from prefstage.measuring.boundary import TieRule, Votes
from prefstage.measuring.judge_errors import JudgeErrors

StageName = Literal["injection", "fine-tuning", "undecided"]

_RECOMMENDATIONS: dict[StageName, str] = {
    "injection": (
        "The judge prefers the off-policy answers: train on the pairs you have (the policy "
        "cannot yet write answers as good), and measure again after that training."
    ),
    "fine-tuning": (
        "The judge prefers the policy's own answers: sample pairs from the policy, label them "
        "with this judge, and train on those rather than on the pairs you have."
    ),
    "undecided": (
        "The judge finds both sides about equally good, as far as this many prompts can tell: "
        "allow more prompts, or count probabilities instead of votes (--votes probability)."
    ),
}


@dataclass(frozen=True)
class Stage:
    """Which stage the policy is in, relative to one set of off-policy responses and one judge.

    Attributes:
        stage: "injection" (off-policy pairs are what helps next), "fine-tuning" (on-policy
            pairs are), or "undecided".
        boundary_score: BS, in [0, 1]; below ½ in the injection stage.
        interval: (low, high) of the boundary score, at `confidence`.
        confidence: Chance at least that the interval holds it.
        votes_on: Comparisons won by on-policy responses, P > ½. Ties and undecided ones are
            counted apart.
        votes_off: Comparisons won by off-policy responses.
        ties: Comparisons with P = ½.
        prompts_used: Prompts sampled and judged.
        prompts_available: Prompts that both sides have (or can have) responses to.
        responses_per_prompt: {"on": m, "off": n}, the mean over prompts used.
        judge: The judge's name.
        policy: The policy's name.
        tie_rule: What a tie counted for.
        seed: Of the order of prompts and the choice of responses.
        votes: Hard votes or probabilities.
        method: "sequential" (stopped when sure) or "fixed-size" (used its whole budget).
        stopped: Why it ended: "decided", "all prompts used", "prompt budget" or
            "judgment budget".
        population: What the interval is about: "these prompts", with the responses sampled
            for them, or "new prompts" like these.
        interval_new_prompts: The interval for new prompts like these; equal to `interval`
            where `population` says so.
        algorithm_1: The paper's plain verdict on the prompts used, without an interval.
        judgments: Comparisons made, m·n a prompt.
        undecided_judgments: Comparisons without a readable answer of the judge; they count ½.
        prompts_favouring: Number of prompts whose score is above ½ ("on"), below ("off"), or
            ½ ("neither").
        unmatched_prompts: Prompts left out because only this side has responses to them.
        responses_unused: Responses to the prompts used that were there but not drawn.
        tokens: Tokens of prompts and responses sampled for this measurement, or None where
            the on-policy responses were given.
        cut_responses: Sampled responses that hit the token limit before they ended.
        cut_thoughts: Sampled responses that ended within their thought, without an answer;
            judges see an empty one.
        judge_counts: What the judge says it did, such as calls.
        distinctness: Share of comparisons in which the policy itself finds the on-policy
            response likelier, or None if not asked for.
        reliability: Chance that the true boundary score is on the side called (of an
            undecided measurement: on the side of `algorithm_1`), or None where the judge's
            accuracy is not known. See `chance_above_half`.
        judge_accuracy: The judge's accuracy that it rests on.
        judge_bias: The judge's bias that it allows for.
        judge_errors: Where the judge errs, as it assumes.
        overlap: The overlap of both sides that it rests on.
    """

    stage: StageName
    boundary_score: float
    interval: tuple[float, float]
    confidence: float
    votes_on: int
    votes_off: int
    ties: int
    prompts_used: int
    prompts_available: int
    responses_per_prompt: dict[str, float]
    judge: str
    policy: str
    tie_rule: TieRule
    seed: int
    votes: Votes
    method: Literal["sequential", "fixed-size"]
    stopped: Literal["decided", "all prompts used", "prompt budget", "judgment budget"]
    population: Literal["these prompts", "new prompts"]
    interval_new_prompts: tuple[float, float]
    algorithm_1: Literal["injection", "fine-tuning"]
    judgments: int
    undecided_judgments: int
    prompts_favouring: dict[str, int]
    unmatched_prompts: dict[str, int]
    responses_unused: dict[str, int]
    tokens: dict[str, int] | None
    cut_responses: int
    judge_counts: dict[str, int]
    distinctness: float | None = None
    reliability: float | None = None
    judge_accuracy: float | None = None
    judge_bias: float = 0.0
    judge_errors: JudgeErrors = "unknown"
    overlap: float = 0.0
    cut_thoughts: int = 0

    @property
    def recommendation(self) -> str:
        """What to do next, in a sentence or two."""
        return _RECOMMENDATIONS[self.stage]

    def as_dict(self) -> dict[str, Any]:
        """JSON-serialisable; `from_dict` turns it back."""
        values = asdict(self)
        for name in _INTERVALS:
            values[name] = list(values[name])
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Build a stage from what `as_dict` gave.

        Args:
            values: All keys of a stage, and no other; those that have a default may lack.

        Returns:
            The stage.

        Raises:
            DataError: If a key is missing or unknown.
        """
        known = {field.name for field in fields(cls)}
        needed = {field.name for field in fields(cls) if field.default is MISSING}
        odd = sorted((set(values) - known) | (needed - set(values)))
        if odd:
            raise DataError.of(
                saw=f"a stage with missing or unknown keys: {', '.join(odd)}",
                expected="the keys that prefstage measure writes",
                cure="measure again, or read it with the version that wrote it",
            )
        intervals: dict[str, Any] = {name: tuple(values[name]) for name in _INTERVALS}
        return cls(**{**values, **intervals})

    def save(self, path: Path) -> None:
        """Write the stage as JSON, atomically."""
        write_json(path, self.as_dict())

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a stage that `save` wrote.

        Args:
            path: The JSON file.

        Returns:
            The stage.

        Raises:
            DataError: If the file is missing or holds no stage.
        """
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError.of(
                saw=f"{path}: {error}",
                expected="a stage.json that prefstage measure wrote",
                cure="check the path",
            ) from None
        return cls.from_dict(values if isinstance(values, dict) else {})


_INTERVALS = ("interval", "interval_new_prompts")
