"""What a judge is: P(a ≻ b | x), the probability that response a is better than b."""

from collections.abc import Sequence
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
