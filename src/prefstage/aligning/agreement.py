"""Whether the boundary score foretells which data help more: counts and an exact test."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

_EVEN = 0.5


@dataclass(frozen=True)
class Start:
    """One policy, and what training on either kind of data gained from there.

    Attributes:
        where: Names of the block and of the data that led there.
        boundary_score: Of the policy, in [0, 1].
        off: Gain of training on off-policy data.
        on: Gain of training on on-policy data.
    """

    where: str
    boundary_score: float
    off: float
    on: float

    @property
    def ratio(self) -> float | None:
        """Δ = off / on; ∞ where only off gains, at most 0 where only on does, else None."""
        if self.on > 0:
            return self.off / self.on
        return math.inf if self.off > 0 else None


@dataclass(frozen=True)
class Contingency:
    """Counts of starts.

    Attributes:
        counts: [[BS < ½ and yes, BS < ½ and no], [BS >= ½ and yes, BS >= ½ and no]].
        left_out: Starts that answer neither yes nor no.
    """

    counts: tuple[tuple[int, int], tuple[int, int]]
    left_out: int

    @property
    def agreement(self) -> float | None:
        """Share of starts where BS < ½ and yes, or BS >= ½ and no."""
        total = sum(map(sum, self.counts))
        return (self.counts[0][0] + self.counts[1][1]) / total if total else None

    @property
    def p_value(self) -> float:
        """Of Fisher's exact test of independence, two-sided; 1 of an empty table.

        Source:
            Fisher 1922, "On the interpretation of χ² from contingency tables".
        """
        from scipy.stats import fisher_exact

        return float(fisher_exact(self.counts).pvalue)

    def as_dict(self) -> dict[str, Any]:
        """JSON-serialisable."""
        return {**asdict(self), "agreement": self.agreement, "p_value": self.p_value}


def by_ratio(starts: Sequence[Start]) -> Contingency:
    """Count BS < ½ against Δ > 1; starts from where nothing gains are left out.

    Args:
        starts: The starts.

    Returns:
        The counts.

    Source:
        Sun et al. 2025, arXiv:2508.10530, Table 3: BS < 0.5 should go with Δ > 1.
    """
    return _count(starts, [None if start.ratio is None else start.ratio > 1 for start in starts])


def by_gain(starts: Sequence[Start]) -> Contingency:
    """Count BS < ½ against a larger gain of off-policy data, also where both lose.

    Args:
        starts: The starts.

    Returns:
        The counts; equal gains are left out.
    """
    better = [None if start.off == start.on else start.off > start.on for start in starts]
    return _count(starts, better)


def _count(starts: Sequence[Start], answers: Sequence[bool | None]) -> Contingency:
    pairs = list(zip([start.boundary_score < _EVEN for start in starts], answers, strict=True))
    low, high = (
        (pairs.count((below, True)), pairs.count((below, False))) for below in (True, False)
    )
    return Contingency((low, high), answers.count(None))
