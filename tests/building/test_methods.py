import json
import math
import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, strategies as st

from prefstage.building.account import Account, Built
from prefstage.building.answers import (
    Measured,
    PromptTally,
    least_clear,
    per_prompt_pairs,
    principled_pairs,
    read_measurement,
    sharpen,
)
from prefstage.building.build import build_pairs
from prefstage.building.choosing import rejection_sample
from prefstage.building.recipe import PRINCIPLES, Budget
from prefstage.building.relabelling import (
    aspect_margins,
    least_divergent,
    preference_divergence,
    relabelled,
    reward_augmented,
)
from prefstage.core.errors import InputError
from prefstage.core.ledger import Ledger
from prefstage.data.records import Candidates, prompt_id_of
from prefstage.data.sets import CandidateSet, PairSet
from prefstage.judging.base import TIE, UNDECIDED, Judgment
from tests.building.making import (
    CountingRewards,
    PairwiseJudge,
    ScriptedPolicy,
    candidates,
    pair,
    prompt_of,
    text_of,
)


def flat(groups):
    return [each for group in groups for each in group]


# --- Relabelling ---------------------------------------------------------------------------


def test_relabelling_flips_and_counts_and_leaves_ties_out():
    pairs = [pair(f"p{n}", f"w{n}", f"l{n}", source_chosen="A", agreement=0.9) for n in range(4)]
    rewards = {"w0": 2.0, "l0": 1.0, "w1": 0.0, "l1": 3.0, "w2": 1.0, "l2": 1.0, "w3": 5, "l3": 4}
    account = Account()
    made = flat(relabelled(pairs, CountingRewards(rewards), account=account))
    assert [text_of(each.pair.chosen) for each in made] == ["w0", "l1", "w3"]
    assert [each.label_flipped for each in made] == [False, True, False]
    assert made[1].pair.source_rejected == "A"
    assert made[1].pair.agreement is None
    assert (made[1].pair.score_chosen, made[1].pair.score_rejected, made[1].gap) == (3.0, 0.0, 3.0)
    assert account.figures == {"labels_kept": 2, "labels_flipped": 1}
    assert account.skipped == {"pair that the judge finds equal": 1}


def test_relabelling_by_a_pairwise_judge():
    rows = [pair(f"p{n}", f"w{n}") for n in range(3)]
    judge = PairwiseJudge({"w0": Judgment(0.2), "w1": UNDECIDED, "w2": TIE})
    account = Account()
    (made,) = flat(relabelled(rows, judge, account=account, accept_reversal=True))
    assert (text_of(made.pair.chosen), made.pair.score_chosen) == ("bad", 0.8)
    assert sum(account.skipped.values()) == 2


# --- Rejection sampling --------------------------------------------------------------------


def test_rejection_sampling_accepts_by_reward():
    draws = [
        rejection_sample([0.0, 1.0], count=1, beta=0.5, draw=random.Random(seed))[0]
        for seed in range(4000)
    ]
    low = math.exp(-1 / 0.5)  # y_0 is accepted first with this probability, then y_1 surely
    assert np.mean(np.array(draws) == 0) == pytest.approx(low, abs=0.02)


@given(st.lists(st.floats(-3, 3), max_size=64), st.integers(1, 80), st.floats(0.01, 100))
def test_rejection_sampling_accepts_as_many_as_asked(scores, count, beta):
    found = rejection_sample(scores, count=count, beta=beta, draw=random.Random(0))
    assert len(found) == len(set(found)) == min(count, len(scores))


@pytest.mark.parametrize("settings", [{"beta": 0.0}, {"count": 0}, {"beta": math.nan}])
def test_rejection_sampling_refuses(settings):
    with pytest.raises(InputError, match="count >= 1"):
        rejection_sample([1.0], draw=random.Random(0), **settings)


# --- Reward-augmented pairs ----------------------------------------------------------------


def test_each_pair_is_taken_twice_with_its_goal():
    built = Built(pair("p", "w", "l", score_chosen=8.0, score_rejected=3.0), "keep", "keep")
    high, low = flat(reward_augmented([[built]], account=Account()))
    assert (text_of(high.pair.chosen), text_of(low.pair.chosen)) == ("w", "l")
    assert high.pair.prompt[0]["role"] == "system"
    assert "8.0" in high.pair.prompt[0]["content"]
    assert "3.0" in low.pair.prompt[0]["content"]
    assert (high.pair.score_chosen, high.pair.score_rejected, high.gap) == (0.0, -25.0, 25.0)
    assert high.pair.prompt_id == prompt_id_of(high.pair.prompt) != low.pair.prompt_id
    assert high.origin_prompt_id == low.origin_prompt_id == built.pair.prompt_id


def test_pairs_without_scores_or_with_like_ones_are_counted():
    account = Account()
    rows = [pair("a"), pair("b", score_chosen=1.01, score_rejected=1.0)]
    assert flat(reward_augmented([[Built(r, "k", "k")] for r in rows], account=account)) == []
    assert sum(account.skipped.values()) == 2
    with pytest.raises(InputError, match=r"\{score\}"):
        flat(reward_augmented([], template="no place", account=account))


# --- Preference divergence -----------------------------------------------------------------


def test_divergence_by_hand():
    margins = np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])
    assert preference_divergence(margins).tolist() == [-1.0, 1.0, -1.0]


@given(st.integers(0, 10_000))
def test_divergence_ignores_the_labels(seed):
    margins = np.random.default_rng(seed).normal(size=(20, 3))
    assert preference_divergence(-margins) == pytest.approx(preference_divergence(margins))


def test_the_pairs_that_aspects_agree_about_are_kept_and_labelled_by_them():
    pairs = [pair(f"p{n}", f"w{n}", f"l{n}") for n in range(4)]
    one = {"w0": 3.0, "l0": 0.0, "w1": 0.0, "l1": 2.0, "w2": 2.0, "l2": 0.0, "w3": 1.0, "l3": 0.0}
    two = {"w0": 3.0, "l0": 0.0, "w1": 0.0, "l1": 2.0, "w2": 0.0, "l2": 2.0, "w3": 0.0, "l3": 1.0}
    judges = {"one": CountingRewards(one), "two": CountingRewards(two)}
    margins, account = aspect_margins(pairs, judges), Account()
    how = {"share": 0.5, "judge_name": "both", "account": account}
    with pytest.raises(InputError, match=r"1 of 2 labels reversed.* \(both\)"):
        least_divergent(pairs, margins, **how)
    made = flat(least_divergent(pairs, margins, accept_reversal=True, **how))
    assert [text_of(each.pair.chosen) for each in made] == ["w0", "l1"]
    assert account.figures["labels_flipped"] == 1
    assert account.skipped["pair that the aspects disagree about"] == 2
    with pytest.raises(InputError, match="at least two aspects"):
        preference_divergence(margins[:, :1])
    with pytest.raises(InputError, match="no finite numbers"):
        preference_divergence(margins * np.nan)


# --- Principles ----------------------------------------------------------------------------


def test_principled_pairs_keep_the_prompt_and_remember_answers():
    rows = [Candidates(prompt_id_of(prompt_of(n)), prompt_of(n), (), (), ()) for n in "ab"]
    account, policy, ledger = Account(), ScriptedPolicy(), Ledger(None)
    made = flat(principled_pairs(rows, policy, ledger=ledger, account=account))
    assert [each.pair.prompt for each in made] == [row.prompt for row in rows]
    good = {each.good: each.bad for each in PRINCIPLES}
    for each in made:
        chosen, rejected = (
            text_of(side).removesuffix(": own 0") for side in (each.pair.chosen, each.pair.rejected)
        )
        assert good[chosen] == rejected
    again = ScriptedPolicy()
    flat(principled_pairs(rows, again, ledger=ledger, account=Account()))
    assert again.asked == []


def test_principled_pairs_without_answers_are_counted():
    account, rows = Account(), [Candidates("i", prompt_of("a"), (), (), ())]
    policy = ScriptedPolicy(empty=True)
    assert flat(principled_pairs(rows, policy, ledger=Ledger(None), account=account)) == []
    assert account.skipped["prompt without both answers"] == 1


# --- Per-prompt stage ----------------------------------------------------------------------


def groups_for(names, source):
    return [[Built(pair(name, f"{source} {name}"), "m", "m")] for name in names]


def test_each_prompt_takes_the_side_of_its_own_votes():
    ids = {name: prompt_id_of(prompt_of(name)) for name in ("on", "off", "even", "new", "lone")}
    tallies = {ids["on"]: PromptTally(3, 1), ids["off"]: PromptTally(1, 3)}
    tallies |= {ids["even"]: PromptTally(2, 2), ids["lone"]: PromptTally(0, 4)}
    measured, account = Measured(tallies, "on", "fine-tuning"), Account()
    own = groups_for(("on", "off", "even", "new", "lone"), "own")
    theirs = groups_for(("on", "off", "even", "new"), "their")
    made = flat(per_prompt_pairs(own, theirs, measured, account=account))
    taken = [text_of(each.pair.chosen) for each in made]
    assert taken == ["own on", "their off", "own even", "own new", "own lone"]
    assert account.figures == {
        "on_policy: own votes": 1,
        "off_policy: own votes": 1,
        "on_policy: even votes": 1,
        "on_policy: not measured": 1,
        "on_policy: other side lacks a pair": 1,
    }


@pytest.mark.parametrize(
    ("stage", "votes", "side"),
    [
        ("injection", (9, 1), "off"),
        ("fine-tuning", (1, 9), "on"),
        ("undecided", (4, 5), "off"),
        ("undecided", (5, 5), "on"),
    ],
)
def test_the_overall_side_is_that_of_the_stage(tmp_path, stage, votes, side):
    result = {"stage": stage, "votes_on": votes[0], "votes_off": votes[1]}
    (tmp_path / "stage.json").write_text(json.dumps(result), encoding="utf-8")
    row = {"prompt_id": "p", "votes_on": 1, "votes_off": 2, "ties": 1, "undecided": 0}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "prompts.parquet")
    measured = read_measurement(tmp_path)
    assert measured.overall == side
    assert measured.tallies == {"p": PromptTally(1.5, 2.5)}
    with pytest.raises(InputError, match="prefstage measure"):
        read_measurement(tmp_path / "none")


def test_the_least_clear_prompts_are_asked_first():
    tallies = {"clear": PromptTally(9, 0), "even": PromptTally(2, 2), "new": PromptTally(0, 0)}
    tallies["nearly"] = PromptTally(3, 1)
    found = least_clear(tallies, count=9, clear_at=2.0, seed=0)
    assert found == ["new", "even", "nearly"]


@pytest.mark.parametrize("limit", [{"tokens": 31}, {"judgments": 20}])
def test_the_budget_is_spent_where_votes_are_even(limit):
    rows = [candidates(str(n), [None, None]) for n in range(10)]
    off = {row.prompt_id: row for row in rows}
    rewards = {text: 0.0 for row in rows for text in row.responses}
    rewards |= {f"{n}: own {i}": 1.0 for n in range(10) for i in range(9)}
    clear = rows[0].prompt_id
    measured, account = Measured({clear: PromptTally(9, 0)}, "off", "injection"), Account()
    policy = ScriptedPolicy()
    arguments = {"judge": CountingRewards(rewards), "ledger": Ledger(None)}
    budget = Budget(prompts_a_round=4, **limit)
    after, own = sharpen(measured, off, sampler=policy, budget=budget, account=account, **arguments)
    assert clear not in own
    assert after.tallies[clear] == PromptTally(9, 0)
    figures = account.figures
    if "judgments" in limit:
        assert figures["budget_judgments"] == 20
    else:
        assert 31 <= figures["budget_tokens"] < 31 + 4 * 3
    assert sum(len(row.responses) for row in own.values()) == figures["budget_responses"]
    assert all(
        after.tallies[prompt_id].on == 2 * len(own[prompt_id].responses) for prompt_id in own
    )
    again = ScriptedPolicy()
    resumed, _ = sharpen(
        measured, off, sampler=again, budget=budget, account=Account(), **arguments
    )
    assert again.asked == []
    assert resumed == after


def test_a_budget_without_a_limit_is_refused():
    with pytest.raises(ValueError, match="tokens or judgments"):
        Budget()


# --- Every method from nothing -------------------------------------------------------------

FROM_CANDIDATES = ["best-vs-worst", "best-vs-random", "best-vs-second", "all-pairs", "tiers"]
FROM_CANDIDATES += ["rejection-sampling", "gap-quality", "max-gap"]


@pytest.mark.parametrize("method", FROM_CANDIDATES)
def test_recipes_without_a_pair_say_why(tmp_path, method):
    rows = [candidates("equal", [1.0] * 6), candidates("one", [2.0])]
    CandidateSet.of(rows).save(tmp_path / "c.parquet")
    settings = {"name": method} | ({"min_gap": 1.0} if method == "max-gap" else {})
    with pytest.raises(InputError, match=r"(no pair from 2 rows)|(four usable responses)"):
        build_pairs({"candidates": str(tmp_path / "c.parquet"), "method": settings})


def test_pairs_that_all_tie_say_why(tmp_path):
    PairSet.of([pair("p")]).save(tmp_path / "p.parquet")
    recipe = {"pairs": str(tmp_path / "p.parquet"), "judge": "given", "method": "relabel"}
    with pytest.raises(InputError, match="1 x pair that the judge finds equal"):
        build_pairs(recipe, judge=CountingRewards({"good": 1.0, "bad": 1.0}))


def test_on_policy_pairs_are_of_the_policy_alone(tmp_path):
    rows = [pair(f"p{n}") for n in range(5)]
    PairSet.of(rows).save(tmp_path / "p.parquet")
    rewards = {f"p{n}: own {i}": float(i) for n in range(5) for i in range(3)}
    recipe = {"pairs": str(tmp_path / "p.parquet"), "judge": "given", "policy": "given"}
    recipe["method"] = {"name": "on-policy", "answers": 3}
    made = build_pairs(recipe, judge=CountingRewards(rewards), sampler=ScriptedPolicy())
    for each in made.train:
        assert (each.source_chosen, each.source_rejected) == ("scripted", "scripted")
        assert (each.score_chosen, each.score_rejected) == (2.0, 0.0)
