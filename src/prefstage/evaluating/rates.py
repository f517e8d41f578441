"""Win rates of preferences: the rate, its error, and intervals that hold."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import betaincinv

from prefstage.core import InputError, seed_for
from prefstage.evaluating.regression import Floats

HALF = 0.5
_DRAWS_AT_ONCE = 1 << 21


class Figures:
    """A dataclass whose fields are figures and names."""

    def as_dict(self: Any) -> dict[str, Any]:
        """The figures as JSON-serialisable values."""
        return asdict(self)


@dataclass(frozen=True)
class Rates(Figures):
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
    InputError.unless(
        len(usable) >= 2 and usable.min() >= 0 and usable.max() <= 1,  # noqa: PLR2004 - for an error
        saw=f"{len(usable)} preferences"
        + (f" from {usable.min():g} to {usable.max():g}" if len(usable) else ""),
        expected="at least two, each in [0, 1]",
        cure="judge more prompts; AlpacaEval's files store 1 + preference",
    )
    outcomes = (usable > HALF) + HALF * (usable == HALF)
    low, high, discrete_low, discrete_high = (
        100 * end
        for column in (usable, outcomes)
        for end in mean_interval(column, confidence=confidence, resamples=resamples, seed=seed)
    )
    return Rates(
        win_rate=100 * float(usable.mean()),
        standard_error=100 * standard_error(usable),
        interval=(low, high),
        discrete_win_rate=100 * float(outcomes.mean()),
        discrete_interval=(discrete_low, discrete_high),
        confidence=confidence,
        wins=int((usable > HALF).sum()),
        losses=int((usable < HALF).sum()),
        draws=int((usable == HALF).sum()),
        n_total=len(usable),
        n_missing=len(values) - len(usable),
    )


def standard_error(values: Floats) -> float:
    """Standard error of the mean (ddof 1)."""
    return float(values.std(ddof=1) / np.sqrt(len(values)))


def check_bootstrap(confidence: float, resamples: int) -> None:
    """Refuse settings that no bootstrap interval can have.

    Args:
        confidence: In (0, 1).
        resamples: At least 1.

    Raises:
        InputError: If one is out of range.
    """
    InputError.unless(
        0 < confidence < 1 and resamples >= 1,
        saw=f"confidence {confidence}, {resamples} resamples",
        expected="confidence in (0, 1), at least one resample",
        cure="write confidence=0.95, resamples=1000",
    )


def batches(draws: int, at_once: int) -> list[int]:
    """How many of a bootstrap's draws to make next: memory must not grow with all of them.

    Args:
        draws: In all.
        at_once: At most.

    Returns:
        Numbers that sum to `draws`.
    """
    return [min(at_once, draws - begin) for begin in range(0, draws, at_once)]


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
    t = list[Floats]()
    for size in batches(resamples, max(1, _DRAWS_AT_ONCE // n)):  # 16 MB, whatever n
        drawn = values[rng.integers(n, size=(size, n))]
        means = drawn.mean(axis=1)
        t.append((means - mean) / _error(means, (drawn**2).mean(axis=1), n))
    # The upper quantile of t gives the lower end: a mean that was drawn too high has its truth
    # below it.
    ends = np.quantile(np.concatenate(t), [(1 + confidence) / 2, (1 - confidence) / 2])
    low, high = effective_interval(values, confidence=confidence)
    return max(0.0, min(low, mean - ends[0] * error)), min(1.0, max(high, mean - ends[1] * error))


def _error(mean: Any, mean_square: Any, n: int) -> Any:
    # With one more row at 0 and one at 1 the error is never zero: equal verdicts on few prompts
    # do not prove that all verdicts are equal, and t would be infinite.
    m, s = (n * mean + 1) / (n + 2), (n * mean_square + 1) / (n + 2)
    return np.sqrt((s - m**2) / (n + 1))


def effective_interval(values: Floats, *, confidence: float) -> tuple[float, float]:
    """Clopper-Pearson's interval with an effective number of rows.

    With wins and losses alone it is the exact binomial interval. Graded outcomes spread less
    than wins and losses of the same mean p: they count as p(1-p)/s² rows each.

    Args:
        values: In [0, 1]. [rows], at least two.
        confidence: In (0, 1).

    Returns:
        (low, high) within [0, 1].

    Source:
        Clopper and Pearson 1934, Biometrika 26; effective size: Korn and Graubard 1998,
        Survey Methodology 24(2).
    """
    # The ratio too is taken with one more row at 0 and one at 1: few rows do not show how far
    # they spread.
    padded, mean = np.concatenate([values, [0.0, 1.0]]), float(values.mean())
    size = len(values) * float(padded.mean() * (1 - padded.mean()) / padded.var())
    wins, tail = size * mean, (1 - confidence) / 2
    # scipy's function of the beta distribution itself: scipy.stats, which wraps it, takes a
    # second to import. It does not know the parameter 0, where the end is 0 or 1.
    return (
        0.0 if wins <= 0 else float(betaincinv(wins, size - wins + 1, tail)),
        1.0 if wins >= size else float(betaincinv(wins + 1, size - wins, 1 - tail)),
    )
