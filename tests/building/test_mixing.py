import math

import pytest
from hypothesis import given, strategies as st

from prefstage.building.account import Account
from prefstage.building.answers import draw_prompts, mixed_pairs
from prefstage.building.build import build_pairs
from prefstage.building.recipe import Recipe
from prefstage.data.records import prompt_id_of
from prefstage.data.sets import CandidateSet, PairSet
from tests.building.making import (
    CountingRewards,
    ScriptedPolicy,
    candidates,
    pair,
    prompt_of,
    text_of,
)


@given(st.integers(1, 300), st.floats(0, 1))
def test_the_share_is_exact(count, share):
    ids = [prompt_id_of(prompt_of(str(number))) for number in range(count)]
    account = Account()
    is_drawn = draw_prompts([*ids, *ids], share=share, account=account)
    drawn = math.floor(share * count + 1e-9)
    assert account.figures == {"prompts": count, "prompts_drawn": drawn}
    assert sum(map(is_drawn, ids)) == drawn


def rewards_for(pairs, k):
    found = {}
    for number, each in enumerate(pairs):
        name = str(each.prompt[0]["content"])
        found[text_of(each.chosen)] = float(number % 5)
        found |= {f"{name}: own {i}": (number * 7 + i * 3) % 11 - 5.0 for i in range(k)}
    return found


def pairs_of(count):
    return [pair(f"p{n}", f"chosen {n}", f"rejected {n}", score_chosen=9.0) for n in range(count)]


def test_chosen_never_scores_less_than_before():
    pairs, k = pairs_of(60), 4
    rewards = rewards_for(pairs, k)
    answers = CandidateSet.of(
        candidates(str(e.prompt[0]["content"]), [None] * k,
                   [f"{e.prompt[0]['content']}: own {i}" for i in range(k)])
        for e in pairs
    )  # fmt: skip
    judge, account = CountingRewards(rewards), Account()
    is_drawn = draw_prompts([e.prompt_id for e in pairs], share=0.5, account=account)
    mixed = [
        each
        for group in mixed_pairs(pairs, answers, judge, is_drawn=is_drawn, account=account)
        for each in group
    ]
    for before, after in zip(pairs, mixed, strict=True):
        if not is_drawn(before.prompt_id):
            assert after.pair == before
            continue
        own = [rewards[f"{before.prompt[0]['content']}: own {i}"] for i in range(k)]
        theirs = rewards[text_of(before.chosen)]
        assert after.pair.score_chosen == max(theirs, *own)
        assert after.pair.score_rejected == min(theirs, max(own))
        expected = after.pair.rejected if max(own) > theirs else after.pair.chosen
        assert expected == before.chosen
    figures = account.figures
    assert figures["pairs_with_own_chosen"] + figures["pairs_with_own_rejected"] == 30
    assert figures["pairs_kept"] == 30
    assert len(judge.asked) == len(set(judge.asked)) == 30 * (k + 1)


def test_a_killed_build_goes_on_and_buys_nothing_twice(tmp_path):
    pairs = pairs_of(20)
    PairSet.of(pairs).save(tmp_path / "pairs.parquet")
    recipe = Recipe.model_validate(
        {
            "pairs": str(tmp_path / "pairs.parquet"),
            "judge": "given",
            "policy": "given",
            "method": {"name": "mixing", "share": 0.5, "answers": 4},
        }
    )
    rewards, out = rewards_for(pairs, 4), tmp_path / "run"
    killed, whole = ScriptedPolicy(dies_after=13), ScriptedPolicy()
    with pytest.raises(KeyboardInterrupt):
        build_pairs(recipe, out=out, judge=CountingRewards(rewards), sampler=killed)
    judge = CountingRewards(rewards)
    done = build_pairs(recipe, out=out, judge=judge, sampler=whole)
    assert len(killed.asked) == 13
    assert not set(killed.asked) & set(whole.asked)
    assert len(killed.asked) + len(whole.asked) == 40
    again = build_pairs(
        recipe, out=out, judge=(second := CountingRewards(rewards)), sampler=ScriptedPolicy()
    )
    assert second.asked == []
    assert list(again.train) == list(done.train)
    straight = build_pairs(
        recipe, out=tmp_path / "other", judge=CountingRewards(rewards), sampler=ScriptedPolicy()
    )
    assert list(straight.train) == list(done.train)


def test_drawn_prompts_without_an_answer_keep_their_pairs(tmp_path):
    pairs = pairs_of(10)
    PairSet.of(pairs).save(tmp_path / "pairs.parquet")
    made = build_pairs(
        {"pairs": str(tmp_path / "pairs.parquet"), "judge": "given", "policy": "given",
         "method": {"name": "mixing", "share": 0.3, "answers": 2}},
        judge=CountingRewards({}), sampler=ScriptedPolicy(empty=True),
    )  # fmt: skip
    assert list(made.train) == pairs
    assert made.result["figures"]["drawn_pairs_kept_for_want_of_an_answer"] == 3
    assert made.result["left_out"] == {"empty answer of the policy": 6}
