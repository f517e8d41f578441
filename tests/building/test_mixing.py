import math
from dataclasses import replace

import pytest
from hypothesis import given, strategies as st

from prefstage.building.account import Account
from prefstage.building.build import build_pairs
from prefstage.building.mixing import draw_prompts, mixed_pairs
from prefstage.building.recipe import Recipe
from prefstage.data.records import prompt_id_of
from prefstage.data.sets import CandidateSet, PairSet
from prefstage.judging import Judge
from prefstage.judging.base import Judgment
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
        found[text_of(each.rejected)] = float(number % 5) - 1.5
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
            # Kept, and scored by the same judge: the dataset's 9.0 is on another scale.
            known = [rewards[text_of(side)] for side in (before.chosen, before.rejected)]
            scored = {"score_chosen": known[0], "score_rejected": known[1]}
            assert after.pair == replace(before, **scored)
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
    assert len(judge.asked) == len(set(judge.asked)) == 30 * (k + 1) + 30 * 2
    before = [rewards[text_of(each.chosen)] for each in pairs]
    after = [each.pair.score_chosen for each in mixed]
    assert all(new >= old for new, old in zip(after, before, strict=True))
    assert {each.judge for each in mixed} == {judge.name}


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
        judge=CountingRewards(rewards_for(pairs, 0)), sampler=ScriptedPolicy(empty=True),
    )  # fmt: skip
    assert [(p.chosen, p.rejected) for p in made.train] == [(p.chosen, p.rejected) for p in pairs]
    assert made.result["figures"]["drawn_pairs_kept_for_want_of_an_answer"] == 3
    assert made.result["left_out"] == {"empty answer of the policy": 6}


class Comparing(Judge):
    """Prefers the longer response, by comparison alone."""

    name = fingerprint = "longer"

    def compare(self, comparisons):
        return [Judgment(0.9 if len(c.a) > len(c.b) else 0.1) for c in comparisons]


def test_a_comparing_judges_scores_of_two_kinds_have_no_mean():
    pairs = [pair(f"p{n}", f"chosen {n}", f"no {n}", score_chosen=0.9) for n in range(20)]
    recipe = {"pairs": PairSet.of(pairs), "policy": ScriptedPolicy()}
    method = {"name": "mixing", "share": 0.5, "answers": 4}
    made = build_pairs({**recipe, "judge": Comparing(), "method": method})
    (statistics,) = made.statistics.values()
    assert (statistics.average_chosen, statistics.average_difference) == (None, None)
    assert any("two scales" in note for note in made.result["notes"])
    assert "Avg.Chs" not in made.card
    rewards = CountingRewards(rewards_for(pairs, 4))
    scored = build_pairs({**recipe, "judge": rewards, "method": method})
    (statistics,) = scored.statistics.values()
    base = [rewards.rewards[text_of(each.chosen)] for each in pairs]
    assert statistics.average_chosen >= sum(base) / len(base)
    assert not any("two scales" in note for note in scored.result["notes"])
