"""Numbers that a diagnosis is made of: distributions, histograms, chance-corrected agreement."""

from dataclasses import dataclass
from typing import Any

import numpy as np

Numbers = np.ndarray[Any, Any]


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
    there = values[~np.isnan(values)]
    missing = len(values) - len(there)
    if not len(there):
        return Distribution(None, None, None, None, None, None, None, 0, missing)
    low, q25, median, q75, high = map(float, np.quantile(there, [0, 0.25, 0.5, 0.75, 1]))
    std = float(there.std(ddof=1)) if len(there) > 1 else None
    mean = float(there.mean())
    return Distribution(mean, std, low, q25, median, q75, high, len(there), missing)


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
        values: Finite numbers; NaN are left out.
        bins: How many.

    Returns:
        The counts.
    """
    counts, edges = np.histogram(values[~np.isnan(values)], bins=bins)
    return Histogram(edges.tolist(), counts.tolist())


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
