"""Weighted logistic regression on soft labels with an l1 penalty, solved to the optimum.

Only for few features: the quadratic model of each Newton step is minimised exactly, by trying
every pattern of signs. Many problems with the same features and other weights (the folds of a
cross-validation, the resamples of a bootstrap) are solved side by side.
"""

from itertools import product

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_MAX_STEPS = 100
_MAX_HALVINGS = 40
_SMALL_STEP = 1e-7  # Newton converges quadratically: what is left is about its square
_ROUNDING = 1e-12


def fit_l1_logistic(
    features: Floats,
    labels: Floats,
    row_weights: Floats,
    *,
    c: float,
    start: Floats | None = None,
) -> Floats:
    """Minimise ``‖w‖₁ + C·Σ_i v_i·CE(y_i, σ(w·x_i))`` without an intercept.

    Args:
        features: x. [rows, features], at most about four features.
        labels: y, in [0, 1]. [rows].
        row_weights: v ≥ 0, one column a problem. [rows, problems].
        c: C > 0: how much the rows count against the penalty.
        start: Where to begin, such as the solution for a nearby C. [problems, features].

    Returns:
        The optimum w of each problem. [problems, features].

    Source:
        The problem as liblinear's L1R_LR, Fan et al. 2008, JMLR 9; the steps as the proximal
        Newton method of Lee, Sun and Saunders 2014, SIAM J. Optim. 24(3), with exact steps.
    """
    w = np.zeros((row_weights.shape[1], features.shape[1])) if start is None else start.copy()
    v = c * row_weights
    # The rows' outer products do not change with w: with them the Hessians of all problems are
    # one matrix product a step, which is what makes a bootstrap of a thousand fits take seconds.
    products = outer_products(features)
    value, p = _objective(features, labels, v, w)
    for _ in range(_MAX_STEPS):
        vp = v * p
        gradient = (features.T @ (vp - v * labels[:, None])).T
        step = _newton_target(hessians(products, vp - vp * p), gradient, w) - w
        w, value, p, moved = _line_search(features, labels, v, w, step=step, value=value, p=p)
        if (np.abs(moved).max(axis=1) <= _SMALL_STEP * (1.0 + np.abs(w).max(axis=1))).all():
            break
    return w


def outer_products(x: Floats) -> Floats:
    """``x_i x_iᵀ`` of each row, flattened. [rows, features²]."""
    return (x[:, :, None] * x[:, None, :]).reshape(len(x), -1)


def hessians(products: Floats, weights: Floats) -> Floats:
    """``Σ_i v_i x_i x_iᵀ`` of each problem.

    Args:
        products: As of `outer_products`. [rows, features²].
        weights: v, one column a problem. [rows, problems].

    Returns:
        [problems, features, features].
    """
    size = round(products.shape[1] ** 0.5)
    return (products.T @ weights).T.reshape(-1, size, size)


def cross_entropy(z: Floats, y: Floats) -> tuple[Floats, Floats]:
    """``CE(y, σ(z))`` and σ(z), without overflow.

    Args:
        z: Logits, one column a problem. [rows, problems].
        y: Labels in [0, 1]. [rows].

    Returns:
        Both [rows, problems].
    """
    # One exponential, of a number that is never positive, serves the sigmoid and the softplus:
    # exponentials are most of a fit's time. CE is the logit's softplus less its share of the label.
    small = np.exp(-np.abs(z))
    p = np.where(z >= 0, 1.0, small) / (1.0 + small)
    return np.maximum(z, 0.0) + np.log1p(small) - y[:, None] * z, p


# The value of each problem [problems] and its probabilities [rows, problems].
def _objective(x: Floats, y: Floats, v: Floats, w: Floats) -> tuple[Floats, Floats]:
    loss, p = cross_entropy(x @ w.T, y)
    return np.abs(w).sum(axis=1) + np.einsum("rp,rp->p", v, loss), p


# The minimum of ½(u-w)ᵀH(u-w) + g·(u-w) + ‖u‖₁, exactly. [problems, features].
def _newton_target(hessian: Floats, gradient: Floats, w: Floats) -> Floats:
    # For a given pattern of signs (with zeros) the minimiser solves linear equations. The true
    # minimiser is that of its pattern, so the best of all 3^features candidates is exact: no
    # coordinate descent, which converges slowly where length and difficulty are correlated.
    size = w.shape[1]
    signs = np.array(list(product((0.0, 1.0, -1.0), repeat=size)))
    active = signs != 0
    # A ridge of rounding size keeps the equations solvable where a feature is zero in all rows.
    ridge = _ROUNDING * (np.einsum("pii->pi", hessian).max(axis=1) + _ROUNDING)
    h = hessian + ridge[:, None, None] * np.eye(size)
    b = np.einsum("pij,pj->pi", h, w) - gradient
    both = active[:, :, None] & active[:, None, :]
    systems = np.where(both[None], h[:, None], 0.0) + np.eye(size) * ~active[None, :, None, :]
    sides = np.where(active[None], b[:, None] - signs[None], 0.0)
    u = np.linalg.solve(systems, sides[..., None])[..., 0]
    value = 0.5 * np.einsum("psi,pij,psj->ps", u, h, u) - np.einsum("psi,pi->ps", u, b)
    best = (value + np.abs(u).sum(axis=2)).argmin(axis=1)
    return np.asarray(u[np.arange(len(w)), best])


def _line_search(
    x: Floats, y: Floats, v: Floats, w: Floats, *, step: Floats, value: Floats, p: Floats
) -> tuple[Floats, Floats, Floats, Floats]:
    # Newton's step may overshoot where the curvature is small: it is halved, for those problems
    # alone whose objective would rise.
    scale = np.ones(len(w))
    for _ in range(_MAX_HALVINGS):
        moved = scale[:, None] * step
        new_value, new_p = _objective(x, y, v, w + moved)
        # At the optimum the value may rise by a rounding error, which is no reason to halve.
        rises = new_value > value + _ROUNDING * np.abs(value)
        if not rises.any():
            return w + moved, new_value, new_p, moved
        scale = np.where(rises, 0.5 * scale, scale)
    return w, value, p, np.zeros_like(w)
