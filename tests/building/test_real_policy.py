"""Builds with the real chat model and the small judge on real prompts; slow."""

from collections import Counter
from itertools import islice

import pytest

from prefstage.building.build import build_pairs
from prefstage.data import load_candidates, load_pairs
from prefstage.data.sets import CandidateSet, PairSet
from prefstage.judging import Judge, load_judge
from prefstage.measuring import measure_stage
from prefstage.measuring.settings import MeasureConfig
from prefstage.sampling import Sampler, load_sampler
from prefstage.sampling.base import SamplingConfig
from tests.building.making import text_of

pytestmark = pytest.mark.slow

PROMPTS = 12
SAMPLING = {"temperature": 0.6, "max_new_tokens": 24}


@pytest.fixture
def world(shared, chat_model, tmp_path):
    """Off-policy pairs of ten models' answers, and a recipe's policy and judge."""
    rows = load_candidates(
        shared / "data" / "alpacaeval_small.jsonl.gz",
        on_bad_row="quarantine",
        quarantine_file=tmp_path / "bad.jsonl",
    )
    CandidateSet.of(islice(rows, PROMPTS)).save(tmp_path / "rows.parquet")
    folder = shared / "models" / "small-judge"
    judge = f"reward:{folder}?max_length=256&max_prompt_tokens=96"
    best = {"candidates": str(tmp_path / "rows.parquet"), "judge": judge}
    pairs = build_pairs({**best, "method": "best-vs-random"}).train
    PairSet.of(list(pairs)).save(tmp_path / "pairs.parquet")
    recipe = {"pairs": str(tmp_path / "pairs.parquet"), "judge": judge}
    return recipe, {"policy": str(chat_model), "sampling": SAMPLING}


class CountedRewards(Judge):
    """A real reward model, with a count of how often each text was scored for each prompt."""

    def __init__(self, spec: str) -> None:
        self._judge = load_judge(spec)
        self.name, self.fingerprint = self._judge.name, self._judge.fingerprint
        self.asked: Counter = Counter()

    def score(self, items):
        self.asked.update((str(prompt), text) for prompt, text in items)
        return self._judge.score(items)

    def compare(self, comparisons):
        return self._judge.compare(comparisons)


class Mortal(Sampler):
    """A policy that is killed after some answers."""

    def __init__(self, policy, lives: int) -> None:
        self._policy, self.lives = policy, lives
        self.name, self.fingerprint = policy.name, policy.fingerprint
        self.answered: list[tuple[str, int]] = []

    def sample(self, requests):
        for each in self._policy.sample(requests):
            if self.lives == 0:
                raise KeyboardInterrupt
            self.lives -= 1
            self.answered.append((each.prompt_id, each.index))
            yield each


def test_mixing_resumes_judges_once_and_never_lowers_chosen(world, tmp_path):
    recipe, policy = world
    recipe = {**recipe, **policy, "method": {"name": "mixing", "share": 0.5, "answers": 4}}
    out, spec = tmp_path / "run", recipe["judge"]
    config = SamplingConfig(**SAMPLING)
    killed, whole = (Mortal(load_sampler(recipe["policy"], config), n) for n in (9, 10**6))
    with pytest.raises(KeyboardInterrupt):
        build_pairs(recipe, out=out, judge=CountedRewards(spec), sampler=killed)
    judge = CountedRewards(spec)
    made = build_pairs(recipe, out=out, judge=judge, sampler=whole)
    assert made.result["figures"]["prompts_drawn"] == PROMPTS // 2
    assert not set(killed.answered) & set(whole.answered)
    assert len(killed.answered) + len(whole.answered) == 4 * PROMPTS // 2
    assert set(judge.asked.values()) == {1}
    again = CountedRewards(spec)
    same = build_pairs(recipe, out=out, judge=again, sampler=Mortal(whole, 0))
    assert again.asked == Counter()
    assert list(same.train) == list(made.train)
    reward, changed = load_judge(spec), 0
    before = {each.prompt_id: each for each in load_pairs(recipe["pairs"])}
    for each in made.train:
        old = before[each.prompt_id]
        texts = [text_of(side) for side in (old.chosen, each.chosen, each.rejected)]
        theirs, chosen, rejected = reward.score([(each.prompt, text) for text in texts])
        assert chosen >= theirs
        if each != old:
            changed += 1
            assert chosen >= rejected
            assert text_of(old.chosen) in texts[1:]
    assert changed == PROMPTS // 2


def test_own_and_principled_pairs(world, tmp_path):
    recipe, policy = world
    own = {**recipe, **policy, "method": {"name": "on-policy", "answers": 3}}
    made = build_pairs(own, out=tmp_path / "own").train
    assert 0 < len(made) <= PROMPTS
    reward = load_judge(recipe["judge"])
    for each in made:
        high, low = reward.score([(each.prompt, text_of(s)) for s in (each.chosen, each.rejected)])
        assert high > low
        assert (high, low) == pytest.approx((each.score_chosen, each.score_rejected), abs=1e-4)
    unjudged = {name: value for name, value in recipe.items() if name != "judge"}
    principled = build_pairs({**unjudged, **policy, "method": "principled"}, out=tmp_path / "sso")
    assert 0 < len(principled.train) <= PROMPTS
    assert principled.result["figures"]["answers_sampled"] == 2 * PROMPTS
    prompts = {each.prompt_id: each.prompt for each in load_pairs(recipe["pairs"])}
    assert all(each.prompt == prompts[each.prompt_id] for each in principled.train)


def test_per_prompt_stage_with_and_without_a_budget(world, tmp_path):
    recipe, policy = world
    sampler = load_sampler(policy["policy"], SamplingConfig(**SAMPLING))
    pairs = load_pairs(recipe["pairs"])
    measure_stage(
        pairs,
        judge=load_judge(recipe["judge"]),
        sampler=sampler,
        config=MeasureConfig(all_prompts=True),
        out=tmp_path / "stage",
    )
    method = {"name": "per-prompt", "measurement": str(tmp_path / "stage")}
    plain = build_pairs({**recipe, "method": method}).result
    assert 0 < plain["pairs_built"] <= PROMPTS
    assert sum(count for name, count in plain["figures"].items() if ": " in name) == PROMPTS
    spent = {"budget": {"judgments": 20, "prompts_a_round": 4}}
    sharp = build_pairs(
        {**recipe, **policy, "method": method | spent}, out=tmp_path / "sharp", sampler=sampler
    ).result
    assert 0 < sharp["figures"]["budget_judgments"] <= 20
    assert sharp["figures"]["budget_tokens"] > 0
