"""The decision bench's table: its measures by hand, and curves that are fitted back."""

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("decision_table")


def decisions(table: Any, count: int, *, floor: float, ceiling: float, scale: float) -> list[Any]:
    """Right as often as a curve says."""
    random = np.random.default_rng(0)
    distances = random.exponential(2.0, count)
    chances = floor - (ceiling - floor) * np.expm1(-distances / scale)
    right = random.random(count) < chances
    return [
        table.Decision(number % 3, "sigmoid", float(distance), float(hit))
        for number, (distance, hit) in enumerate(zip(distances, right, strict=True))
    ]


def test_a_curve_is_fitted_back(table: Any) -> None:
    made = decisions(table, 20_000, floor=0.5, ceiling=0.9, scale=1.5)
    record = table.fitted(made, "sigmoid", floor=0.5)
    for distance in (0.2, 1.0, 3.0, 8.0):
        expected = 0.5 + 0.4 * (1 - np.exp(-distance / 1.5))
        assert record.at(distance) == pytest.approx(expected, abs=0.015)
    assert record.decisions == 20_000


def test_so_is_its_floor(table: Any) -> None:
    made = decisions(table, 20_000, floor=0.7, ceiling=0.95, scale=1.0)
    record = table.fitted(made, "sigmoid")
    assert record.at(0.0) == pytest.approx(0.7, abs=0.03)
    assert record.at(4.0) == pytest.approx(0.95 - 0.25 * np.exp(-4), abs=0.015)


def test_what_was_never_wrong_is_not_called_certain(table: Any) -> None:
    made = [table.Decision(0, "sigmoid", 5.0, 1.0)] * 50
    assert 0.9 < table.fitted(made, "sigmoid", floor=0.5).at(5.0) < 1.0


def test_predicted_is_observed_on_worlds_left_out(table: Any) -> None:
    made = decisions(table, 9_000, floor=0.5, ceiling=0.9, scale=1.5)
    rows = table.calibration(made)
    assert sum(count for *_, count in rows) == 9_000
    for _, predicted, observed, count in rows:
        assert predicted == pytest.approx(observed, abs=4 * 0.5 / np.sqrt(count))


def test_accuracy_regret_and_rank_by_hand(table: Any) -> None:
    truth = dict(zip(table.CANDIDATES, (0.3, 0.1, 0.0, 0.2, 0.2, 0.05), strict=True))
    scores = dict(zip(table.CANDIDATES, (1.0, 2.0, 0.0, 0.5, 0.7, 0.5), strict=True))
    accuracy, regret, rank = table.of_start(scores, truth)
    # Of fifteen pairs one is a tie in truth; the second candidate is taken for better than the
    # first, the fourth and the fifth; the fourth and the last have equal scores.
    assert accuracy == pytest.approx((14 - 3 - 0.5) / 14)
    assert regret == pytest.approx(0.2)
    assert rank == pytest.approx(np.corrcoef((5, 6, 1, 2.5, 4, 2.5), (6, 3, 1, 4.5, 4.5, 2))[0, 1])


def test_scores_that_are_all_equal_are_a_coin(table: Any) -> None:
    truth = dict(zip(table.CANDIDATES, range(6), strict=True))
    accuracy, regret, _ = table.of_start(dict.fromkeys(table.CANDIDATES, 1.0), truth)
    assert (accuracy, regret) == (0.5, 2.5)
