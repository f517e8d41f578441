"""Several checkpoints over the same prompts: which differ, safely for many comparisons."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefstage.core.errors import InputError
from prefstage.core.seeds import seed_for
from prefstage.evaluating.win_rates import WinRate

_AT_ONCE = 500


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
    pairs at once, gives p-values that hold for all pairs together; the same quantity under a
    bootstrap of prompts gives simultaneous intervals.

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
    prompts = sorted({v.prompt_id for each in results.values() for v in each.verdicts})
    place = {prompt_id: k for k, prompt_id in enumerate(prompts)}
    y = np.full((len(results), len(prompts)), np.nan)
    for row, each in enumerate(results.values()):
        for verdict in each.verdicts:
            y[row, place[verdict.prompt_id]] = verdict.preference
    names = list(results)
    pairs = list(combinations(range(len(names)), 2))
    d = np.stack([y[i] - y[j] for i, j in pairs])
    _check_overlap(d, [(names[i], names[j]) for i, j in pairs])
    mean, error = _mean_and_error(d, np.ones((1, len(prompts))))
    t = np.divide(mean, error, out=np.zeros_like(mean), where=error > 0)[0]
    flips, boots = _largest(d, mean[0], resamples, seed)
    quantile = float(np.quantile(boots, confidence))
    lines = []
    for k, (i, j) in enumerate(pairs):
        p = float((1 + (flips >= abs(t[k]) - 1e-12).sum()) / (len(flips) + 1))
        half = quantile * error[0, k]
        ahead = names[i] if mean[0, k] > 0 else names[j]
        lines.append(
            Difference(
                first=names[i],
                second=names[j],
                difference=100 * float(mean[0, k]),
                standard_error=100 * float(error[0, k]),
                interval=(100 * float(mean[0, k] - half), 100 * float(mean[0, k] + half)),
                p_value=p,
                better=ahead if p <= 1 - confidence and mean[0, k] != 0 else None,
                prompts=int((~np.isnan(d[k])).sum()),
            )
        )
    return lines


def _largest(
    d: NDArray[np.float64], mean: NDArray[np.float64], resamples: int, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The largest |t| over all pairs of each sign flip, and of each bootstrap draw."""
    rng = np.random.default_rng(seed_for(seed, "compare"))
    n = d.shape[1]
    flips, boots = [], []
    for begin in range(0, resamples, _AT_ONCE):
        count = min(_AT_ONCE, resamples - begin)
        signs = rng.choice([-1.0, 1.0], size=(count, n))
        flips.append(_largest_t(*_mean_and_error(d, signs), 0.0))
        times = rng.multinomial(n, np.full(n, 1 / n), size=count).astype(np.float64)
        boots.append(_largest_t(*_mean_and_error(d, times), mean))
    return np.concatenate(flips), np.concatenate(boots)


def _mean_and_error(
    d: NDArray[np.float64], factors: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and its standard error of each pair, rows flipped (±1) or repeated (0, 1, 2, …).

    Both [draws, pairs]. A flipped row keeps its square; a repeated one counts so often.
    """
    there = ~np.isnan(d)
    x = np.where(there, d, 0.0)
    often = np.abs(factors)
    n = np.maximum(often @ there.T, 2.0)
    mean = factors @ x.T / n
    square = often @ (x**2).T / n
    return mean, np.sqrt(np.maximum(square - mean**2, 0.0) / (n - 1))


def _largest_t(
    mean: NDArray[np.float64], error: NDArray[np.float64], centre: Any
) -> NDArray[np.float64]:
    off = np.abs(mean - centre)
    t = np.divide(off, error, out=np.zeros_like(off), where=error > 0)
    largest: NDArray[np.float64] = t.max(axis=1)
    return largest


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
