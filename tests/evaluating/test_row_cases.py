"""Rows in another order, missing, twice, too many, NaN or drawn: correct, or a clear error."""

from typing import Any

import numpy as np
import pytest

from prefstage import length_controlled_win_rate
from prefstage.core.errors import InputError
from prefstage.evaluating import length_controlled_interval
from prefstage.measuring.length_controlled import LengthControlledWinRate
from prefstage.measuring.rates import N_PROMPTS, length_tables, standardised_length

Rows = dict[str, Any]


def made(seed: int = 0) -> Rows:
    """All prompts in the official order, judged by the model that the regression assumes."""
    rng = np.random.default_rng(seed)
    tables = length_tables()
    b = tables.baseline_lengths
    a = np.round(b * rng.uniform(0.2, 1.6, N_PROMPTS))
    z = -standardised_length(a, b) + 0.9 * tables.difficulty - 0.7
    p = 1 / (1 + np.exp(-z))
    return {
        "preference": rng.beta(p, 1 - p),
        "len_model": a,
        "len_baseline": b,
        "instruction": np.arange(N_PROMPTS),
        "row": np.arange(N_PROMPTS),
    }


def taken(rows: Rows, places: Any) -> Rows:
    return {name: column[places] for name, column in rows.items()}


def rate(rows: Rows, **how: Any) -> LengthControlledWinRate:
    return length_controlled_win_rate(**rows, **how)


ORDERS = {
    "as it is": np.arange(N_PROMPTS),
    "backwards": np.arange(N_PROMPTS)[::-1],
    "shuffled": np.random.default_rng(7).permutation(N_PROMPTS),
    "one row displaced": np.roll(np.arange(N_PROMPTS), 1),
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("lookup", ["instruction", "as-published"])
def test_any_order_of_whole_rows_gives_the_same(order: str, lookup: Any) -> None:
    rows = made()
    whole, moved = (rate(each, lookup=lookup) for each in (rows, taken(rows, ORDERS[order])))
    for name in ("length_controlled_win_rate", "lc_standard_error", "win_rate", "standard_error"):
        assert getattr(moved, name) == pytest.approx(getattr(whole, name), abs=1e-9)
    assert (moved.C, moved.n_total) == (whole.C, whole.n_total)


@pytest.mark.parametrize("kept", [800, 400, 60, 5])
def test_missing_prompts_take_no_other_prompts_difficulty(kept: int) -> None:
    rows = made()
    places = np.sort(np.random.default_rng(3).permutation(N_PROMPTS)[:kept])
    found = rate(taken(rows, places), C=1.0)
    d = length_tables().difficulty[places]
    w = found.weights
    expected = 100 / (1 + np.exp(-(w.difficulty * d + w.model)))
    assert found.length_controlled_win_rate == pytest.approx(expected.mean(), abs=1e-9)
    assert found.lc_standard_error == pytest.approx(expected.std(ddof=1) / np.sqrt(kept), abs=1e-9)
    # the rows told by name alone, without their place in a file
    unplaced = {name: column for name, column in taken(rows, places).items() if name != "row"}
    assert rate(unplaced, C=1.0) == found


def test_missing_prompts_as_published_take_the_row_numbers() -> None:
    rows = made()
    places = np.delete(np.arange(N_PROMPTS), [3, 100])
    file = taken(rows, places) | {"row": np.arange(N_PROMPTS - 2)}
    found = rate(file, lookup="as-published", C=1.0)
    w = found.weights
    d = length_tables().difficulty[: N_PROMPTS - 2]
    expected = 100 / (1 + np.exp(-(w.difficulty * d + w.model)))
    assert found.length_controlled_win_rate == pytest.approx(expected.mean(), abs=1e-9)
    assert "by row number" in found.notes[0]


@pytest.mark.parametrize("lookup", ["instruction", "as-published"])
def test_rows_without_verdict_are_counted_and_move_no_other(lookup: Any) -> None:
    rows = made()
    gone = np.random.default_rng(4).random(N_PROMPTS) < 0.05
    found = rate(rows | {"preference": np.where(gone, np.nan, rows["preference"])}, lookup=lookup)
    assert (found.n_total, found.n_missing) == (N_PROMPTS - gone.sum(), gone.sum())
    assert found.win_rate == pytest.approx(100 * rows["preference"][~gone].mean(), abs=1e-9)
    assert found.weights.difficulty == pytest.approx(rate(rows).weights.difficulty, abs=0.15)
    low, high = length_controlled_interval(
        **rows | {"preference": np.where(gone, np.nan, rows["preference"])}, resamples=60
    )
    assert low < found.length_controlled_win_rate < high


def test_drawn_and_hard_verdicts() -> None:
    rows = made()
    hard = np.where(rows["preference"] > 0.5, 1.0, 0.0)
    hard[::10] = 0.5
    found = rate(rows | {"preference": hard})
    assert found.n_draws == len(hard[::10])
    assert found.discrete_win_rate == pytest.approx(found.win_rate, abs=1e-9)
    assert 0 < found.length_controlled_win_rate < 100


@pytest.mark.parametrize("outcome", [0.0, 1.0, 0.5])
def test_one_sided_verdicts_stay_within_bounds(outcome: float) -> None:
    rows = made() | {"preference": np.full(N_PROMPTS, outcome)}
    found = rate(rows)
    assert found.win_rate == 100 * outcome
    assert 0 <= found.length_controlled_win_rate <= 100
    low, high = length_controlled_interval(**rows, resamples=20)
    assert 0 <= low <= found.length_controlled_win_rate <= high <= 100


def test_empty_answers_are_answers() -> None:
    rows = made()
    rows["len_model"][:20] = 0
    found = rate(rows)
    assert found.n_total == N_PROMPTS
    assert found.avg_length == pytest.approx(rows["len_model"].mean())
    nothing = rate(rows | {"len_model": np.zeros(N_PROMPTS)})
    assert 0 < nothing.length_controlled_win_rate < 100


def test_another_baseline_is_said() -> None:
    rows = made()
    other = np.random.default_rng(5).integers(9000, 20000, N_PROMPTS)
    assert "another baseline" in rate(rows | {"len_baseline": other}).notes[0]


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "numbers shifted by one": ({"instruction": np.roll(np.arange(N_PROMPTS), 1)}, "other prompts"),
    "numbers backwards": ({"instruction": np.arange(N_PROMPTS)[::-1]}, "other prompts"),
    "a prompt twice": ({"instruction": np.r_[0, np.arange(N_PROMPTS - 1)]}, "stands in 2 rows"),
    "a prompt too many": ({"instruction": np.arange(1, N_PROMPTS + 1)}, "0 to 804"),
    "a number missing": ({"instruction": np.r_[np.nan, np.arange(1.0, N_PROMPTS)]}, "instruction"),
    "a row number twice": (
        {"row": np.r_[0, np.arange(N_PROMPTS - 1)], "lookup": "as-published"},
        "row 0 stands in 2 rows",
    ),
    "preferences from 1 to 2": ({"preference": np.linspace(1, 2, N_PROMPTS)}, "subtract 1"),
    "preferences of -1": ({"preference": np.full(N_PROMPTS, -1.0)}, "from 0 to 1"),
    "infinite preferences": ({"preference": np.full(N_PROMPTS, np.inf)}, "preference"),
    "no verdict at all": ({"preference": np.full(N_PROMPTS, np.nan)}, "with a preference"),
    "a length missing": ({"len_model": np.r_[np.nan, np.ones(N_PROMPTS - 1)]}, "len_model"),
    "a row too few": ({"len_baseline": np.ones(N_PROMPTS - 1)}, "len_baseline"),
}


@pytest.mark.parametrize("case", BAD)
def test_rows_that_cannot_be_right_are_refused(case: str) -> None:
    change, message = BAD[case]
    with pytest.raises(InputError, match=message):
        length_controlled_win_rate(**made() | change)


def test_more_rows_than_prompts_are_refused() -> None:
    rows = made()
    places = np.r_[np.arange(N_PROMPTS), 0]
    for lookup in ("instruction", "as-published"):
        with pytest.raises(InputError, match="stands in 2 rows"):
            rate(taken(rows, places), lookup=lookup)
