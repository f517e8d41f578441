"""Numbers that a diagnosis is made of: distributions, histograms, chance-corrected agreement."""

from dataclasses import dataclass

import numpy as np

from prefstage.data.disk_numbers import Numbers, pieces


@dataclass(frozen=True)
class Distribution:
    """A set of numbers, as papers tabulate it.

    Attributes:
        mean: Their mean; None without numbers, like all that follow.
        std: Standard deviation (of a sample: divided by n - 1); None of a single number.
        min: Least.
        q25: First quartile, interpolated.
        median: Median.
        q75: Third quartile.
        max: Greatest.
        count: How many there are.
        missing: How many rows have none.
    """

    mean: float | None
    std: float | None
    min: float | None
    q25: float | None
    median: float | None
    q75: float | None
    max: float | None
    count: int
    missing: int


def describe(values: Numbers) -> Distribution:
    """Mean, standard deviation, least, quartiles and greatest.

    Args:
        values: Numbers; NaN where a row has none. [rows].

    Returns:
        The figures over those that are there.

    Source:
        arXiv:2508.18312, Table 5.
    """
    return describe_sorted(np.sort(values))


def describe_sorted(values: Numbers) -> Distribution:
    """As `describe`, of sorted numbers that may be memory-mapped; memory does not grow.

    Args:
        values: Numbers, least first, NaN last. [rows].

    Returns:
        The figures, exact.
    """
    there = values[: _count(values)]
    count, missing = len(there), len(values) - len(there)
    if not count:
        return Distribution(None, None, None, None, None, None, None, 0, missing)
    mean = float(there.mean())
    squares = sum(float(((piece - mean) ** 2).sum()) for piece in pieces(there))
    std = float(np.sqrt(squares / (count - 1))) if count > 1 else None
    low, q25, median, q75, high = (_quantile(there, q) for q in (0.0, 0.25, 0.5, 0.75, 1.0))
    return Distribution(mean, std, low, q25, median, q75, high, count, missing)


@dataclass(frozen=True)
class Histogram:
    """Counts between edges: a figure's data.

    Attributes:
        edges: Borders of the bins. [bins + 1].
        counts: How many numbers fall into each; the last includes its upper edge. [bins].
    """

    edges: list[float]
    counts: list[int]


def histogram(values: Numbers, *, bins: int = 20) -> Histogram:
    """Count numbers in bins of equal width.

    Args:
        values: Finite numbers, perhaps memory-mapped; NaN are left out. [rows].
        bins: How many.

    Returns:
        The counts. Numbers that differ by rounding alone stand in bins as wide as for equal
        ones, from half below to half above.
    """
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    edges = np.linspace(low, high, bins + 1)
    if np.any(np.diff(edges) <= 0):
        edges = np.linspace(low - 0.5, high + 0.5, bins + 1)
    counts = np.zeros(bins, dtype=np.int64)
    for piece in pieces(values):
        counts += np.histogram(piece[~np.isnan(piece)], bins=edges)[0]
    return Histogram(edges.tolist(), counts.tolist())


def _count(values: Numbers) -> int:
    """How many of sorted numbers are there; NaN stand last."""
    return int(np.searchsorted(values, np.nan)) if len(values) else 0


def _quantile(values: Numbers, share: float) -> float:
    """The quantile of sorted numbers, interpolated as numpy's default does."""
    place = share * (len(values) - 1)
    below = int(place)
    low, high = float(values[below]), float(values[min(below + 1, len(values) - 1)])
    return low + (high - low) * (place - below)


def cohens_kappa(first: Numbers, second: Numbers) -> float | None:
    """Agreement of two raters of pairs beyond chance.

    ``κ = (p_o - p_e)/(1 - p_e)``. Which response of a pair is called the first is arbitrary
    (in a preference set it is the chosen one), so marginals are taken over both orders: with
    t the raters' shares of ties, ``p_e = (1 - t_1)(1 - t_2)/2 + t_1 t_2``.

    Args:
        first: What one rater prefers: 1 the first response, 0 the second, ½ a tie. [pairs].
        second: What the other prefers. [pairs].

    Returns:
        κ, at most 1; None without pairs, or where both call everything a tie.

    Source:
        Cohen 1960, Educational and Psychological Measurement 20(1); the symmetric marginals
        are ours.
    """
    if not len(first):
        return None
    observed = float((first == second).mean())
    ties = [float((each == 0.5).mean()) for each in (first, second)]  # noqa: PLR2004 - a tie
    expected = (1 - ties[0]) * (1 - ties[1]) / 2 + ties[0] * ties[1]
    return (observed - expected) / (1 - expected) if expected < 1 else None


def verdicts(probabilities: Numbers, *, tie_width: float = 1e-9) -> Numbers:
    """Votes of probabilities: 1 above ½, 0 below, ½ at it.

    Args:
        probabilities: P(first ≻ second). [pairs].
        tie_width: Distance from ½ that is a tie.

    Returns:
        The votes. [pairs].
    """
    apart = probabilities - 0.5
    return np.where(np.abs(apart) <= tie_width, 0.5, (apart > 0).astype(float))
