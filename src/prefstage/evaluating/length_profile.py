"""A profile-likelihood interval for the length-controlled win rate: it holds with few wins."""

import numpy as np
from numpy.typing import NDArray

from prefstage.evaluating.length_fit import LengthProblem, sigmoid
from prefstage.evaluating.proportions import beta_quantile

Floats = NDArray[np.float64]

_NEAR = np.linspace(0.0, 4.0, 17)  # standard errors
_FAR = 4.0 * 1.5 ** np.arange(1, 12)
_NARROWEST, _WIDEST = 0.01, 1.0  # logits
_FARTHEST = 30.0
_MAX_STEPS = 60
_LONGEST_STEP = 2.0
_RIDGE = 1e-6
_SMALL = 1e-8


def profile_interval(
    problem: LengthProblem, fitted: Floats, own: NDArray[np.int64], *, confidence: float
) -> tuple[float, float]:
    """Rates that the likelihood of the verdicts does not rule out.

    The model's term is held at each value of a grid and the others are fitted anew; kept is
    what lies within t²·φ of the least deviance, φ being how far verdicts spread beside won and
    lost ones of the same means. Where few wins, or lengths on one side alone, leave the rate
    open, the interval is wide, which no resampling of the same rows can show.

    Args:
        problem: The regression's rows.
        fitted: The weights without penalty. [features].
        own: Places of the model's rows among the problem's. [rows].
        confidence: In (0, 1).

    Returns:
        (low, high) as shares.

    Source:
        Heinze and Schemper 2002, Statistics in Medicine 21(16), on separation; dispersion:
        McCullagh and Nelder 1989, Generalized Linear Models, §9.2.
    """
    y, v = problem.labels, problem.weights
    rest, last = problem.features[:, :-1], problem.features[:, -1:]
    grid = _grid(problem, fitted)
    w = np.repeat(fitted[None, :-1], len(grid), axis=0)
    w = _fit_rest(rest, y, v, last * grid, w)
    deviance = 2 * _loss(rest @ w.T + last * grid, y, v)
    rates = sigmoid(problem.test[:, :-1] @ w.T + grid).mean(axis=0)
    root = np.sqrt(np.maximum(deviance - deviance.min(), 0.0))
    return _ends(root, rates, np.sqrt(_limit(problem, fitted, own, confidence)))


def _grid(problem: LengthProblem, fitted: Floats) -> Floats:
    """Values of the model's term: close around the fit, then ever wider."""
    x = problem.features
    p = sigmoid(x @ fitted)
    bread = (x * (problem.weights * p * (1 - p))[:, None]).T @ x
    error = float(np.sqrt(np.linalg.inv(bread + _RIDGE * np.eye(x.shape[1]))[-1, -1]))
    steps = np.clip(error, _NARROWEST, _WIDEST) * np.concatenate([_NEAR, _FAR])
    centre = np.clip(fitted[-1], -_FARTHEST / 2, _FARTHEST / 2)
    grid = np.concatenate([centre - steps[:0:-1], centre + steps])
    return np.unique(np.clip(grid, -_FARTHEST, _FARTHEST))


def _ends(root: Floats, rates: Floats, limit: float) -> tuple[float, float]:
    """Where the root of the deviance crosses the limit; 0 or 1 beyond the grid.

    Between grid points the root is straight: the deviance is nearly a parabola.
    """
    inside = np.flatnonzero(root <= limit)
    first, last = int(inside[0]), int(inside[-1])

    def crossing(a: int, b: int) -> float:
        share = (limit - root[a]) / (root[b] - root[a])
        return float(rates[a] + share * (rates[b] - rates[a]))

    low = 0.0 if first == 0 else crossing(first, first - 1)
    high = 1.0 if last == len(rates) - 1 else crossing(last, last + 1)
    return low, high


def _limit(
    problem: LengthProblem, fitted: Floats, own: NDArray[np.int64], confidence: float
) -> float:
    """t²·φ, with one more row at 0 and one at 1: few rows do not show how far they spread."""
    p = sigmoid(problem.features[own] @ fitted)
    y, mean = problem.labels[own], problem.labels[own].mean()
    spread = ((y - p) ** 2).sum() + mean**2 + (1 - mean) ** 2
    binary = (p * (1 - p)).sum() + 2 * mean * (1 - mean)
    degrees = max(1, len(own) - problem.features.shape[1])
    x = beta_quantile(1 - confidence, degrees / 2, 0.5)
    return float(degrees * (1 - x) / x * spread / max(binary, _SMALL))


def _fit_rest(x: Floats, y: Floats, v: Floats, offset: Floats, w: Floats) -> Floats:
    """Newton's steps for each column of offsets, bounded. [columns, features]."""
    size = x.shape[1]
    products = (x[:, :, None] * x[:, None, :]).reshape(len(x), size * size)
    for _ in range(_MAX_STEPS):
        p = sigmoid(x @ w.T + offset)
        slope = (x.T @ (v[:, None] * (p - y[:, None]))).T + _RIDGE * w
        bread = (products.T @ (v[:, None] * p * (1 - p))).T.reshape(-1, size, size)
        step = np.linalg.solve(bread + _RIDGE * np.eye(size), slope[..., None])[..., 0]
        step = np.clip(step, -_LONGEST_STEP, _LONGEST_STEP)
        w = w - step
        if np.abs(step).max() < _SMALL:
            break
    return w


def _loss(z: Floats, y: Floats, v: Floats) -> Floats:
    each = np.maximum(z, 0.0) + np.log1p(np.exp(-np.abs(z))) - y[:, None] * z
    return np.asarray(np.einsum("r,rc->c", v, each), dtype=np.float64)
