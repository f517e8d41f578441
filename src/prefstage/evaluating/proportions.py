"""Exact-style intervals for proportions and for means of graded outcomes in [0, 1]."""

import math

import numpy as np
from numpy.typing import NDArray

_ITERATIONS = 300
_SEARCH_STEPS = 200
_CLOSE = 1e-12
_TINY = 1e-300


def effective_interval(values: NDArray[np.float64], *, confidence: float) -> tuple[float, float]:
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
    n, mean = len(values), float(values.mean())
    # the ratio with one more row at 0 and one at 1: few rows do not show how far they spread
    padded = np.concatenate([values, [0.0, 1.0]])
    size = n * float(padded.mean() * (1 - padded.mean()) / padded.var())
    wins, tail = size * mean, (1 - confidence) / 2
    low = 0.0 if wins <= 0 else beta_quantile(tail, wins, size - wins + 1)
    high = 1.0 if wins >= size else beta_quantile(1 - tail, wins + 1, size - wins)
    return low, high


def beta_quantile(share: float, a: float, b: float) -> float:
    """Where the beta distribution has `share` of its mass below.

    Args:
        share: In (0, 1).
        a: First parameter, > 0.
        b: Second parameter, > 0.

    Returns:
        The quantile, by Newton's method within a shrinking bracket.
    """
    low, high, x = 0.0, 1.0, a / (a + b)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    for _ in range(_SEARCH_STEPS):
        error = beta_cdf(x, a, b) - share
        low, high = (x, high) if error < 0 else (low, x)
        log_density = log_front + (a - 1) * math.log(x) + (b - 1) * math.log1p(-x)
        target = x - error / max(math.exp(log_density), _TINY)
        if not low < target < high:
            target = 0.5 * (low + high)
        step, x = target - x, target
        if abs(step) <= _CLOSE * x or not 0 < x < 1:
            break
    return x


def beta_cdf(x: float, a: float, b: float) -> float:
    """Regularised incomplete beta function I_x(a, b).

    Args:
        x: In [0, 1].
        a: First parameter, > 0.
        b: Second parameter, > 0.

    Returns:
        The mass below x.

    Source:
        Continued fraction DLMF 8.17.22, evaluated by Lentz's method.
    """
    if x <= 0 or x >= 1:
        return 0.0 if x <= 0 else 1.0
    if x > (a + 1) / (a + b + 2):
        return 1.0 - beta_cdf(1.0 - x, b, a)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    log_front += a * math.log(x) + b * math.log1p(-x)
    return math.exp(log_front) * _fraction(x, a, b) / a


def _fraction(x: float, a: float, b: float) -> float:
    c, d = 1.0, 1.0 / _away_from_zero(1.0 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, _ITERATIONS):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        before = value
        for term in (even, odd):
            d = 1.0 / _away_from_zero(1.0 + term * d)
            c = _away_from_zero(1.0 + term / c)
            value *= c * d
        if abs(value - before) <= 1e-15 * abs(value):
            break
    return value


def _away_from_zero(number: float) -> float:
    return number if abs(number) > _TINY else _TINY
