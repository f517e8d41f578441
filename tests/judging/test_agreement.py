import math

import pytest
from scipy.stats import binomtest

from prefstage.data.records import Pair
from prefstage.judging import Judgment
from prefstage.judging.base import mean_wins, wilson_interval
from prefstage.judging.judged import agreement_with_labels


def pair(chosen: str, rejected: str, agreement: float | None = None) -> Pair:
    sides = [({"role": "assistant", "content": text},) for text in (chosen, rejected)]
    prompt = ({"role": "user", "content": "x"},)
    return Pair("id", prompt, sides[0], sides[1], agreement=agreement)


def test_ties_and_undecided_are_counted_apart() -> None:
    pairs = [pair("long", "s"), pair("s", "long"), pair("aa", "b", 0.5), pair("a", "b", 0.75)]
    judgments = [Judgment(0.9), Judgment(0.6), Judgment(0.9), Judgment(0.5, "undecided")]
    found = agreement_with_labels(pairs, judgments)
    counts = ("pairs", "label_ties", "judge_ties", "undecided")
    assert [found[name] for name in counts] == [4, 1, 0, 1]
    assert found["agreement"] == pytest.approx(2.5 / 3)
    assert found["longer_wins"] == pytest.approx(1.5 / 3)
    assert found["prefers_longer"] == pytest.approx((1 + 0) / 2)
    assert agreement_with_labels(pairs[:1], [Judgment(0.5)])["judge_ties"] == 1


@pytest.mark.parametrize(("wins", "count"), [(0, 5), (3, 10), (689, 1019), (7, 7)])
def test_the_interval_is_wilsons(wins: int, count: int) -> None:
    expected = binomtest(wins, count).proportion_ci(0.95, method="wilson")
    assert wilson_interval(wins / count, count) == pytest.approx((expected.low, expected.high))


def test_without_labels_nothing_is_claimed() -> None:
    found = agreement_with_labels([pair("a", "b", 0.5)], [Judgment(0.9)])
    assert found["agreement"] is None
    assert found["interval"] == [0.0, 1.0]


def test_a_score_that_rests_on_no_decided_comparison_is_none() -> None:
    undecided = Judgment(0.5, "undecided")
    assert mean_wins(1, iter([])) == [0.5]
    assert mean_wins(2, iter([Judgment(0.9)])) == pytest.approx([0.9, 0.1])
    first, second, third = mean_wins(3, iter([Judgment(0.5), undecided, undecided]))
    assert (first, second) == (0.5, 0.5)
    assert math.isnan(third)
