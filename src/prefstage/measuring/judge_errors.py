"""Where a judge errs, and so how far from ½ it sees a true boundary score."""

import math
from functools import lru_cache
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from prefstage.measuring.boundary import HALF

Floats = NDArray[np.float64]

JudgeErrors = Literal["unknown", "any-pair", "close-pairs"]
"""Where a judge errs: in any pair alike, or in close pairs since it misreads their quality."""

STEPS = 200
"""Equal parts of what a judge can see, from ½ to its accuracy."""

_HALVINGS = 40
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(256)
_NORMAL = NormalDist()


@lru_cache(maxsize=256)
def shares_behind(accuracy: float, errors: JudgeErrors) -> Floats:
    """How many of all true scores lie behind each part of the scores that a judge can see.

    A judge that is right in a share a of the comparisons sees scores from 1 - a to a. Errors in
    ``any-pair`` alike press the true score T linearly, ``½ + (2a - 1)(T - ½)``: equal parts
    hide equal shares of the T. A judge that errs in ``close-pairs`` reads each response's
    quality with an error: the difference g of two qualities is normal, the difference read is
    g plus noise, and both correlate by cos φ. If it sees ``θ = Φ(k)``, the truth is
    ``T = Φ(k / cos φ)``, and it is wrong in a share ``(1/π) ∫_0^φ exp(-k² / (2 cos² u)) du`` of
    the comparisons (2 times Owen's T function), which must be 1 - a. Close scores are pressed
    less than far ones, so that fewer truths lie behind a seen score near ½. ``unknown`` is one
    half each.

    Args:
        accuracy: a, in (½, 1].
        errors: Where it errs.

    Returns:
        The shares of the true scores on one side of ½, from ½ outwards; 1 in all. [STEPS].

    Source:
        Ours; the integral as in Owen 1956, "Tables for computing bivariate normal
        probabilities", Ann. Math. Stat. 27(4). docs/theory.md, "The decision guide".
    """
    alike = np.full(STEPS, 1.0 / STEPS)
    if errors == "any-pair" or accuracy == 1.0:
        return alike
    close = np.diff(2.0 * _truths(accuracy) - 1.0)
    return close if errors == "close-pairs" else HALF * (alike + close)


def _truths(accuracy: float) -> Floats:
    """T at the edges of the parts, of a judge that errs in close pairs. [STEPS + 1]."""
    edges = HALF + (accuracy - HALF) * np.arange(STEPS) / STEPS
    seen = np.array([_NORMAL.inv_cdf(each) for each in edges])
    low, high = np.zeros(STEPS), np.full(STEPS, math.pi / 2)
    for _ in range(_HALVINGS):
        middle = HALF * (low + high)
        reached = _wrong(seen, middle) >= 1.0 - accuracy
        low, high = np.where(reached, low, middle), np.where(reached, middle, high)
    return np.array([*(_NORMAL.cdf(each) for each in seen / np.cos(high)), 1.0])


def _wrong(seen: Floats, angle: Floats) -> Floats:
    """Share of the comparisons in which the difference read has the wrong sign."""
    inside = HALF * angle[:, None] * (_NODES + 1.0)
    heights = np.exp(-HALF * (seen[:, None] / np.cos(inside)) ** 2)
    share: Floats = HALF * angle * (heights @ _WEIGHTS) / math.pi
    return share
