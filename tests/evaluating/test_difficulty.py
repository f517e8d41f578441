"""Difficulty of prompts from several models: recovered, shrunk, and used."""

from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit as sigmoid

from prefstage.core.errors import InputError
from prefstage.evaluating import estimate_difficulty, widened
from prefstage.measuring.rates import standardised_length


def world(models: int, prompts: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    d = rng.normal(size=prompts)
    d -= d.mean()
    len_baseline = rng.integers(100, 2000, prompts).astype(float)
    len_model = np.round(len_baseline * rng.uniform(0.3, 2, (models, prompts)))
    t = np.stack([standardised_length(row, len_baseline) for row in len_model])
    z = rng.normal(-0.5, 0.5, (models, 1)) * t + rng.normal(-0.5, 1, (models, 1)) + d
    y = (rng.random((models, prompts)) < sigmoid(z)).astype(float)
    return {
        "truth": d,
        "t": t,
        "preference": y,
        "len_model": len_model,
        "len_baseline": len_baseline,
    }


def estimated(given: dict[str, np.ndarray], **more: Any) -> np.ndarray:
    return estimate_difficulty(
        given["preference"], given["len_model"], given["len_baseline"], **more
    )[0]


def test_many_models_tell_the_truth() -> None:
    given = world(models=200, prompts=60)
    found = estimated(given)
    assert abs(found.mean()) < 1e-8
    assert np.corrcoef(found, given["truth"])[0, 1] > 0.97
    assert np.abs(found - given["truth"]).mean() < 0.2


def test_it_is_the_maximum_that_a_general_optimiser_finds() -> None:
    given = world(models=4, prompts=12, seed=3)
    y, t = given["preference"], given["t"]
    y[1, 5] = np.nan
    seen = ~np.isnan(y[1])
    t[1, seen] = standardised_length(given["len_model"][1, seen], given["len_baseline"][seen])

    def loss(v: np.ndarray) -> float:
        a, b, d = v[:4], v[4:8], v[8:]
        z = a[:, None] * t + b[:, None] + d
        each = np.logaddexp(0, z) - np.nan_to_num(y) * z
        return float(np.where(np.isnan(y), 0, each).sum() + d @ d / 2 + 0.005 * (a @ a + b @ b))

    best = minimize(loss, np.zeros(20), method="BFGS", options={"gtol": 1e-8}).x[8:]
    assert estimated(given) == pytest.approx(best - best.mean(), abs=0.02)


def test_a_narrow_prior_pulls_to_zero() -> None:
    given = world(models=5, prompts=30)
    wide, narrow = (estimated(given, spread=spread) for spread in (1.0, 0.1))
    assert np.abs(narrow).max() < 0.1 < np.abs(wide).max()


def test_absorbed_shares_are_the_leverage_of_each_verdict_on_its_difficulty() -> None:
    given = world(models=3, prompts=50, seed=4)
    d, t, y = estimated(given), given["t"], given["preference"]

    def loss(w: np.ndarray, model: int) -> float:
        z = w[0] * t[model] + w[1] + d
        return float((np.logaddexp(0, z) - y[model] * z).sum() + 0.005 * w @ w)

    fits = [minimize(loss, np.zeros(2), args=(model,), tol=1e-10).x for model in range(3)]
    p = np.stack([sigmoid(w[0] * t[model] + w[1] + d) for model, w in enumerate(fits)])
    variances = p * (1 - p)
    expected = (variances / (variances.sum(axis=0) + 1)).mean(axis=1)
    _, found = estimate_difficulty(y, given["len_model"], given["len_baseline"])
    assert found == pytest.approx(expected, rel=1e-3)
    assert np.all((found > 0.05) & (found < 1 / 3))


def test_widened_intervals_keep_their_rate_and_reach_further() -> None:
    low, high = widened((30.0, 60.0), 40.0, absorbed=0.2)
    assert (low < 30, high > 60) == (True, True)
    z = [np.log(p / (100 - p)) for p in (low, 30, 40, 60, high)]
    assert (z[2] - z[0]) / (z[2] - z[1]) == pytest.approx(1.25)
    assert (z[4] - z[2]) / (z[3] - z[2]) == pytest.approx(1.25)
    assert widened((30.0, 60.0), 40.0, absorbed=0.0) == pytest.approx((30.0, 60.0))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"preference": np.full((2, 30), 0.5), "len_model": np.ones((2, 30))}, "at least 3"),
        ({"preference": np.full((5, 30), np.nan)}, "0 models with verdicts"),
        ({"preference": np.full((5, 30), 1.5)}, "a preference 1.5"),
        ({"len_baseline": np.ones(29)}, "[models, prompts]"),
    ],
)
def test_wrong_tables_are_refused(changed: dict[str, np.ndarray], said: str) -> None:
    with pytest.raises(InputError) as refused:
        estimated(world(models=5, prompts=30) | changed)
    assert said in str(refused.value)
