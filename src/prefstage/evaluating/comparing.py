"""Several checkpoints over the same prompts: which differ, safely for many comparisons."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefstage.core.errors import InputError
from prefstage.core.hashing import seed_for
from prefstage.evaluating.proportions import effective_interval
from prefstage.evaluating.win_rates import WinRate, confidence_at_stop

Floats = NDArray[np.float64]

_AT_ONCE = 500
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Difference:
    """One pair of models on the prompts that both were judged on; in percentage points.

    Attributes:
        first: A model.
        second: Another.
        difference: Win rate of the first less that of the second, on common prompts.
        standard_error: Of the paired difference.
        interval: Simultaneous: all intervals of the table hold at once.
        p_value: Adjusted for all pairs of the table (family-wise).
        better: The better one's name where the adjusted p-value decides it, else None.
        prompts: Common prompts with both verdicts.
    """

    first: str
    second: str
    difference: float
    standard_error: float
    interval: tuple[float, float]
    p_value: float
    better: str | None
    prompts: int

    def as_dict(self) -> dict[str, Any]:
        """The difference as JSON-serialisable values."""
        return asdict(self)


def compare_win_rates(
    results: Mapping[str, WinRate],
    *,
    confidence: float = 0.95,
    resamples: int = 5000,
    seed: int = 0,
) -> list[Difference]:
    """Compare models that were judged against the same baseline, prompt by prompt.

    The largest studentised difference under random sign flips, one flip a prompt for all
    pairs at once, gives p-values that hold for all pairs together; `paired_differences` gives
    the simultaneous intervals.

    Args:
        results: name → win rate; at least two, of the same baseline and judge.
        confidence: Of the whole table, in (0, 1).
        resamples: Sign flips and bootstrap draws, each.
        seed: Of both.

    Returns:
        A line for each pair, in the order of `results`.

    Raises:
        InputError: If there are fewer than two models, baselines or judges differ, or two
            models share fewer than two prompts.

    Source:
        Westfall and Young 1993, Resampling-Based Multiple Testing, Alg. 2.5 (single step).
    """
    _check_comparable(results, confidence)
    y = _preferences(results)
    pairs = list(combinations(range(len(results)), 2))
    names = list(combinations(results, 2))
    d = np.stack([y[i] - y[j] for i, j in pairs])
    _check_overlap(d, names)
    at_stop = confidence_at_stop(
        confidence,
        max(each.looks for each in results.values()),
        early=any(each.stopped == "decided" for each in results.values()),
    )
    intervals = paired_differences(y, confidence=at_stop, resamples=resamples, seed=seed)
    p_values = _adjusted_p_values(d, resamples, seed, (1 - confidence) / (1 - at_stop))
    return [
        _difference(names[k], d[k], intervals[pair], p_values[k], level=1 - confidence)
        for k, pair in enumerate(pairs)
    ]


def _preferences(results: Mapping[str, WinRate]) -> Floats:
    """Each model's preference on each prompt; NaN where there is none. [models, prompts]."""
    prompts = sorted({v.prompt_id for each in results.values() for v in each.verdicts})
    place = {prompt_id: k for k, prompt_id in enumerate(prompts)}
    y = np.full((len(results), len(prompts)), np.nan)
    for row, each in enumerate(results.values()):
        for verdict in each.verdicts:
            y[row, place[verdict.prompt_id]] = verdict.preference
    return y


def _difference(
    names: tuple[str, str],
    values: Floats,
    interval: tuple[float, float],
    p_value: float,
    *,
    level: float,
) -> Difference:
    """The table's line of two models.

    Args:
        names: Of both.
        values: Preference of the first less that of the second, NaN where one lacks. [prompts].
        interval: Of the mean of `values`.
        p_value: Adjusted.
        level: At most so large a p-value decides which is better.
    """
    told = values[~np.isnan(values)]
    mean = float(told.mean())
    first, second = names
    return Difference(
        first=first,
        second=second,
        difference=100 * mean,
        standard_error=100 * float(told.std(ddof=1) / np.sqrt(len(told))),
        interval=(100 * interval[0], 100 * interval[1]),
        p_value=p_value,
        better=(first if mean > 0 else second) if p_value <= level and mean else None,
        prompts=len(told),
    )


def paired_differences(
    y: Floats, *, confidence: float = 0.95, resamples: int = 5000, seed: int = 0
) -> dict[tuple[int, int], tuple[float, float]]:
    """Intervals of all pairs' mean differences that hold at once.

    Each is the union of two: the bootstrap of prompts, studentised by the largest |t| of all
    pairs, and Bonferroni's share of `effective_interval`, which does not rely on what few
    prompts happen to show of rare differences.

    Args:
        y: Preferences in [0, 1]; NaN where there is none. [models, prompts].
        confidence: Of all intervals together, in (0, 1).
        resamples: How many, >= 1.
        seed: Of the draws.

    Returns:
        (i, j) → (low, high) of the mean of y_i - y_j, within [-1, 1].

    Source:
        Efron and Tibshirani 1993, An Introduction to the Bootstrap, §12.5.
    """
    pairs = list(combinations(range(len(y)), 2))
    d = np.stack([y[i] - y[j] for i, j in pairs])
    n = d.shape[1]
    mean, error = (each[0] for each in _mean_and_error(d, np.ones((1, n))))
    rng = np.random.default_rng(seed_for(seed, "compare"))
    largest = []
    for begin in range(0, resamples, _AT_ONCE):
        count = min(_AT_ONCE, resamples - begin)
        times = rng.multinomial(n, np.full(n, 1 / n), size=count).astype(np.float64)
        drawn, errors = _mean_and_error(d, times)
        largest.append((np.abs(drawn - mean) / errors).max(axis=1))
    half = float(np.quantile(np.concatenate(largest), confidence)) * error
    share = 1 - (1 - confidence) / len(pairs)
    found = {}
    for k, pair in enumerate(pairs):
        told = 0.5 + 0.5 * d[k][~np.isnan(d[k])]
        low, high = (2 * end - 1 for end in effective_interval(told, confidence=share))
        found[pair] = (
            max(-1.0, min(low, float(mean[k] - half[k]))),
            min(1.0, max(high, float(mean[k] + half[k]))),
        )
    return found


def _adjusted_p_values(d: Floats, resamples: int, seed: int, looks: float) -> list[float]:
    """Of each pair, from the largest |t| of all pairs under random sign flips of prompts.

    Times the looks at which judging might have stopped (Bonferroni).
    """
    rng = np.random.default_rng(seed_for(seed, "flips"))
    mean, error = _mean_and_error(d, np.ones((1, d.shape[1])))
    t = np.abs(mean / error)[0]
    flips = []
    for begin in range(0, resamples, _AT_ONCE):
        count = min(_AT_ONCE, resamples - begin)
        means, errors = _mean_and_error(d, rng.choice([-1.0, 1.0], size=(count, d.shape[1])))
        flips.append(np.abs(means / errors).max(axis=1))
    largest = np.concatenate(flips)
    shares = [(1 + (largest >= each - _ROUNDING).sum()) / (len(largest) + 1) for each in t]
    return [min(1.0, looks * float(share)) for share in shares]


def _mean_and_error(d: Floats, factors: Floats) -> tuple[Floats, Floats]:
    """Mean and its standard error of each pair, rows flipped (±1) or repeated (0, 1, 2, …).

    Both [draws, pairs]. A flipped row keeps its square; a repeated one counts so often. The
    error is that with one more row at 1 and one at -1, so that it is never zero.
    """
    there = ~np.isnan(d)
    x = np.where(there, d, 0.0)
    often = np.abs(factors)
    n = np.maximum(often @ there.T, 1.0)
    total = factors @ x.T
    square = (often @ (x**2).T + 2) / (n + 2)
    return total / n, np.sqrt((square - (total / (n + 2)) ** 2) / (n + 1))


def _check_comparable(results: Mapping[str, WinRate], confidence: float) -> None:
    if len(results) < 2 or not 0 < confidence < 1:  # noqa: PLR2004 - a pair
        raise InputError.of(
            saw=f"{len(results)} models at confidence {confidence}",
            expected="at least two models, confidence in (0, 1)",
            cure="give the win rates of several checkpoints",
        )
    against = {(each.baseline, each.judge) for each in results.values()}
    if len(against) > 1:
        raise InputError.of(
            saw=f"win rates against {', '.join(sorted(' by '.join(one) for one in against))}",
            expected="one baseline and one judge",
            cure="judge all models against the same baseline by the same judge",
        )


def _check_overlap(d: NDArray[np.float64], names: list[tuple[str, str]]) -> None:
    common = (~np.isnan(d)).sum(axis=1)
    if common.min() < 2:  # noqa: PLR2004 - an error needs two
        first, second = names[int(common.argmin())]
        raise InputError.of(
            saw=f"{common.min()} prompts judged for both {first} and {second}",
            expected="at least two",
            cure="judge the models on the same prompts",
        )
