import math
from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from prefstage.core.errors import InputError
from prefstage.measuring import ConfidenceSequence, log_capital, rejection_step

quick = settings(deadline=None, max_examples=40)
score_lists = st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.7, 1.0]), min_size=1, max_size=40)


def sequence_of(scores: list[float], *, available: int | None) -> ConfidenceSequence:
    sequence = ConfidenceSequence(available=available)
    sequence.update(scores)
    return sequence


def capital_by_definition(scores: list[float], mean: float, available: int | None) -> float:
    """Played out one bet at a time, with the definition's own loop."""
    bets = [(i + 0.5) / 16 for i in range(16)]
    weights = [bet * (1 - bet) ** 2 for bet in bets]
    total = 0.0
    for bet, weight in zip(bets, weights, strict=True):
        purse, drawn = weight / math.fsum(weights), 0.0
        for i, x in enumerate(scores):
            fair = mean if available is None else (available * mean - drawn) / (available - i)
            purse *= 1 + bet * (x / fair - 1)
            drawn += x
        total += purse
    return total


@quick
@given(score_lists, st.floats(0.05, 0.95))
def test_capital_of_independent_scores(scores: list[float], mean: float) -> None:
    found = log_capital(scores, mean, available=None)[-1]
    assert found == pytest.approx(math.log(capital_by_definition(scores, mean, None)), abs=1e-9)


@quick
@given(score_lists)
def test_capital_without_replacement(scores: list[float]) -> None:
    found = log_capital(scores, 0.5, available=100)[-1]
    assert found == pytest.approx(math.log(capital_by_definition(scores, 0.5, 100)), abs=1e-9)


def test_the_game_is_fair_without_replacement() -> None:
    population = [0.0, 0.25, 1.0, 0.5, 0.75]
    orders = np.array(list(permutations(population)))
    capital = np.exp(log_capital(orders, np.mean(population), available=5))
    assert capital[:, :4].mean(axis=0) == pytest.approx(np.ones(4))
    assert capital[:, 4].mean() <= 1 + 1e-9


def test_the_game_is_fair_with_replacement() -> None:
    draws = np.array(list(product([0.0, 0.25, 0.75, 1.0], repeat=5)))
    capital = np.exp(log_capital(draws, 0.5, available=None))
    assert capital.mean(axis=0) == pytest.approx(np.ones(5))


@quick
@given(score_lists, st.booleans())
def test_capital_falls_in_the_mean(scores: list[float], finite: bool) -> None:
    available = 60 if finite else None
    means = np.linspace(0.02, 0.98, 25)
    capital = log_capital(scores, means, available=available)
    before, after = capital[:-1], capital[1:]
    assert (after <= before + 1e-9).all()


def test_a_mean_that_the_draws_rule_out_is_rejected_for_sure() -> None:
    assert log_capital([1.0, 1.0, 1.0], 0.5, available=5)[-1] == math.inf
    assert math.isfinite(log_capital([1.0, 1.0, 1.0], 0.6, available=5)[-1])


@quick
@given(score_lists)
def test_the_interval_narrows_and_the_decision_agrees_with_it(scores: list[float]) -> None:
    sequence, last = ConfidenceSequence(available=50), (0.0, 1.0)
    for score in scores:
        sequence.update([score])
        low, high = sequence.interval
        assert last[0] - 1e-6 <= low <= high <= last[1] + 1e-6
        assert (sequence.side == "above") == (low >= 0.5)
        assert (sequence.side == "below") == (high <= 0.5)
        last = low, high


@quick
@given(score_lists)
def test_mirrored_scores_give_the_mirrored_interval(scores: list[float]) -> None:
    low, high = sequence_of(scores, available=90).interval
    mirrored = sequence_of([1 - score for score in scores], available=90).interval
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=1e-6)


@quick
@given(score_lists, st.integers(1, 7))
def test_chunks_do_not_matter(scores: list[float], chunk: int) -> None:
    chunked = ConfidenceSequence(available=80)
    for start in range(0, len(scores), chunk):
        chunked.update(scores[start : start + chunk])
    whole = sequence_of(scores, available=80)
    assert (chunked.interval, chunked.side) == (whole.interval, whole.side)


@quick
@given(score_lists)
def test_a_used_up_set_is_known_exactly(scores: list[float]) -> None:
    sequence = sequence_of(scores, available=len(scores))
    mean = math.fsum(scores) / len(scores)
    assert sequence.complete
    assert sequence.interval == (mean, mean)
    assert sequence.side == (None if mean == 0.5 else "above" if mean > 0.5 else "below")


@quick
@given(score_lists, st.integers(0, 30))
def test_the_interval_is_within_what_is_logically_left(scores: list[float], more: int) -> None:
    available = len(scores) + more
    low, high = sequence_of(scores, available=available).interval
    assert low >= math.fsum(scores) / available - 1e-9
    assert high <= (math.fsum(scores) + more) / available + 1e-9


def test_nothing_seen_nothing_known() -> None:
    sequence = ConfidenceSequence(available=None)
    assert (sequence.interval, sequence.side, sequence.mean) == ((0.0, 1.0), None, 0.5)


def test_independent_draws_never_close_to_a_point() -> None:
    low, high = sequence_of([0.0, 1.0] * 100, available=None).interval
    assert high - low > 0.1


@pytest.mark.parametrize("available", [None, 200])
@pytest.mark.parametrize("mean", [0.3, 0.5])
def test_the_interval_always_holds_the_mean_in_95_of_100_runs(
    available: int | None, mean: float
) -> None:
    rng = np.random.default_rng(7)
    if available is None:
        runs = (rng.random((2000, 200)) < mean).astype(float)
    else:
        population = (np.arange(available) < mean * available).astype(float)
        runs = rng.permuted(np.tile(population, (2000, 1)), axis=1)
    ever = [
        rejection_step(scores, centre, available=available, level=0.025) <= runs.shape[1]
        for scores, centre in ((runs, mean), (1 - runs, 1 - mean))
    ]
    missed = (ever[0] | ever[1]).mean()
    assert 0 < missed <= 0.05


def test_a_clear_case_is_decided_within_a_few_prompts() -> None:
    sequence = sequence_of([0.0, 0.25, 0.0] * 5, available=2000)
    assert sequence.side == "below"


def test_two_thousand_single_updates_give_what_one_gives() -> None:
    scores = np.random.default_rng(3).choice([0.0, 0.25, 0.5, 0.75, 1.0], size=2000).tolist()
    single = ConfidenceSequence(available=5000)
    for score in scores:
        single.update([score])
    assert single.interval == sequence_of(scores, available=5000).interval


def test_should_the_sides_contradict_the_stretch_between_is_given() -> None:
    low, high = sequence_of([1.0] * 40 + [0.0] * 400, available=None).interval
    assert low < high


@pytest.mark.parametrize("score", [-0.1, 1.1, float("nan")])
def test_scores_outside_0_to_1_are_refused(score: float) -> None:
    with pytest.raises(InputError, match=r"scores in \[0, 1\]"):
        ConfidenceSequence(available=None).update([0.5, score])


def test_more_scores_than_prompts_are_refused() -> None:
    with pytest.raises(InputError, match="3 scores drawn from 2"):
        ConfidenceSequence(available=2).update([0.1, 0.2, 0.3])


@quick
@given(st.sampled_from([0.0, 1.0, -1.0, 95.0]))
def test_a_confidence_outside_0_to_1_is_refused(confidence: float) -> None:
    with pytest.raises(InputError, match=r"write 0\.95"):
        ConfidenceSequence(available=None, confidence=confidence)
