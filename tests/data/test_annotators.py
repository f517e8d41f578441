"""Rows of several annotators on one pair: one pair, the share of their votes, and who voted."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prefstage.core.errors import DataError
from prefstage.data import load_candidates, load_conversations, load_pairs, load_unpaired
from prefstage.data.formats.fields import ANNOTATOR_NAMES
from prefstage.data.records import Vote
from tests.data.dataset_rows import GOOD, write_rows

CASES = Path(__file__).parent / "cases"


def voted(who: Any, *, for_good: bool = True, **more: Any) -> dict[str, Any]:
    sides = ("Good.", "Bad.") if for_good else ("Bad.", "Good.")
    return {**dict(zip(("chosen", "rejected"), sides, strict=True)), "prompt": "Why?", **more} | {
        "annotator": who
    }


def test_cross_annotations_become_pairs_with_shares() -> None:
    pairs = load_pairs(CASES / "cross_annotations.json")
    for_second = [
        pair.agreement
        if pair.chosen[0]["content"].startswith("Second")
        else 1 - (pair.agreement or 0)
        for pair in pairs
    ]
    assert for_second == [0.75, 0, 0.5, 0.75, 0, 0.5]
    assert all([vote.annotator for vote in pair.votes] == ["0", "1", "2", "3"] for pair in pairs)
    assert [vote.preference for vote in pairs[0].votes] == [1, 1, 1, 0]
    assert (pairs.report.rows_read, pairs.report.rows_kept, pairs.report.ties) == (24, 24, 2)
    assert any("24 rows of several annotators" in note for note in pairs.report.notes)
    assert any("became 6 pairs" in note for note in pairs.report.notes)
    assert "annotator_index" not in pairs.report.unused_columns


def test_annotators_reach_their_pairs() -> None:
    pairs = load_pairs(CASES / "annotators.jsonl")
    assert len(pairs) == 48
    assert {pair.annotator for pair in pairs} == {"a", "b"}
    assert all(pair.votes == () and pair.agreement is None for pair in pairs)


@pytest.mark.parametrize("name", ANNOTATOR_NAMES)
@pytest.mark.parametrize(("value", "read"), [("ann", "ann"), (7, "7"), (7.0, "7"), (" x ", "x")])
def test_every_spelling_is_read_in_every_format(name: str, value: Any, read: str) -> None:
    labelled = {"prompt": "q", "output_A": "a", "output_B": "b", "label": "A"}
    for row in (GOOD, labelled):
        assert load_pairs([{**row, name: value}])[0].annotator == read
        assert load_pairs([{**row, name: None}])[0].annotator is None
    assert load_pairs([{**GOOD, "who": "z"}], columns={"annotator": "who"})[0].annotator == "z"


@pytest.mark.parametrize("value", [True, 1.5, ["a"], {"id": 1}])
def test_an_annotator_that_is_no_name_is_a_bad_row(value: Any) -> None:
    with pytest.raises(DataError, match=r"field 'annotator'.*name or number"):
        load_pairs([voted(value)])


def test_the_majority_turns_the_pair_and_all_that_belongs_to_it() -> None:
    scored = {"score_chosen": 2, "score_rejected": 1, "source_chosen": "m", "source_rejected": "n"}
    other = {"score_chosen": 5, "score_rejected": 4, "source_chosen": "n", "source_rejected": "m"}
    rows = [
        voted("a", **scored),
        {"prompt": "How?", "chosen": "x", "rejected": "y", "annotator": "a"},
        voted("b", for_good=False, **other),
        voted("c", for_good=False, **other),
    ]
    merged, single = load_pairs(rows)
    assert single.annotator == "a"
    assert (merged.chosen[0]["content"], merged.rejected[0]["content"]) == ("Bad.", "Good.")
    assert merged.agreement == pytest.approx(2 / 3)
    assert merged.votes == (Vote("a", 0), Vote("b", 1), Vote("c", 1))
    assert (merged.source_chosen, merged.source_rejected) == ("n", "m")
    assert merged.score_chosen == pytest.approx((1 + 5 + 5) / 3)
    assert merged.score_rejected == pytest.approx((2 + 4 + 4) / 3)
    assert merged.annotator is None


def test_ties_count_half_and_a_half_keeps_the_first_order() -> None:
    rows = [voted("a"), voted("b", agreement=0.5), voted("c", for_good=False)]
    (pair,) = load_pairs(rows)
    assert (pair.agreement, pair.chosen[0]["content"]) == (0.5, "Good.")
    assert [vote.preference for vote in pair.votes] == [1, 0.5, 0]


def test_a_second_vote_of_an_annotator_counts_and_is_said() -> None:
    pairs = load_pairs([voted("a"), voted("a"), voted("b", for_good=False)])
    assert pairs[0].agreement == pytest.approx(2 / 3)
    assert any(note.startswith("1 votes of an annotator who had") for note in pairs.report.notes)


def test_rows_of_nobody_or_of_one_annotator_stay() -> None:
    assert len(load_pairs([GOOD, GOOD])) == 2
    assert len(load_pairs([voted("a"), voted("a")])) == 2
    assert len(load_pairs([voted("a"), voted("b"), voted(None)])) == 2
    other = {"source_chosen": "m", "source_rejected": "n"}
    assert len(load_pairs([voted("a"), voted("b", **other)])) == 2


def test_votes_are_stored_and_read_back(tmp_path: Path) -> None:
    pairs = load_pairs(CASES / "cross_annotations.json")
    for name in ("a.parquet", "a.jsonl", "a"):
        pairs.save(tmp_path / name)
        again = load_pairs(tmp_path / name)
        assert list(again) == list(pairs)
        assert again.fingerprint == pairs.fingerprint
        assert list(load_pairs(tmp_path / name, streaming=True)) == list(pairs)


@pytest.mark.parametrize("votes", ["x", [1], [{"annotator": "a", "preference": 2}], [{"a": 1}]])
def test_broken_votes_are_bad_rows(votes: Any) -> None:
    with pytest.raises(DataError, match=r"field 'votes'.*annotator, preference"):
        load_pairs([{**GOOD, "votes": votes}])


def test_other_loaders_see_the_merged_pairs() -> None:
    file = CASES / "cross_annotations.json"
    pairs = load_pairs(file)
    whole = [pair for pair in pairs if pair.agreement != 0.5]
    labelled = list(load_unpaired(file))
    assert [row.completion for row in labelled if row.label] == [pair.chosen for pair in whole]
    assert [row.completion for row in load_conversations(file)] == [pair.chosen for pair in whole]
    candidates = load_candidates(file)
    assert [len(row.responses) for row in candidates] == [2] * 6
    assert "annotator_index" in candidates.report.unused_columns


def test_a_stream_refuses_or_says_that_it_cannot_count_votes(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"several annotators labelled the same pair.*without"):
        load_pairs(CASES / "cross_annotations.json", streaming=True)
    stream = load_pairs(CASES / "annotators.jsonl", streaming=True)
    assert len(list(stream)) == 48
    assert any("without streaming to count their votes" in note for note in stream.report.notes)
    one = load_pairs(write_rows(tmp_path / "a.jsonl", [voted("a"), voted("a")]), streaming=True)
    assert len(list(one)) == 2
    assert one.report.notes == []


def test_swapping_twice_gives_the_pair() -> None:
    (pair,) = load_pairs([voted("a", score_chosen=1.0, source_rejected="n", agreement=0.75)])
    pair = replace(pair, votes=(Vote("a", 0.75),))
    assert pair.swapped().agreement == 0.25
    assert pair.swapped().swapped() == pair
