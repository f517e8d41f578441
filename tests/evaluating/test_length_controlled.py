"""The length-controlled win rate against the published leaderboard, and on broken rows."""

import csv
import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prefstage import length_controlled_win_rate
from prefstage.core.errors import DataError, InputError
from prefstage.evaluating import length_controlled_interval
from prefstage.measuring import rates as tables_module
from prefstage.measuring.rates import N_PROMPTS, length_tables, standardised_length

Rows = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def leaderboard(shared: Path) -> tuple[dict[str, Rows], dict[str, dict[str, str]]]:
    folder = shared / "data" / "length_controlled"
    with gzip.open(folder / "model_rows.csv.gz", "rt") as stream:
        lines = list(csv.DictReader(stream))
    names = ("row", "instruction", "preference", "len_model", "len_baseline")
    models = {
        model: {
            name: np.array([float(line[name]) for line in lines if line["model"] == model])
            for name in names
        }
        for model in dict.fromkeys(line["model"] for line in lines)
    }
    with (folder / "published.csv").open() as stream:
        return models, {line["model"]: line for line in csv.DictReader(stream)}


def made(n: int = N_PROMPTS, seed: int = 0) -> Rows:
    """Rows of a made model with the official baseline's lengths."""
    rng = np.random.default_rng(seed)
    instruction = rng.permutation(N_PROMPTS)[:n]
    len_baseline = length_tables().baseline_lengths[instruction]
    len_model = np.round(len_baseline * rng.uniform(0.3, 1.5, n))
    t = standardised_length(len_model, len_baseline)
    z = -1.5 * t + 0.8 * length_tables().difficulty[instruction] - 0.5
    p = 1 / (1 + np.exp(-z))
    return {
        "preference": rng.beta(3 * p, 3 * (1 - p)),
        "len_model": len_model,
        "len_baseline": len_baseline,
        "instruction": instruction,
    }


@pytest.mark.parametrize("lookup", ["instruction", "as-published"])
def test_the_published_leaderboard_is_met(leaderboard: Any, lookup: Any) -> None:
    models, published = leaderboard
    off = []
    for model, rows in models.items():
        found = length_controlled_win_rate(**rows, lookup=lookup)
        known = {name: float(value) for name, value in published[model].items() if _number(value)}
        off.append(abs(found.length_controlled_win_rate - known["length_controlled_winrate"]))
        assert found.win_rate == pytest.approx(known["win_rate"], abs=1e-9)
        assert found.standard_error == pytest.approx(known["standard_error"], abs=1e-9)
        assert found.discrete_win_rate == pytest.approx(known["discrete_win_rate"], abs=1e-9)
        assert int(found.avg_length) == known["avg_length"]
        assert found.n_total == known["n_total"]
        if "lc_standard_error" in known:
            assert found.lc_standard_error == pytest.approx(known["lc_standard_error"], abs=1e-3)
    assert len(off) == 6
    assert max(off) < 0.02
    assert float(np.median(off)) < 0.005


def _number(text: str) -> bool:
    return text.replace(".", "").isdigit()


def test_the_order_of_rows_does_not_matter() -> None:
    rows = made()
    shuffled = {
        name: column[np.random.default_rng(1).permutation(805)] for name, column in rows.items()
    }
    first, second = length_controlled_win_rate(**rows), length_controlled_win_rate(**shuffled)
    assert first.length_controlled_win_rate == pytest.approx(
        second.length_controlled_win_rate, abs=1e-9
    )
    assert first.C == second.C


@pytest.mark.parametrize("regularise", [True, False])
@pytest.mark.parametrize("with_difficulty", [True, False])
def test_the_order_of_other_prompts_does_not_matter(
    with_difficulty: bool, regularise: bool
) -> None:
    rows = made(137)
    difficulty = length_tables().difficulty[rows.pop("instruction")]
    rows |= {"difficulty": difficulty} if with_difficulty else {}
    rows["preference"] = np.round(rows["preference"], 1)  # many rows are alike in part
    rows["preference"][::20] = np.nan
    rates, intervals = [], []
    for seed in range(4):
        order = np.random.default_rng(seed).permutation(137)
        shuffled: Any = {name: column[order] for name, column in rows.items()}
        rates.append(length_controlled_win_rate(**shuffled, regularise=regularise).as_dict())
        intervals.append(
            length_controlled_interval(**shuffled, regularise=regularise, resamples=50)
        )
    assert rates[1:] == rates[:-1]
    assert intervals[1:] == intervals[:-1]


def test_a_penalty_that_leaves_no_weight_is_noted() -> None:
    rng = np.random.default_rng(0)
    rows = {"preference": np.r_[1.0, np.zeros(9)], "len_model": 400 + rng.uniform(0, 9, 10)}
    found = length_controlled_win_rate(**rows, len_baseline=rows["len_model"] + 5, C=1e-4)
    assert (found.length_controlled_win_rate, found.win_rate) == (50, 10)
    assert "the penalty set every weight to zero" in found.notes[-1]
    assert "50 % whatever the verdicts" in found.notes[-1]
    kept = length_controlled_win_rate(**rows, len_baseline=rows["len_model"] + 5, C=10)
    assert not any("every weight" in note for note in kept.notes)


def test_as_published_takes_the_difficulty_by_row_number() -> None:
    rows = made(700)
    shifted = length_controlled_win_rate(**rows, lookup="as-published", C=1.0)
    right = length_controlled_win_rate(**rows, C=1.0)
    assert abs(shifted.weights.difficulty) < abs(right.weights.difficulty)
    by_row = length_controlled_win_rate(
        **rows | {"instruction": None}, row=np.arange(700), lookup="as-published", C=1.0
    )
    assert by_row.length_controlled_win_rate == shifted.length_controlled_win_rate
    backwards = {name: column[::-1] for name, column in rows.items()}
    told = length_controlled_win_rate(
        **backwards, row=np.arange(700)[::-1], lookup="as-published", C=1.0
    )
    assert told.length_controlled_win_rate == pytest.approx(
        shifted.length_controlled_win_rate, abs=1e-9
    )


def test_rows_without_a_preference_count_in_lengths_and_prediction_alone() -> None:
    rows = made()
    gone = rows["preference"] < np.quantile(rows["preference"], 0.1)
    rows["preference"] = np.where(gone, np.nan, rows["preference"])
    found = length_controlled_win_rate(**rows, C=1.0)
    kept = rows["preference"][~gone]
    assert (found.n_total, found.n_missing) == (805 - gone.sum(), gone.sum())
    assert found.win_rate == pytest.approx(100 * kept.mean(), abs=1e-9)
    assert found.standard_error == pytest.approx(
        100 * kept.std(ddof=1) / np.sqrt(len(kept)), abs=1e-9
    )
    assert found.avg_length == pytest.approx(rows["len_model"].mean())
    d = length_tables().difficulty[rows["instruction"].astype(int)]
    predicted = 1 / (1 + np.exp(-(found.weights.difficulty * d + found.weights.model)))
    assert found.length_controlled_win_rate == pytest.approx(100 * predicted.mean(), abs=1e-9)


def test_draws_are_half_a_discrete_win() -> None:
    rows = made(100)
    rows["preference"] = np.repeat([0.0, 0.5, 1.0, 0.9], 25)
    found = length_controlled_win_rate(**rows)
    assert found.discrete_win_rate == 62.5
    assert found.n_draws == 25


def test_the_baseline_against_itself_is_even() -> None:
    rows = made()
    same = {**rows, "len_model": rows["len_baseline"], "preference": np.full(805, 0.5)}
    found = length_controlled_win_rate(**same)
    assert (found.length_controlled_win_rate, found.lc_standard_error) == (50.0, 0.0)
    assert length_controlled_interval(**same) == (50.0, 50.0)
    assert "the baseline itself" in found.notes[-1]


def test_equal_length_differences_are_no_number_problem() -> None:
    rows = made()
    for shift in (0, 7):
        rows["len_model"] = rows["len_baseline"] + shift
        assert 0 < length_controlled_win_rate(**rows).length_controlled_win_rate < 100


def test_other_prompts_are_fitted_without_difficulty_and_say_so() -> None:
    rows = made(300) | {"instruction": None}
    found = length_controlled_win_rate(**rows)
    assert found.difficulty == "none"
    assert found.weights.difficulty == 0
    assert "without difficulty" in found.notes[-1]


def test_another_baseline_is_noted_and_a_shift_refused() -> None:
    rows = made()
    rng = np.random.default_rng(2)
    other = length_controlled_win_rate(**rows | {"len_baseline": rng.integers(5000, 9000, 805)})
    assert "another baseline" in other.notes[0]
    for shifted in (np.roll(rows["instruction"], 1), (rows["instruction"] + 1) % 805):
        with pytest.raises(InputError, match="lengths of other prompts"):
            length_controlled_win_rate(**rows | {"instruction": shifted})
    swapped = rows["instruction"].copy()
    swapped[[0, 1]] = swapped[[1, 0]]
    with pytest.raises(InputError, match="2 rows whose baseline answers"):
        length_controlled_win_rate(**rows | {"instruction": swapped})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"preference": np.linspace(1, 2, 50)}, "subtract 1"),
        ({"preference": np.full(50, np.nan)}, "0 of 50 rows with a preference"),
        ({"preference": []}, "shape"),
        ({"preference": np.zeros(49)}, "len_model"),
        ({"len_model": np.full(50, np.nan)}, r"len_model\[0\] = nan"),
        ({"len_model": np.full(50, -1)}, r"len_model\[0\] = -1"),
        ({"len_baseline": ["a"] * 50}, "len_baseline"),
        ({"instruction": np.arange(50) % 49}, "stands in 2 rows"),
        ({"instruction": np.arange(50) + 800}, "0 to 804"),
        ({"instruction": np.arange(50) + 0.5}, "0 to 804"),
        ({"lookup": "row"}, "as-published"),
        ({"lookup": "as-published", "row": np.zeros(50)}, "row 0 stands in 50 rows"),
        ({"C": 0.0}, "positive"),
        ({"difficulty": np.full(50, np.inf)}, "difficulty"),
    ],
)
def test_wrong_rows_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        length_controlled_win_rate(**made(50) | change)


def test_the_interval_holds_the_rate_and_is_wider_than_the_prediction_alone() -> None:
    rows = made()
    found = length_controlled_win_rate(**rows)
    low, high = length_controlled_interval(**rows, resamples=200)
    assert low < found.length_controlled_win_rate < high
    assert high - low > 2 * 1.96 * found.lc_standard_error
    assert (low, high) == length_controlled_interval(**rows, resamples=200)
    with pytest.raises(InputError, match="resample"):
        length_controlled_interval(**rows, resamples=0)


def test_official_tables_in_the_hub_cache_are_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = length_tables()
    file = tmp_path / "df_gamed.csv"
    lines = ["model,preference,index,std_delta_len,instruction_difficulty,not_gamed_baseline"]
    lines += [
        f"gamed,{y},{i},{np.arctanh(t)},{shipped.difficulty[i] + 1},False"
        for y, i, t in zip(
            shipped.gamed_preference, shipped.gamed_index, shipped.gamed_t, strict=True
        )
    ]
    file.write_text("\n".join(lines))
    monkeypatch.setattr(tables_module, "cached_file", lambda name: file)
    length_tables.cache_clear()
    try:
        found = length_tables()
        assert found.difficulty == pytest.approx(shipped.difficulty + 1)
        assert found.gamed_t == pytest.approx(shipped.gamed_t)
        file.write_text("index,preference\n0,1\n")
        length_tables.cache_clear()
        with pytest.raises(DataError, match="std_delta_len"):
            length_tables()
    finally:
        length_tables.cache_clear()
