"""Win rates of preferences: the rate, its error, and intervals that hold."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from prefstage.core.errors import InputError
from prefstage.core.hashing import seed_for
from prefstage.evaluating.proportions import effective_interval

Floats = NDArray[np.float64]

_HALF = 0.5
_DRAWS_AT_ONCE = 1 << 21


@dataclass(frozen=True)
class Rates:
    """How often a model wins; all rates and errors in percent.

    Attributes:
        win_rate: 100 · mean preference.
        standard_error: Of it (ddof 1).
        interval: Of the win rate (see `mean_interval`).
        discrete_win_rate: 100 · (wins + ½·draws) / n_total.
        discrete_interval: Likewise of the discrete win rate.
        confidence: Of both intervals.
        wins: Preferences above ½.
        losses: Below ½.
        draws: Exactly ½.
        n_total: Rows with a preference.
        n_missing: Rows without one (NaN).
    """

    win_rate: float
    standard_error: float
    interval: tuple[float, float]
    discrete_win_rate: float
    discrete_interval: tuple[float, float]
    confidence: float
    wins: int
    losses: int
    draws: int
    n_total: int
    n_missing: int

    def as_dict(self) -> dict[str, Any]:
        """The rates as JSON-serialisable values."""
        return asdict(self)


def rates_of(
    preference: ArrayLike, *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Rates:
    """Summarise preferences.

    Args:
        preference: For the model, in [0, 1]; NaN where there is none. [rows].
        confidence: Of the intervals, in (0, 1).
        resamples: Bootstrap resamples, >= 1.
        seed: Of the resamples.

    Returns:
        The rates.

    Raises:
        InputError: If fewer than two rows have a preference, or a value is out of range.
    """
    values = np.asarray(preference, dtype=np.float64)
    usable = values[~np.isnan(values)]
    if len(usable) < 2 or usable.min() < 0 or usable.max() > 1:  # noqa: PLR2004 - for an error
        raise InputError.of(
            saw=f"{len(usable)} preferences"
            + (f" from {usable.min():g} to {usable.max():g}" if len(usable) else ""),
            expected="at least two, each in [0, 1]",
            cure="judge more prompts; AlpacaEval's files store 1 + preference",
        )
    outcomes = (usable > _HALF) + _HALF * (usable == _HALF)
    ends = [
        mean_interval(each, confidence=confidence, resamples=resamples, seed=seed)
        for each in (usable, outcomes)
    ]
    return Rates(
        win_rate=100 * float(usable.mean()),
        standard_error=100 * float(usable.std(ddof=1) / np.sqrt(len(usable))),
        interval=(100 * ends[0][0], 100 * ends[0][1]),
        discrete_win_rate=100 * float(outcomes.mean()),
        discrete_interval=(100 * ends[1][0], 100 * ends[1][1]),
        confidence=confidence,
        wins=int((usable > _HALF).sum()),
        losses=int((usable < _HALF).sum()),
        draws=int((usable == _HALF).sum()),
        n_total=len(usable),
        n_missing=len(values) - len(usable),
    )


def check_bootstrap(confidence: float, resamples: int) -> None:
    """Refuse settings that no bootstrap interval can have.

    Args:
        confidence: In (0, 1).
        resamples: At least 1.

    Raises:
        InputError: If one is out of range.
    """
    if not 0 < confidence < 1 or resamples < 1:
        raise InputError.of(
            saw=f"confidence {confidence}, {resamples} resamples",
            expected="confidence in (0, 1), at least one resample",
            cure="write confidence=0.95, resamples=1000",
        )


def mean_interval(
    values: Floats, *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Interval of a mean in [0, 1] that holds for skewed and few values too.

    The union of two: the studentised bootstrap, and `effective_interval`, which does not
    rely on what the rows at hand happen to show of rare wins.

    Args:
        values: In [0, 1]. [rows], at least two.
        confidence: In (0, 1).
        resamples: How many, >= 1.
        seed: Of the draws.

    Returns:
        (low, high) within [0, 1].

    Raises:
        InputError: If a setting is out of range.

    Source:
        Efron and Tibshirani 1993, An Introduction to the Bootstrap, §12.5.
    """
    check_bootstrap(confidence, resamples)
    n = len(values)
    rng = np.random.default_rng(seed_for(seed, "win rate"))
    mean, error = float(values.mean()), _error(values.mean(), (values**2).mean(), n)
    found = []
    at_once = max(1, _DRAWS_AT_ONCE // n)
    for begin in range(0, resamples, at_once):
        drawn = values[rng.integers(n, size=(min(at_once, resamples - begin), n))]
        means = drawn.mean(axis=1)
        found.append((means - mean) / _error(means, (drawn**2).mean(axis=1), n))
    t = np.quantile(np.concatenate(found), [(1 + confidence) / 2, (1 - confidence) / 2])
    low, high = effective_interval(values, confidence=confidence)
    return max(0.0, min(low, mean - t[0] * error)), min(1.0, max(high, mean - t[1] * error))


def _error(mean: Any, mean_square: Any, n: int) -> Any:
    """Standard error of a mean with one more row at 0 and one at 1: never zero."""
    m, s = (n * mean + 1) / (n + 2), (n * mean_square + 1) / (n + 2)
    return np.sqrt((s - m**2) / (n + 1))
