"""Intervals for a mean over pairs, where pairs of one prompt are not independent."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from prefstage.core.errors import InputError
from prefstage.core.seeds import seed_for
from prefstage.measuring.checks import check_some, exact

_DRAWS_AT_ONCE = 1 << 22


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
    values: Float[Tensor, " pairs"],
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
    check_some({"values": values})
    if len(prompt_ids) != len(values) or resamples < 1 or not 0 < confidence < 1:
        raise InputError.of(
            saw=f"{len(values)} values, {len(prompt_ids)} prompt ids, {resamples} resamples, "
            f"confidence {confidence}",
            expected="a prompt id a value, at least one resample, confidence in (0, 1)",
            cure="give the prompt_id of every pair",
        )
    (exactly,) = exact(values=values)
    places = {prompt: place for place, prompt in enumerate(dict.fromkeys(prompt_ids))}
    index = np.array([places[prompt] for prompt in prompt_ids])
    totals = np.bincount(index, weights=exactly.cpu().numpy())
    counts = np.bincount(index)
    means = _resampled_means(totals, counts, resamples, seed)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(
        mean=float(totals.sum() / counts.sum()),
        low=float(low),
        high=float(high),
        confidence=confidence,
        prompts=len(places),
    )


def _resampled_means(
    totals: NDArray[Any], counts: NDArray[Any], resamples: int, seed: int
) -> NDArray[np.float64]:
    """Means of prompts drawn with replacement, a few resamples at once. [resamples].

    Args:
        totals: Sum over each prompt's pairs. [prompts].
        counts: Number of each prompt's pairs. [prompts].
        resamples: How many.
        seed: Of the draws.
    """
    prompts = len(totals)
    rng = np.random.default_rng(seed_for(seed, "bootstrap"))
    at_once = max(1, _DRAWS_AT_ONCE // prompts)
    means = []
    for begin in range(0, resamples, at_once):
        drawn = rng.integers(prompts, size=(min(at_once, resamples - begin), prompts))
        means.append(totals[drawn].sum(1) / counts[drawn].sum(1))
    return np.concatenate(means)
