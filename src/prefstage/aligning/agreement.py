"""Whether the boundary score foretells which data help more: contingency and exact test."""

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
    def total(self) -> int:
        """Starts counted."""
        return sum(map(sum, self.counts))

    @property
    def agreement(self) -> float | None:
        """Share of starts where BS < ½ and yes, or BS >= ½ and no."""
        agreeing = self.counts[0][0] + self.counts[1][1]
        return agreeing / self.total if self.total else None

    @property
    def p_value(self) -> float:
        """Of Fisher's exact test, two-sided."""
        return fisher_exact(self.counts)

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
    return _count([(each.boundary_score, _above_one(each.ratio)) for each in starts])


def by_gain(starts: Sequence[Start]) -> Contingency:
    """Count BS < ½ against a larger gain of off-policy data, also where both lose.

    Args:
        starts: The starts.

    Returns:
        The counts; equal gains are left out.
    """
    better = [None if each.off == each.on else each.off > each.on for each in starts]
    return _count([(each.boundary_score, yes) for each, yes in zip(starts, better, strict=True)])


def fisher_exact(counts: Sequence[Sequence[int]]) -> float:
    """Fisher's exact test of independence in a 2 x 2 table, two-sided.

    The probability, given the margins, of all tables that are no likelier than this one.

    Args:
        counts: Two rows of two counts >= 0.

    Returns:
        p, in (0, 1]; 1 of an empty table.

    Source:
        Fisher 1922, "On the interpretation of χ² from contingency tables".
    """
    (a, b), (c, d) = counts
    row, column, total = a + b, a + c, a + b + c + d
    ways = [
        math.comb(row, k) * math.comb(total - row, column - k)
        for k in range(max(0, column - (total - row)), min(row, column) + 1)
    ]
    here = math.comb(row, a) * math.comb(total - row, column - a)
    return sum(each for each in ways if each <= here) / sum(ways)


def _above_one(ratio: float | None) -> bool | None:
    return None if ratio is None else ratio > 1


def _count(found: Sequence[tuple[float, bool | None]]) -> Contingency:
    counts = [[0, 0], [0, 0]]
    known = [(score, yes) for score, yes in found if yes is not None]
    for score, yes in known:
        counts[score >= _EVEN][not yes] += 1
    first, second = counts
    table = ((first[0], first[1]), (second[0], second[1]))
    return Contingency(table, len(found) - len(known))
