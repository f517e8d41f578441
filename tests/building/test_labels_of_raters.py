"""What raters and judges said of a pair, through every build: kept, dropped, or said anew."""

from dataclasses import replace
from pathlib import Path

import pytest

from prefstage.building import build_pairs
from prefstage.building.account import PROVENANCE, Built
from prefstage.building.filters import built_dataset
from prefstage.building.relabelling import exchanged
from prefstage.core.errors import ConfigError, InputError
from prefstage.data import Candidates, CandidateSet, Pair, PairSet, load_pairs, prompt_id_of
from prefstage.data.records import Vote
from prefstage.data.storage import from_row
from prefstage.judging import Judge
from prefstage.judging.base import (
    UNDECIDED,
    Comparison,
    Judgment,
    compare_by_rewards,
    judgment_of_rewards,
)

VOTES = (Vote("a", 1.0), Vote("b", 0.0), Vote("c", 1.0))


class ByLength(Judge):
    """A pointwise judge: a tenth of the letters."""

    name = fingerprint = "length"

    def score(self, items):
        return [len(text) / 10 for _, text in items]

    def compare(self, comparisons):
        return compare_by_rewards(self.score, comparisons)


class Compares(Judge):
    """A judge that compares: the longer one wins by .8; of equal lengths it says nothing."""

    name = fingerprint = "compares"

    def __init__(self) -> None:
        self.asked = 0

    def compare(self, comparisons: list[Comparison]) -> list[Judgment]:
        self.asked += len(comparisons)
        gaps = [len(c.a) - len(c.b) for c in comparisons]
        return [UNDECIDED if gap == 0 else Judgment(0.8 if gap > 0 else 0.2) for gap in gaps]


def pair(name: str, chosen: str = "a longer answer", rejected: str = "short", **known) -> Pair:
    prompt = ({"role": "user", "content": name},)
    sides = [({"role": "assistant", "content": text},) for text in (chosen, rejected)]
    return Pair(prompt_id_of(prompt), prompt, *sides, **known)


def saved(folder: Path, *pairs: Pair) -> str:
    PairSet.of(pairs).save(folder / "pairs.parquet")
    return str(folder / "pairs.parquet")


@pytest.mark.parametrize(("ties", "names"), [("leave-out", "xz"), ("keep", "xyz")])
def test_ties_of_the_raters_are_left_out_unless_asked_for(
    tmp_path: Path, ties: str, names: str
) -> None:
    rows = (pair("x", agreement=0.75), pair("y", agreement=0.5), pair("z"))
    made = build_pairs({"pairs": saved(tmp_path, *rows), "method": "keep", "ties": ties})
    assert "".join(each.prompt[0]["content"] for each in made.train) == names
    left_out = made.result["left_out"]
    assert left_out == ({} if ties == "keep" else {"tie of the raters (ties: keep keeps it)": 1})


def test_nothing_but_ties_is_one_line_with_the_cure(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"no pair from 1 rows.*1 x tie of the raters \(ties: keep"
    ):
        build_pairs({"pairs": saved(tmp_path, pair("x", agreement=0.5)), "method": "keep"})


def test_ties_have_no_effect_where_a_judge_labels(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'ties', which has no effect.*method relabel"):
        build_pairs(
            {"pairs": "p.jsonl", "method": "relabel", "judge": "table:t.jsonl", "ties": "keep"}
        )
    tied = saved(tmp_path, pair("x", agreement=0.5, annotator="a"))
    made = build_pairs({"pairs": tied, "method": "relabel", "judge": "table:t"}, judge=ByLength())
    assert [each.agreement for each in made.train] == [None]


@pytest.mark.parametrize("judge", [ByLength(), Compares()])
def test_a_judge_that_labels_takes_the_place_of_the_raters(tmp_path: Path, judge) -> None:
    known = {"agreement": 2 / 3, "annotator": "a", "votes": VOTES}
    rows = [pair("x", **known), pair("y", "short", "a longer answer", **known)]
    file = saved(tmp_path, *rows)
    recipe = {"pairs": file, "method": "relabel", "judge": "table:t", "accept_reversal": True}
    made = build_pairs(recipe, judge=judge)
    expected = judgment_of_rewards(1.5, 0.5).probability if isinstance(judge, ByLength) else 0.8
    for each in made.train:
        assert each.chosen[0]["content"] == "a longer answer"
        assert (each.agreement, each.annotator, each.votes) == (None, None, ())
        assert each.judge_probability == pytest.approx(expected)


def test_pairs_that_are_kept_keep_their_raters_and_judge(tmp_path: Path) -> None:
    known = {"agreement": 2 / 3, "annotator": "a", "votes": VOTES, "judge_probability": 0.3}
    built = Built(pair("x", **known), "keep", "keep")
    (row,) = built_dataset([built])
    assert Built(from_row(Pair, row), **{name: row[name] for name in PROVENANCE}) == built
    made = build_pairs({"pairs": saved(tmp_path, built.pair), "method": "keep"})
    made.train.save(tmp_path / "again.parquet")
    (read,) = load_pairs(tmp_path / "again.parquet")
    assert (read.agreement, read.judge_probability) == (2 / 3, 0.3)


def test_exchanged_sides_exchange_what_the_judge_said() -> None:
    turned = exchanged(pair("x", agreement=0.75, annotator="a", votes=VOTES, judge_probability=0.3))
    assert turned.judge_probability == pytest.approx(0.7)
    assert (turned.agreement, turned.annotator, turned.votes) == (None, None, ())
    assert exchanged(pair("x")).judge_probability is None


def candidates(folder: Path) -> str:
    prompt = ({"role": "user", "content": "x"},)
    texts = ("four", "a longer answer", "ten letters")
    row = Candidates(prompt_id_of(prompt), prompt, texts, (None,) * 3, (None,) * 3)
    CandidateSet.of([row]).save(folder / "candidates.parquet")
    return str(folder / "candidates.parquet")


@pytest.mark.parametrize("method", ["best-vs-worst", "best-vs-second", "all-pairs"])
def test_pairs_of_scored_answers_say_what_the_judge_thinks_of_the_two(
    tmp_path: Path, method: str
) -> None:
    recipe = {"candidates": candidates(tmp_path), "method": method, "judge": "table:t"}
    for each in build_pairs(recipe, judge=ByLength()).train:
        gap = each.score_chosen - each.score_rejected
        assert each.judge_probability == pytest.approx(judgment_of_rewards(gap, 0.0).probability)
    judge = Compares()
    for each in build_pairs(recipe, judge=judge).train:
        assert each.judge_probability == pytest.approx(0.8)
    assert judge.asked == 3  # each pair of answers once: nothing is asked again


def test_what_the_judge_cannot_decide_has_no_probability(tmp_path: Path) -> None:
    prompt = ({"role": "user", "content": "x"},)
    texts = ("aaaa", "bbbb", "a longer answer", "x")
    row = Candidates(prompt_id_of(prompt), prompt, texts, (None,) * 4, (None,) * 4)
    CandidateSet.of([row]).save(tmp_path / "c.parquet")
    recipe = {"candidates": str(tmp_path / "c.parquet"), "method": "all-pairs", "judge": "table:t"}
    found = {
        tuple(side[0]["content"] for side in (each.chosen, each.rejected)): each.judge_probability
        for each in build_pairs(recipe, judge=Compares()).train
    }
    assert all(value == pytest.approx(0.8) for value in found.values())
    assert ("aaaa", "bbbb") not in found


def test_an_augmented_pair_is_not_what_the_judge_judged(tmp_path: Path) -> None:
    recipe = {"pairs": saved(tmp_path, pair("x")), "method": "relabel", "judge": "t", "augment": {}}
    made = list(build_pairs(recipe, judge=ByLength()).train)
    assert [each.judge_probability for each in made] == [None, None]
    assert all(replace(each).agreement is None for each in made)
