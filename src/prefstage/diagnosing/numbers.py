"""Numbers that a diagnosis is made of: distributions, histograms, κ, bootstrap intervals."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from prefstage.core import InputError, seed_for
from prefstage.data.storage import Numbers, pieces

HALF = 0.5
_DRAWS_AT_ONCE = 1 << 22


Distribution = dict[str, float | int | None]


def describe_sorted(values: Numbers) -> Distribution:
    """Mean, standard deviation, least, quartiles and greatest, as papers tabulate them.

    Memory does not grow with memory-mapped numbers.

    Args:
        values: Numbers, least first; NaN, where a row has none, last. [rows].

    Returns:
        Of the numbers that are there, exactly: `mean`; `std`, of a sample (divided by n - 1), None
        of a single number; `min`; `q25`, the first quartile, interpolated; `median`; `q75`; `max`;
        and `count`, how many there are. `missing`: how many rows have none. Without numbers all
        but the counts are None.

    Source:
        arXiv:2508.18312, Table 5.
    """
    # NaN sort last, and searchsorted finds the first of them without reading the others.
    there = values[: int(np.searchsorted(values, np.nan)) if len(values) else 0]
    count, missing = len(there), len(values) - len(there)
    if not count:
        return {
            **dict.fromkeys(("mean", "std", "min", "q25", "median", "q75", "max")),
            "count": 0,
            "missing": missing,
        }
    mean = float(there.mean())
    # In pieces: there - mean would be a second array of the file's size in memory.
    squares = sum(float(((piece - mean) ** 2).sum()) for piece in pieces(there))
    # As numpy's default, but np.quantile would copy a memory-mapped file in order to partition it.
    at = np.array([0.0, 0.25, 0.5, 0.75, 1.0]) * (count - 1)
    below = at.astype(np.int64)
    low, high = there[below], there[np.minimum(below + 1, count - 1)]
    marks = (low + (high - low) * (at - below)).tolist()
    return {
        "mean": mean,
        "std": float(np.sqrt(squares / (count - 1))) if count > 1 else None,
        **dict(zip(("min", "q25", "median", "q75", "max"), marks, strict=True)),
        "count": count,
        "missing": missing,
    }


def histogram(values: Numbers, *, bins: int = 20) -> dict[str, list[Any]]:
    """Count numbers in bins of equal width: a figure's data.

    Args:
        values: Finite numbers, perhaps memory-mapped; NaN are left out. [rows].
        bins: How many.

    Returns:
        `edges`, the borders of the bins, [bins + 1]; and `counts`, how many numbers fall into
        each, the last with its upper edge, [bins]. Numbers that differ by rounding alone stand in
        bins as wide as for equal ones, from half below to half above.
    """
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    edges = np.linspace(low, high, bins + 1)
    if np.any(np.diff(edges) <= 0):
        edges = np.linspace(low - 0.5, high + 0.5, bins + 1)
    counts = np.zeros(bins, dtype=np.int64)
    for piece in pieces(values):
        counts += np.histogram(piece[~np.isnan(piece)], bins=edges)[0]
    return {"edges": edges.tolist(), "counts": counts.tolist()}


def distinct_share(texts: Sequence[str], size: int) -> float:
    """Share of different n-grams among all n-grams of words in several texts (distinct-n).

    Args:
        texts: The texts, taken together.
        size: n.

    Returns:
        In [0, 1]; 0 without n-grams.

    Source:
        Li et al. 2016, arXiv:1510.03055.
    """
    words = [text.lower().split() for text in texts]
    grams = [tuple(w[i : i + size]) for w in words for i in range(len(w) - size + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


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
    ties = [float((rater == HALF).mean()) for rater in (first, second)]
    expected = (1 - ties[0]) * (1 - ties[1]) / 2 + ties[0] * ties[1]
    return (float((first == second).mean()) - expected) / (1 - expected) if expected < 1 else None


def verdicts(probabilities: Numbers, *, tie_width: float = 1e-9) -> Numbers:
    """Votes of probabilities: 1 above ½, 0 below, ½ at it.

    Args:
        probabilities: P(first ≻ second). [pairs].
        tie_width: Distance from ½ that is a tie.

    Returns:
        The votes. [pairs].
    """
    apart = probabilities - HALF
    return np.where(np.abs(apart) <= tie_width, HALF, (apart > 0).astype(float))


@dataclass(frozen=True)
class Interval:
    """A mean and its bootstrap interval.

    Attributes:
        mean: Over all pairs.
        low: Lower end.
        high: Upper end.
        confidence: Of the interval, in (0, 1).
        prompts: Number of prompts, the independent units.
    """

    mean: float
    low: float
    high: float
    confidence: float
    prompts: int


def bootstrap_interval(
    values: ArrayLike,
    prompt_ids: Sequence[Hashable],
    *,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap of a mean over pairs, resampling prompts.

    Prompts are drawn with replacement, each with all its pairs; the mean is taken over the
    pairs drawn. Pairs of one prompt share its difficulty, so resampling pairs would give
    intervals that are too narrow.

    Args:
        values: One value a pair, such as `ranking_accuracy`. [pairs].
        prompt_ids: The prompt of each pair. [pairs].
        confidence: In (0, 1).
        resamples: How many, >= 1.
        seed: Of the draws.

    Returns:
        The mean and its interval; of a single prompt both ends are the mean.

    Raises:
        InputError: If there is no pair, the lengths differ, a value is not finite, or a
            setting is out of range.

    Source:
        Efron and Tibshirani 1993, An Introduction to the Bootstrap, §13.3, by clusters.
    """
    numbers = np.asarray(values, dtype=np.float64)
    InputError.unless(
        len(prompt_ids) == len(numbers) and resamples >= 1 and 0 < confidence < 1,
        saw=f"{len(numbers)} values, {len(prompt_ids)} prompt ids, {resamples} resamples, "
        f"confidence {confidence}",
        expected="a prompt id a value, at least one resample, confidence in (0, 1)",
        cure="give the prompt_id of every pair",
    )
    InputError.unless(
        len(numbers) and np.isfinite(numbers).all(),
        saw="values " + ("that are no finite numbers" if len(numbers) else "without a pair"),
        expected="a finite value of at least one pair",
        cure="score pairs first, and leave out those that a model cannot score",
    )
    positions = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompt_ids))}
    prompt_of = [positions[prompt] for prompt in prompt_ids]
    totals, counts = np.bincount(prompt_of, weights=numbers), np.bincount(prompt_of)
    rng = np.random.default_rng(seed_for(seed, "bootstrap"))
    # A prompt's total and count stand for its pairs, so that a resample draws prompts, not pairs;
    # some resamples at a time, as [resamples, prompts] indices of a large set fill the memory.
    at_once = max(1, _DRAWS_AT_ONCE // len(totals))
    means = []
    for begin in range(0, resamples, at_once):
        drawn = rng.integers(len(totals), size=(min(at_once, resamples - begin), len(totals)))
        means.append(totals[drawn].sum(1) / counts[drawn].sum(1))
    low, high = np.quantile(np.concatenate(means), [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(
        float(totals.sum() / counts.sum()), float(low), float(high), confidence, len(totals)
    )
