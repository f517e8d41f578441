"""Pairs to candidates: grouped by prompt, nothing lost, repeats counted."""

from typing import Any

import pytest

from prefstage.core.errors import DataError
from prefstage.data import Pair, PairSet, pairs_to_candidates, prompt_id_of

ASKED = ({"role": "user", "content": "Why?"},)


def pair(chosen: str, rejected: str, *, asked: Any = ASKED, **optional: Any) -> Pair:
    good, bad = ({"role": "assistant", "content": text} for text in (chosen, rejected))
    return Pair(prompt_id_of(asked), tuple(asked), (good,), (bad,), **optional)


def test_responses_of_one_prompt_come_together_once() -> None:
    other = [{"role": "user", "content": "How?"}]
    rows = [pair("A", "B"), pair("A", "C", asked=other), pair("B", "C"), pair("A", "C")]
    sets = pairs_to_candidates(PairSet.of(rows))
    assert [row.responses for row in sets] == [("A", "B", "C"), ("A", "C")]
    assert sets.report.notes == [
        "4 rows grouped into 2 prompts",
        "3 repeated responses of a prompt merged",
    ]


def test_equal_texts_of_different_sources_or_scores_stay_apart() -> None:
    rows = [
        pair("A", "B", source_chosen="x", score_chosen=1.0),
        pair("A", "B", source_chosen="y", score_chosen=1.0),
        pair("A", "B", source_chosen="x", score_chosen=2.0, score_rejected=0.5),
        pair("A", "B", source_chosen="x"),
    ]
    (row,) = pairs_to_candidates(PairSet.of(rows))
    assert list(zip(row.responses, row.sources, row.scores, strict=True)) == [
        ("A", "x", 1.0),
        ("B", None, 0.5),
        ("A", "y", 1.0),
        ("A", "x", 2.0),
    ]


def test_the_pairs_keep_their_own_report() -> None:
    pairs = PairSet.of([pair("A", "B"), pair("A", "C")])
    pairs_to_candidates(pairs)
    assert pairs.report.notes == []


def test_tool_calls_without_text_are_no_candidates() -> None:
    call = ({"role": "assistant", "content": "", "tool_calls": [{"name": "add"}]},)
    row = Pair("id", ASKED, call, ({"role": "assistant", "content": "A"},))
    with pytest.raises(DataError, match="a tool call; expected a response of text alone"):
        pairs_to_candidates(PairSet.of([row]))
