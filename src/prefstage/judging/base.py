"""What a judge is: P(a ≻ b | x), the probability that response a is better than b."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from prefstage.data.records import Prompt


@dataclass(frozen=True)
class Comparison:
    """Two responses to one prompt that are to be compared.

    Attributes:
        prompt_id: Names the prompt's content.
        prompt: Messages up to and with the last user turn.
        a: Text of the first response.
        b: Text of the second response.
    """

    prompt_id: str
    prompt: Prompt
    a: str
    b: str


@dataclass(frozen=True)
class Judgment:
    """A judge's answer to one comparison.

    Attributes:
        probability: P(a ≻ b | x) in [0, 1]; ½ is a tie.
        status: "decided"; or "undecided" where the judge gave no readable answer (then
            `probability` is ½).
    """

    probability: float
    status: Literal["decided", "undecided"] = "decided"


@runtime_checkable
class Judge(Protocol):
    """Compares responses. `compare(a, b)` and `compare(b, a)` sum to one."""

    @property
    def name(self) -> str:
        """Short name for people."""

    @property
    def fingerprint(self) -> str:
        """Hash of everything a judgment depends on besides the texts."""

    def compare(self, comparisons: Sequence[Comparison]) -> list[Judgment]:
        """Judge each comparison; the result depends on that comparison alone."""


@runtime_checkable
class PointwiseJudge(Judge, Protocol):
    """A judge that scores one response at a time: m + n calls for m·n comparisons."""

    def score(self, items: Sequence[tuple[Prompt, str]]) -> list[float]:
        """Reward of each (prompt, response); P(a ≻ b) = σ(reward_a - reward_b)."""


@runtime_checkable
class StreamingJudge(Judge, Protocol):
    """A judge that gives each judgment as it becomes known, for progress and for storing."""

    def compare_each(self, comparisons: Sequence[Comparison]) -> Iterator[tuple[int, Judgment]]:
        """Yield (position in `comparisons`, judgment), each position once, in any order."""


@runtime_checkable
class StreamingPointwiseJudge(PointwiseJudge, Protocol):
    """A pointwise judge that gives each reward as it becomes known."""

    def score_each(self, items: Sequence[tuple[Prompt, str]]) -> Iterator[tuple[int, float]]:
        """Yield (position in `items`, reward), each position once, in any order."""


@runtime_checkable
class CountingJudge(Judge, Protocol):
    """A judge that keeps count of what it did, for reports."""

    @property
    def counts(self) -> Mapping[str, int]:
        """What happened so far: "calls", and where they apply "truncated", "undecided"."""


TIE = Judgment(probability=0.5)
UNDECIDED = Judgment(probability=0.5, status="undecided")


def flipped(judgment: Judgment) -> Judgment:
    """The same judgment with the two responses exchanged: P(b ≻ a) = 1 - P(a ≻ b)."""
    return Judgment(probability=1.0 - judgment.probability, status=judgment.status)


def bradley_terry(reward_a: float, reward_b: float) -> float:
    """P(a ≻ b) = σ(r_a - r_b).

    Args:
        reward_a: Reward of the first response, in nats of preference odds.
        reward_b: Reward of the second.

    Returns:
        The probability that the first is better, in [0, 1].

    Source:
        Bradley & Terry 1952, Biometrika 39; as the reward model's likelihood, Ouyang et al.
        2022, arXiv:2203.02155, Eq. 1.
    """
    return sigmoid(reward_a - reward_b)


def judgment_of_rewards(reward_a: float, reward_b: float) -> Judgment:
    """P(a ≻ b) of two rewards; undecided where one is no finite number.

    Args:
        reward_a: Reward of the first response.
        reward_b: Reward of the second.

    Returns:
        The judgment.
    """
    if not (math.isfinite(reward_a) and math.isfinite(reward_b)):
        return UNDECIDED
    return Judgment(bradley_terry(reward_a, reward_b))


def sigmoid(logit: float) -> float:
    """σ(z) = 1 / (1 + e^-z) without overflow; σ(z) + σ(-z) = 1 to rounding."""
    if logit >= 0:
        return 1.0 / (1.0 + math.exp(-logit))
    return math.exp(logit) / (1.0 + math.exp(logit))


def compare_by_rewards(
    score: Callable[[Sequence[tuple[Prompt, str]]], list[float]],
    comparisons: Sequence[Comparison],
) -> list[Judgment]:
    """Judge comparisons from the rewards of their responses, asked for in one call.

    Args:
        score: Gives the reward of each (prompt, response).
        comparisons: What to judge; equal texts are a tie and are not scored.

    Returns:
        P(a ≻ b) = σ(r_a - r_b) of each comparison, in order.
    """
    wanted = [c for c in comparisons if c.a != c.b]
    rewards = score([(c.prompt, text) for c in wanted for text in (c.a, c.b)])
    pairs = zip(rewards[::2], rewards[1::2], strict=True)
    decided = iter([judgment_of_rewards(a, b) for a, b in pairs])
    return [TIE if c.a == c.b else next(decided) for c in comparisons]


def gather(judgments: Iterator[tuple[int, Judgment]], count: int) -> list[Judgment]:
    """Put streamed judgments back into the order of their comparisons.

    Args:
        judgments: (position, judgment), each position from 0 to `count` - 1 once.
        count: Number of comparisons.

    Returns:
        One judgment a comparison, in order.
    """
    found = dict(judgments)
    return [found[position] for position in range(count)]


@dataclass(frozen=True)
class Reply:
    """One answer that was paid for, as it came.

    Attributes:
        text: What the judge wrote.
        probability: P(first shown ≻ second shown) read from it, or None if unreadable.
    """

    text: str
    probability: float | None


class ReplyLog(Protocol):
    """Keeps every paid answer; asked before anything is bought."""

    def get(self, question: Comparison, attempt: int) -> Reply | None:
        """The answer to this question in this order (`a` shown first), if it was bought."""

    def put(self, question: Comparison, attempt: int, reply: Reply) -> None:
        """Keep an answer; when this returns it survives a kill of the process."""


@runtime_checkable
class BuyingJudge(Judge, Protocol):
    """A judge whose single answers cost money or minutes, so that each is kept by itself."""

    def recorded_in(self, log: ReplyLog) -> Judge:
        """The same judge, reading known answers from `log` and writing new ones to it."""
