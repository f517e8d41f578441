import math
from functools import partial

import pytest
from hypothesis import given, strategies as st

from prefstage.building.account import Account
from prefstage.building.choosing import (
    all_pairs,
    best_vs_random,
    best_vs_second,
    best_vs_worst,
    pairs_by_choice,
    rejection_pairs,
)
from tests.building.making import candidates, text_of

CHOICES = {
    "best-vs-worst": best_vs_worst,
    "best-vs-second": best_vs_second,
    "best-vs-random": partial(best_vs_random, seed=0),
    "all-pairs": partial(all_pairs, k=None),
    "rejection-sampling": partial(rejection_pairs, accepted=4),
}


def built(rows, choose, **settings):
    account = Account()
    groups = list(pairs_by_choice(rows, choose, method="m", account=account, **settings))
    return [each for group in groups for each in group], account


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("best-vs-worst", [(3.0, -1.0)]),
        ("best-vs-second", [(3.0, 2.0)]),
        ("all-pairs", [(3.0, 2.0), (3.0, 0.5), (3.0, -1.0), (2.0, 0.5), (2.0, -1.0), (0.5, -1.0)]),
    ],
)
def test_which_two_meet(name, expected):
    rows, _ = built([candidates("p", [0.5, 3.0, -1.0, 2.0])], CHOICES[name])
    assert [(each.pair.score_chosen, each.pair.score_rejected) for each in rows] == expected


def test_provenance_names_places_sources_gap_and_judge():
    (one,), _ = built([candidates("p", [0.5, 3.0, -1.0])], best_vs_worst, judge_name="j")
    assert (one.place_chosen, one.place_rejected, one.gap, one.judge) == (1, 2, 4.0, "j")
    assert (one.pair.source_chosen, one.pair.source_rejected) == ("writer 1", "writer 2")
    assert text_of(one.pair.chosen) == "p, answer 1"


def test_random_choice_depends_on_seed_and_prompt_alone():
    rows = [candidates(f"p{number}", list(range(10))) for number in range(40)]
    first, _ = built(rows, partial(best_vs_random, seed=0))
    again, _ = built(rows[::-1], partial(best_vs_random, seed=0))
    other, _ = built(rows, partial(best_vs_random, seed=1))
    assert first == again[::-1]
    assert first != other
    assert len({each.place_rejected for each in first}) > 4


def test_k_best_give_k_choose_two_pairs():
    rows, _ = built([candidates("p", list(range(9)))], partial(all_pairs, k=4))
    assert len(rows) == 6
    assert min(each.pair.score_rejected for each in rows) == 5


@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize(
    ("scores", "texts", "reason"),
    [
        ([], None, "prompt without a usable response"),
        ([1.0], None, "prompt with one usable response"),
        ([1.0, 1.0, 1.0], None, "prompt whose scores are all equal"),
        ([1.0, math.nan], None, "response whose score is no finite number"),
        ([1.0, math.inf], None, "response whose score is no finite number"),
        ([1.0, None], None, "response without a score"),
        ([1.0, 2.0], ["same", "same"], "response with the text of another of the prompt"),
        ([1.0, 2.0], ["some", "  "], "empty response"),
    ],
)
def test_what_makes_no_pair_is_counted(name, scores, texts, reason):
    rows, account = built([candidates("p", scores, texts)], CHOICES[name])
    assert rows == []
    assert account.skipped[reason] == 1
    assert account.prompts == 1
    assert len(account.examples[reason]) == 1


def test_pairs_below_the_least_gap_are_counted():
    rows, account = built(
        [candidates("p", [0.0, 1.0, 3.0])], partial(all_pairs, k=None), minimum_gap=1.5
    )
    assert [each.gap for each in rows] == [2.0, 3.0]
    assert account.skipped["pair with too small a gap"] == 1


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=12), st.sampled_from(sorted(CHOICES)))
def test_chosen_always_scores_more(scores, name):
    rows, account = built([candidates("p", scores)], CHOICES[name])
    assert all(each.pair.score_chosen > each.pair.score_rejected for each in rows)
    assert account.pairs == len(rows)
