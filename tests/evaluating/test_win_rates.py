"""Win rates by a judge: matching by prompt, ties, stopping, and never judging twice."""

import math
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import beta

from prefstage import win_rate
from prefstage.core.errors import InputError
from prefstage.core.ledger import Ledger
from prefstage.evaluating import WinRateConfig, compare_win_rates, rates_of
from prefstage.judging import stored
from prefstage.measuring.rates import effective_interval, mean_interval
from tests.evaluating.judges import WordJudge, answers


def test_wins_ties_and_undecided_are_counted_by_prompt() -> None:
    model = answers("m", ["good", "good", "", "odd", "same", "extra good"])
    baseline = answers("b", ["bad", "bad", "good", "bad", "same"])
    backwards = type(baseline)("b", dict(reversed(baseline.by_prompt.items())))
    for side in (baseline, backwards):
        found = win_rate(model, side, judge=WordJudge())
        assert (found.rates.wins, found.rates.losses, found.rates.draws) == (2, 1, 1)
        assert (found.rates.n_total, found.rates.n_missing) == (4, 1)
        assert found.rates.win_rate == pytest.approx(100 * (0.9 + 0.9 + 0.1 + 0.5) / 4)
        assert found.rates.discrete_win_rate == 62.5
        assert (found.only_model, found.only_baseline) == (1, 0)
        assert "1 prompts answered by m alone" in found.notes[0]
        assert found.avg_length == (4 + 4 + 0 + 3 + 4) / 5
        assert found.controlled is None


def test_exchanging_the_sides_exchanges_the_rates() -> None:
    model = answers("m", ["good" if k % 3 else "no" for k in range(60)])
    baseline = answers("b", ["good" if k % 2 else "well, no" for k in range(60)])
    one = win_rate(model, baseline, judge=WordJudge())
    other = win_rate(baseline, model, judge=WordJudge())
    assert one.rates.win_rate + other.rates.win_rate == pytest.approx(100)
    assert one.rates.discrete_win_rate + other.rates.discrete_win_rate == pytest.approx(100)
    assert one.anytime_interval[0] == pytest.approx(100 - other.anytime_interval[1], abs=1e-4)
    assert one.controlled is not None
    assert one.controlled.difficulty == "none"
    assert one.controlled.lc_standard_error > 0


def test_it_stops_when_it_is_decided_and_not_before() -> None:
    clear, even = ["good"] * 400, ["good" if k % 2 else "bad" for k in range(400)]
    judge = WordJudge()
    config = WinRateConfig(stop_early=True, length_controlled=False)
    found = win_rate(answers("m", clear), answers("b", ["bad"] * 400), judge=judge, config=config)
    assert (found.stopped, found.better) == ("decided", "model")
    assert judge.calls == len(found.verdicts) < 100
    mixed = answers("b", ["bad" if k % 2 else "good" for k in range(400)])
    found = win_rate(answers("m", even), mixed, judge=WordJudge(), config=config)
    assert (found.stopped, found.better) == ("all prompts used", None)
    few = WinRateConfig(max_prompts=10, length_controlled=False)
    found = win_rate(answers("m", even), mixed, judge=WordJudge(), config=few)
    assert (found.stopped, len(found.verdicts)) == ("prompt budget", 10)


def test_a_repeated_evaluation_buys_nothing(tmp_path: Path) -> None:
    model, baseline = answers("m", ["good", "no"] * 5), answers("b", ["bad"] * 10)
    judge = WordJudge()
    for _ in range(2):
        with Ledger(tmp_path / "judgments.sqlite") as store:
            found = win_rate(model, baseline, judge=stored(judge, store))
    assert judge.calls == 10
    assert found.rates.wins == 5


def test_too_few_common_prompts_are_an_error() -> None:
    with pytest.raises(InputError, match="1 prompts answered by both m"):
        win_rate(answers("m", ["a"]), answers("b", ["a", "b"]), judge=WordJudge())


def test_checkpoints_are_compared_prompt_by_prompt() -> None:
    rng = np.random.default_rng(0)
    base = answers("b", ["good"] * 200)
    texts = {
        "first": ["good good" if each else "bad" for each in rng.random(200) < 0.5],
        "better": ["good good" if each else "bad" for each in rng.random(200) < 0.8],
        "same": ["good good" if each else "bad" for each in rng.random(200) < 0.5],
    }
    config = WinRateConfig(length_controlled=False, resamples=100)
    results = {
        name: win_rate(answers(name, each), base, judge=WordJudge(), config=config)
        for name, each in texts.items()
    }
    table = {(line.first, line.second): line for line in compare_win_rates(results)}
    assert table["first", "better"].better == "better"
    assert table["first", "better"].p_value < 0.01
    assert table["first", "same"].better is None
    expected = results["first"].rates.win_rate - results["better"].rates.win_rate
    assert table["first", "better"].difference == pytest.approx(expected)
    low, high = table["first", "same"].interval
    assert low < table["first", "same"].difference < high
    assert table["better", "same"].prompts == 200
    with pytest.raises(InputError, match="at least two models"):
        compare_win_rates({"first": results["first"]})


def test_family_wise_errors_stay_below_the_level() -> None:
    rng = np.random.default_rng(5)
    base = answers("b", ["good"] * 60)
    config = WinRateConfig(length_controlled=False, resamples=1)
    wrong = 0
    for trial in range(40):
        results = {
            str(k): win_rate(
                answers(str(k), ["good good" if x else "bad" for x in rng.random(60) < 0.4]),
                base,
                judge=WordJudge(),
                config=config,
            )
            for k in range(5)
        }
        lines = compare_win_rates(results, resamples=300, seed=trial)
        wrong += any(line.better for line in lines)
    assert wrong <= 6  # 5 % expected of 40; P(more than 6) < 0.01


@pytest.mark.parametrize("share", [0.02, 0.3])
@pytest.mark.parametrize("graded", [False, True])
def test_intervals_cover(share: float, graded: bool) -> None:
    rng = np.random.default_rng(3)
    covered = 0
    for trial in range(150):
        if graded:
            values = rng.beta(0.5 * share, 0.5 * (1 - share), 80)
        else:
            values = (rng.random(80) < share).astype(float)
        low, high = mean_interval(values, seed=trial, resamples=200)
        covered += low <= share <= high
    assert covered >= 0.9 * 150  # nominal 0.95; P(fewer) < 0.01


def test_the_exact_interval_is_the_binomial_one() -> None:
    values = np.repeat([1.0, 0.0], [7, 43])
    low, high = effective_interval(values, confidence=0.95)
    assert low == pytest.approx(beta.ppf(0.025, 7, 44), abs=1e-9)
    assert high == pytest.approx(beta.ppf(0.975, 8, 43), abs=1e-9)
    assert effective_interval(np.zeros(20), confidence=0.9)[0] == 0
    assert effective_interval(np.ones(20), confidence=0.9)[1] == 1


def test_graded_outcomes_count_as_more_rows() -> None:
    values = np.tile([0.4, 0.6], 50)
    low, high = effective_interval(values, confidence=0.95)
    size = 100 * 0.25 / (np.var([*values, 0, 1]))
    assert low == pytest.approx(beta.ppf(0.025, size / 2, size / 2 + 1), abs=1e-9)
    assert high == pytest.approx(beta.ppf(0.975, size / 2 + 1, size / 2), abs=1e-9)


def test_rates_of_nothing_or_out_of_range_are_refused() -> None:
    for values in ([], [0.5], [math.nan] * 5, [1.0, 2.0]):
        with pytest.raises(InputError, match="at least two"):
            rates_of(values)
