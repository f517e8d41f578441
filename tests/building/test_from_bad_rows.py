"""Every builder and every filter, given what it cannot use: counted and left out, or refused."""

import json
import math
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prefstage import judging
from prefstage.building.account import Account, Built
from prefstage.building.build import Materials, build_pairs, groups_of
from prefstage.building.filters import filtered
from prefstage.building.recipe import (
    METHODS,
    DecontaminationFilter,
    Filters,
    GapFilter,
    LengthFilter,
    NearDuplicateFilter,
    read_recipe,
)
from prefstage.building.relabelling import reward_augmented
from prefstage.core.errors import PrefstageError
from prefstage.core.ledger import Ledger
from prefstage.data.records import Candidates, prompt_id_of
from prefstage.data.sets import CandidateSet, PairSet
from prefstage.judging.base import Comparison, Judgment, judgment_of_rewards
from prefstage.sampling import Sampler
from prefstage.sampling.base import Sample
from tests.building.making import candidates, pair, prompt_of, text_of

BAD = "bad"
BAD_ID = prompt_id_of(prompt_of(BAD))
GOOD = [f"good {number}" for number in range(6)]
FAULTS = ("empty candidates", "all scores equal", "one response", "NaN score", "missing side")

SETTINGS = {
    "gap-quality": {"tolerance": 5.0},
    "max-gap": {"min_gap": 0.1},
    "mixing": {"share": 1.0, "answers": 3},
    "on-policy": {"answers": 3},
    "other-policy": {"answers": 3},
    "preference-divergence": {"aspects": {"one": "given", "two": "given"}, "share": 1.0},
    "rejection-sampling": {"accepted": 6},
}
BUILDERS = [*METHODS, "per-prompt, budget"]


class Judge(judging.Judge):
    """Longer is better; what it says of the bad prompt is its fault."""

    name = fingerprint = "longer"

    def __init__(self, fault: str) -> None:
        self.fault = fault

    def score(self, items):
        return [self._reward(str(prompt[-1]["content"]), text) for prompt, text in items]

    def compare(self, comparisons: list[Comparison]) -> list[Judgment]:
        found = [self.score([(c.prompt, c.a), (c.prompt, c.b)]) for c in comparisons]
        return [judgment_of_rewards(*each) for each in found]

    def _reward(self, prompt: str, text: str) -> float:
        if BAD in prompt and self.fault in ("all scores equal", "NaN score"):
            return 1.0 if self.fault == "all scores equal" else math.nan
        return float(len(text))


class Policy(Sampler):
    """Answers of different lengths; to the bad prompt as its fault has it."""

    name = fingerprint = "policy"

    def __init__(self, fault: str) -> None:
        self.fault = fault

    def sample(self, requests):
        for each in requests:
            told = " ".join(str(m["content"]) for m in each.prompt)
            text = f"{told}: own" + " more" * each.index
            if BAD in told and self.fault == "empty candidates":
                text = ""
            if BAD in told and self.fault == "one response":
                text = "the same"
            yield Sample(each.prompt_id, each.index, text, "stop", 3, 2)


def bad_candidates(fault: str) -> Candidates:
    scores = {
        "empty candidates": [],
        "all scores equal": [1.0] * 6,
        "one response": [1.0],
        "NaN score": [math.nan] * 6,
        "missing side": [1.0] * 6,
    }[fault]
    texts = ["only this"] + [" "] * 5 if fault == "missing side" else None
    return candidates(BAD, scores, texts)


def bad_pairs(fault: str) -> list:
    usual = pair(BAD, "a chosen text", "a rejected text")
    return {
        "empty candidates": [replace(usual, chosen=(), rejected=())],
        "all scores equal": [usual],
        "one response": [pair(BAD, "the same", "the same")],
        "NaN score": [replace(usual, score_chosen=math.nan, score_rejected=1.0)],
        "missing side": [replace(usual, rejected=())],
    }[fault]


def measurement(folder) -> str:
    result = {"stage": "fine-tuning", "votes_on": 9, "votes_off": 1}
    (folder / "stage.json").write_text(json.dumps(result), encoding="utf-8")
    rows = [
        {"prompt_id": prompt_id_of(prompt_of(name)), "votes_on": 2, "votes_off": 2, "ties": 0}
        for name in (*GOOD, BAD)
    ]
    rows = [{**row, "undecided": 0} for row in rows]
    pq.write_table(pa.Table.from_pylist(rows), folder / "prompts.parquet")
    own = [candidates(name, [None] * 3) for name in GOOD]
    CandidateSet.of(own).save(folder / "candidates.parquet")
    return str(folder)


def materials(builder: str, fault: str, folder) -> Materials:
    """A builder with good rows and a bad one in memory, past all checks of readers."""
    name = builder.split(",", maxsplit=1)[0]
    kind = METHODS[name]
    settings = dict(SETTINGS.get(name, {}))
    if name == "per-prompt":
        settings["measurement"] = measurement(folder)
        settings |= {"budget": {"judgments": 40}} if builder != name else {}
    judge = kind.judge == "needed"
    policy = kind.policy == "needed" or builder != name
    takes = "candidates" if kind.inputs == ("candidates",) else "pairs"
    recipe = {takes: "given", "method": {"name": name, **settings}}
    recipe |= ({"judge": "given"} if judge else {}) | ({"policy": "given"} if policy else {})
    rows = [candidates(each, [6.0, 5.1, 4.0, 3.1, 2.0, 0.5]) for each in GOOD]
    pairs = [pair(each, "a longer chosen text", "short") for each in GOOD]
    return Materials(
        read_recipe(recipe),
        Account(),
        Ledger(None),
        CandidateSet.of([*rows, bad_candidates(fault)]) if takes == "candidates" else None,
        PairSet.of([*pairs, *bad_pairs(fault)]) if takes == "pairs" else None,
        Judge(fault) if judge else None,
        Policy(fault) if policy else None,
        {"one": Judge(fault), "two": Judge(fault)} if name == "preference-divergence" else {},
    )


# What is no fault to a builder: the policy's own answers do not care for a pair's side or score,
# `keep` asks nobody for scores, and Algorithm 1 puts an own answer that is no better second.
OWN = ("mixing", "on-policy", "other-policy", "principled", "per-prompt", "per-prompt, budget")
HARMLESS = {("keep", "all scores equal"), ("mixing", "all scores equal")}
HARMLESS |= {("principled", "all scores equal"), ("principled", "NaN score")}
HARMLESS |= {(name, "missing side") for name in ("on-policy", "other-policy", "principled")}
HARMLESS |= {("mixing", "one response")}
CASES = [(builder, fault) for builder in BUILDERS for fault in FAULTS]


def build(builder: str, fault: str, folder):
    given = materials(builder, fault, folder)
    return given.account, [each for group in groups_of(given) for each in group]


@pytest.mark.parametrize(("builder", "fault"), CASES)
def test_the_good_rows_are_built_and_every_pair_is_sound(builder, fault, tmp_path):
    _, built = build(builder, fault, tmp_path)
    good = {each.pair.prompt_id for each in built} - {BAD_ID}
    assert good == {prompt_id_of(prompt_of(name)) for name in GOOD}
    for each in built:
        texts = [text_of(side) for side in (each.pair.chosen, each.pair.rejected)]
        assert texts[0] != texts[1]
        assert all(text.strip() for text in texts)
        assert each.gap is None or (math.isfinite(each.gap) and each.gap >= 0)
        assert each.gap != 0 or builder == "mixing"


@pytest.mark.parametrize(("builder", "fault"), [case for case in CASES if case not in HARMLESS])
def test_the_bad_row_makes_no_pair_and_is_counted(builder, fault, tmp_path):
    account, built = build(builder, fault, tmp_path)
    assert BAD_ID not in {each.pair.prompt_id for each in built}
    assert sum(account.skipped.values()) >= 1
    assert any(BAD_ID in each for each in account.examples.values()) or builder == "principled"


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("takes", ["candidates", "pairs"])
def test_a_recipe_of_bad_rows_alone_is_one_clear_line(takes, fault, tmp_path):
    made = CandidateSet.of([bad_candidates(fault)]) if takes == "candidates" else None
    made = made or PairSet.of(bad_pairs(fault))
    made.save(tmp_path / "rows.parquet")
    method = "best-vs-worst" if takes == "candidates" else "relabel"
    recipe = {takes: str(tmp_path / "rows.parquet"), "method": method}
    with pytest.raises(PrefstageError) as caught:
        build_pairs(recipe | ({"judge": "given"} if takes == "pairs" else {}), judge=Judge(fault))
    assert "\n" not in str(caught.value)


# --- Filters, and reward-augmented pairs ---------------------------------------------------

NEAR = NearDuplicateFilter()
FILTERS = {
    "length": Filters(length=LengthFilter(max_ratio=100)),
    "gap": Filters(gap=GapFilter(minimum=0.1)),
    "agreement": Filters(agreement=0.6),
    "language": Filters(language=("en",)),
    "duplicates": Filters(duplicates=True),
    "near_duplicates": Filters(near_duplicates=NEAR),
    "decontaminate": None,
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", FILTERS)
def test_filters_keep_or_count_what_they_cannot_read(name, fault, tmp_path):
    filters = FILTERS[name]
    if filters is None:
        file = tmp_path / "evaluation.jsonl"
        file.write_text(json.dumps({"prompt": "one two three"}) + "\n", encoding="utf-8")
        filters = Filters(decontaminate=DecontaminationFilter(evaluation=(str(file),)))
    gap = {"all scores equal": 0.0, "NaN score": math.nan}.get(fault)
    groups = [[Built(each, "m", "m", gap=gap)] for each in bad_pairs(fault)]
    groups += [[]] if fault == "empty candidates" else []
    account = Account()
    kept = [each for group in filtered(groups, filters, account=account) for each in group]
    assert len(kept) + sum(account.skipped.values()) == len([g for g in groups if g])
    if name in ("gap", "agreement"):
        assert kept == []  # unknown, equal or unreadable is not enough


@pytest.mark.parametrize("fault", FAULTS)
def test_reward_augmented_pairs_need_two_different_readable_scores(fault):
    account = Account()
    groups = [[Built(each, "m", "m")] for each in bad_pairs(fault)]
    assert list(reward_augmented(groups, account=account)) == []
    assert sum(account.skipped.values()) == 1
