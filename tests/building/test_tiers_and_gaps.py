import numpy as np
import pytest
from hypothesis import given, strategies as st

from prefstage.building.account import Account
from prefstage.building.choosing import (
    PARTS,
    gap_quality_pairs,
    match_means,
    quality_tiers,
    tier_pairs,
    usable_responses,
)
from prefstage.building.recipe import COMBINATIONS, TIERS, parse_combination
from prefstage.core.errors import InputError
from tests.building.making import candidates, text_of


def many(prompts=200, responses=10, seed=0):
    draw = np.random.default_rng(seed)
    return [candidates(f"p{n}", list(draw.normal(size=responses) * 3)) for n in range(prompts)]


@given(st.integers(5, 40))
def test_tiers_are_five_different_responses_in_order(count):
    responses = usable_responses(candidates("p", list(range(count))), Account())
    tiers = quality_tiers(responses)
    scores = [tiers[tier].score for tier in TIERS]
    assert scores == sorted(scores, reverse=True)
    assert len(set(scores)) == 5
    assert (scores[0], scores[-1]) == (count - 1, 0)


def test_every_combination_of_table_1_on_the_same_prompts():
    account = Account()
    groups = list(tier_pairs(many(), account=account))
    assert {each.part for each in groups[0]} == {each.replace("/", "-") for each in COMBINATIONS}
    for group in groups:
        by_part = {each.part: each.pair for each in group}
        fixed = [text_of(by_part[f"best-{t}"].chosen) for t in ("worst", "low", "medium", "high")]
        assert len(set(fixed)) == 1
        worst = [text_of(by_part[f"{t}-worst"].rejected) for t in ("best", "high", "medium", "low")]
        assert len(set(worst)) == 1
    assert account.pairs == 7 * len(groups) == 1400


def test_prompts_without_five_tiers_are_counted():
    account = Account()
    rows = [candidates("few", [1, 2, 3, 4]), candidates("tied", [1, 1, 1, 1, 1, 2])]
    assert list(tier_pairs(rows, account=account)) == []
    assert account.skipped == {
        "prompt with fewer than 5 usable responses": 1,
        "prompt whose tiers have equal scores": 1,
    }


@pytest.mark.parametrize("text", ["best", "worst/best", "best/best", "best/bad", "a/b/c"])
def test_combinations_name_two_tiers_in_order(text):
    with pytest.raises(InputError, match="CHOSEN/REJECTED"):
        parse_combination(text)


def test_gap_sets_are_matched_and_counterfactuals_share_the_exact_texts():
    rows, account = many(), Account()
    groups = list(gap_quality_pairs(lambda: rows, account=account))
    gaps = np.array([[each.gap for each in group] for group in groups])
    means = gaps.mean(0)
    tolerance = account.figures["gap_tolerance"]
    assert abs(means[0] - means[1]) <= tolerance
    assert abs(means[2] - means[3]) <= tolerance
    assert means[0] > 1.5 * means[2]
    assert account.figures["large_gap_means"] == pytest.approx(list(means[:2]))
    chosen = np.array([[each.pair.score_chosen for each in group] for group in groups])
    assert (chosen[:, 0] > chosen[:, 1]).all()  # high quality, prompt by prompt
    assert (chosen[:, 2] > chosen[:, 3]).all()
    for group in groups:
        sets = {each.part: each.pair for each in group}
        assert [each.part for each in group] == list(PARTS)
        assert sets["LG-HQ-inv"].chosen == sets["LG-HQ"].chosen
        assert sets["LG-HQ-inv"].rejected == sets["SG-HQ"].rejected
        assert sets["SG-HQ-inv"].chosen == sets["SG-HQ"].chosen
        assert sets["SG-HQ-inv"].rejected == sets["SG-LQ"].rejected
        assert all(each.gap > 0 for each in group)
    left_out = account.skipped["prompt left out to match the gap means"]
    assert left_out + len(groups) == len(rows)
    assert len(groups) > 100


@pytest.mark.parametrize("scores", [[], [1.0], [1.0] * 6, [float("nan")] * 6, [1.0, 2.0, 3.0]])
def test_gap_sets_from_nothing_are_refused(scores):
    with pytest.raises(InputError, match="four usable responses"):
        list(gap_quality_pairs(lambda: [candidates("p", scores)], account=Account()))


@pytest.mark.parametrize("settings", [{"small_gap": 9.0, "large_gap": 1.0}, {"tolerance": -1.0}])
def test_targets_out_of_order_are_refused(settings):
    with pytest.raises(InputError, match="small_gap"):
        list(gap_quality_pairs(many, account=Account(), **settings))


def test_means_that_cannot_be_matched_are_refused():
    gaps = np.array([[5.0, 1.0, 1.0, 1.0]] * 3)
    with pytest.raises(InputError, match="raise tolerance"):
        match_means(gaps, 0.1)


@given(st.integers(0, 10_000))
def test_matching_leaves_out_no_more_than_it_must(seed):
    draw = np.random.default_rng(seed)
    gaps = draw.normal([3.2, 3.0, 1.0, 1.0], 1.0, size=(60, 4))
    kept = match_means(gaps, 0.15)
    means = gaps[kept].mean(0)
    assert abs(means[0] - means[1]) <= 0.15
    assert abs(means[2] - means[3]) <= 0.15
    if abs(gaps.mean(0) @ [1, -1, 0, 0]) <= 0.15 >= abs(gaps.mean(0) @ [0, 0, 1, -1]):
        assert kept.all()
