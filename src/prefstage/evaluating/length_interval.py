"""An interval for the length-controlled win rate that knows of the fit's uncertainty."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from prefstage.core.hashing import seed_for
from prefstage.evaluating.l1_logistic import fit_l1_logistic
from prefstage.evaluating.length_controlled import Lookup
from prefstage.evaluating.length_fit import (
    LengthProblem,
    choose_c,
    is_baseline,
    problem_of,
    sigmoid,
)
from prefstage.evaluating.length_profile import profile_interval
from prefstage.evaluating.length_rows import Rows, read_rows
from prefstage.evaluating.length_tables import length_tables
from prefstage.evaluating.rates import check_bootstrap

Floats = NDArray[np.float64]

_AT_ONCE = 50
_NO_PENALTY = 1e6  # as C
_ROUNDING = 1e-9


def length_controlled_interval(
    preference: ArrayLike,
    len_model: ArrayLike,
    len_baseline: ArrayLike,
    *,
    instruction: ArrayLike | None = None,
    row: ArrayLike | None = None,
    lookup: Lookup = "instruction",
    C: float | None = None,  # noqa: N803 - the name that everyone knows it by
    difficulty: ArrayLike | None = None,
    regularise: bool = True,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Interval of the length-controlled win rate that also holds for few prompts and wins.

    The union of two: the bootstrap with the regression fitted anew, and `profile_interval`,
    which does not rely on what the rows at hand happen to show. The bootstrap draws the
    model's rows with replacement, keeps the gamed rows, which are constants of the method, and
    is studentised on the logit scale by the fit's sandwich error. Both are about the fit without
    the l1 penalty, which pulls towards 50 %; stretched to hold the rate with the penalty too.

    Args:
        preference: As for `length_controlled_win_rate`, and so the next seven.
        len_model: Likewise.
        len_baseline: Likewise.
        instruction: Likewise.
        row: Likewise.
        lookup: Likewise.
        C: Likewise; None chooses it once, on all rows.
        difficulty: Likewise; taken as known (see `widened` where it is estimated).
        regularise: Likewise.
        confidence: In (0, 1).
        resamples: How many, >= 1.
        seed: Of the draws.

    Returns:
        (low, high) in percent.

    Raises:
        InputError: As `length_controlled_win_rate`, or if a setting is out of range.

    Source:
        Efron and Tibshirani 1993, An Introduction to the Bootstrap, §12.5.
    """
    check_bootstrap(confidence, resamples)
    rows = read_rows(
        preference,
        len_model,
        len_baseline,
        instruction=instruction,
        row=row,
        lookup=lookup,
        difficulty=difficulty,
    )
    return _interval(
        rows, C, regularise=regularise, confidence=confidence, resamples=resamples, seed=seed
    )


def _interval(
    rows: Rows,
    c: float | None,
    *,
    regularise: bool,
    confidence: float,
    resamples: int,
    seed: int,
) -> tuple[float, float]:
    """The union of both intervals and of the rate with the penalty; in percent."""
    if is_baseline(rows):
        return 50.0, 50.0
    problem = problem_of(rows, length_tables(), regularise=regularise)
    chosen = float(c) if c is not None else choose_c(problem)
    told = ~np.isnan(rows.preference)
    once = np.ones((1, len(told)))
    penalised = _rates(problem, told, once, chosen)[0][0]
    drawn, errors, fitted = _rates(problem, told, once, _NO_PENALTY)
    found = _studentised(problem, told, fitted, resamples, seed)
    t = np.quantile(found, [(1 + confidence) / 2, (1 - confidence) / 2])
    own = np.arange(len(problem.labels) - int(told.sum()), len(problem.labels))
    low, high = profile_interval(problem, fitted[0], own, confidence=confidence)
    ends = [low, high, penalised, *sigmoid(logit(drawn) - t * errors)]
    return 100 * float(min(ends)), 100 * float(max(ends))


def _studentised(
    problem: LengthProblem, told: NDArray[np.bool_], fitted: Floats, resamples: int, seed: int
) -> Floats:
    """How far the rates of resampled rows are from the rate, in standard errors. [resamples]."""
    rng = np.random.default_rng(seed_for(seed, "length-controlled"))
    rate = _rates(problem, told, np.ones((1, len(told))), _NO_PENALTY, start=fitted)[0]
    found = []
    for begin in range(0, resamples, _AT_ONCE):
        count = min(_AT_ONCE, resamples - begin)
        times = rng.multinomial(len(told), np.full(len(told), 1 / len(told)), size=count)
        drawn, errors, _ = _rates(
            problem, told, times.astype(np.float64), _NO_PENALTY, start=fitted.repeat(count, axis=0)
        )
        found.append((logit(drawn) - logit(rate)) / errors)
    return np.concatenate(found)


def _rates(
    problem: LengthProblem,
    told: NDArray[np.bool_],
    times: Floats,
    c: float,
    *,
    start: Floats | None = None,
) -> tuple[Floats, Floats, Floats]:
    """Mean prediction at equal lengths, the standard error of its logit, the fitted weights.

    [draws], [draws], [draws, features].

    Args:
        problem: The regression's rows.
        told: Which of the model's rows have a preference. [rows].
        times: How often each of the model's rows is there. [draws, rows].
        c: C of the fit.
        start: Where the fits begin; it changes their time, not their result. [draws, features].
    """
    x, y, m = problem.features, problem.labels, times.T
    own = slice(len(y) - int(told.sum()), len(y))
    v = np.repeat(problem.weights[:, None], len(times), axis=1)
    v[own] *= m[told]
    w = fit_l1_logistic(x, y, v, c=c, start=start).weights
    q = sigmoid(problem.test @ w.T)
    n = m.sum(axis=0)
    rate = (q * m).sum(axis=0) / n
    p = sigmoid(x @ w.T)
    size = x.shape[1]
    products = (x[:, :, None] * x[:, None, :]).reshape(len(x), size * size)
    bread = (products.T @ (v * p * (1 - p))).T.reshape(-1, size, size)
    slope = (problem.test.T @ (q * (1 - q) * m) / n).T
    ridge = _ROUNDING * np.eye(size)
    turned = np.linalg.solve(bread + ridge, slope[..., None])[..., 0]
    influence = (q - rate) / n
    influence[told] -= (x[own] @ turned.T) * (p[own] - y[own, None])
    spread = rate * (1 - rate)
    squares = (m * influence**2).sum(axis=0) * n / (n - 1)
    return rate, np.sqrt(squares) / np.maximum(spread, _ROUNDING) + _ROUNDING, w


def logit(rate: Floats) -> Floats:
    """log(p / (1 - p)), kept finite at 0 and 1."""
    inside = np.clip(rate, _ROUNDING, 1 - _ROUNDING)
    return np.log(inside) - np.log1p(-inside)
