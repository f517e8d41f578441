"""The l1 logistic solver against its optimality conditions and a general optimiser."""

import numpy as np
import pytest
from hypothesis import given, strategies as st
from scipy.optimize import minimize

from prefstage.measuring.rates import fit_l1_logistic


def problem(
    seed: int, rows: int = 200, features: int = 3
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, features))
    x[:, -1] = rng.random(rows) < 0.5
    return x, rng.random(rows) ** rng.integers(1, 6), rng.random((rows, 2))


def slopes(
    x: np.ndarray, y: np.ndarray, v: np.ndarray, w: np.ndarray, c: float
) -> tuple[np.ndarray, float]:
    """Gradient of the smooth part, and the scale of its rounding errors."""
    p = 1 / (1 + np.exp(-(x @ w)))
    return c * x.T @ (v * (p - y)), c * float(v @ np.abs(x).max(1))


@given(seed=st.integers(0, 10_000), log_c=st.floats(-4, 4), features=st.integers(1, 4))
def test_the_optimality_conditions_hold(seed: int, log_c: float, features: int) -> None:
    x, y, v = problem(seed, features=features)
    c = 10**log_c
    fits = fit_l1_logistic(x, y, v, c=c)
    for w, weights in zip(fits, v.T, strict=True):
        slope, scale = slopes(x, y, weights, w, c)
        tolerance = 1e-9 * (1 + scale)
        assert np.abs(slope[w != 0] + np.sign(w[w != 0])) == pytest.approx(0, abs=tolerance)
        assert (np.abs(slope[w == 0]) <= 1 + tolerance).all()


def test_it_agrees_with_a_general_optimiser_on_split_variables() -> None:
    x, y, v = problem(3)

    def objective(u: np.ndarray) -> float:
        w = u[:3] - u[3:]
        z = x @ w
        return float(u.sum() + 2.0 * v[:, 0] @ (np.logaddexp(0, z) - y * z))

    found = minimize(
        objective,
        np.full(6, 0.1),
        bounds=[(0, None)] * 6,
        method="L-BFGS-B",
        options={"ftol": 1e-15, "gtol": 1e-10},
    )
    ours = fit_l1_logistic(x, y, v, c=2.0)[0]
    assert ours == pytest.approx(found.x[:3] - found.x[3:], abs=1e-5)


def test_problems_side_by_side_are_each_solved_alone() -> None:
    x, y, v = problem(5)
    together = fit_l1_logistic(x, y, v, c=1.0)
    for place in (0, 1):
        alone = fit_l1_logistic(x, y, v[:, [place]], c=1.0)[0]
        assert together[place] == pytest.approx(alone, abs=1e-9)


def test_separable_rows_and_an_empty_feature_have_a_finite_optimum() -> None:
    x = np.array([[1.0, 0.0], [-1.0, 0.0], [2.0, 0.0]])
    fits = fit_l1_logistic(x, np.array([1.0, 0.0, 1.0]), np.ones((3, 1)), c=1e4)
    assert fits[0, 1] == 0
    slope, _ = slopes(x, np.array([1.0, 0.0, 1.0]), np.ones(3), fits[0], 1e4)
    assert slope[0] == pytest.approx(-1, abs=1e-6)


def test_a_strong_penalty_leaves_nothing() -> None:
    x, y, v = problem(1)
    assert (fit_l1_logistic(x, y, v, c=1e-6) == 0).all()
