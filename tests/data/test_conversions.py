"""Pairs to candidates: grouped by prompt, nothing lost, repeats counted."""

from typing import Any

import pytest

from prefstage.core.errors import DataError
from prefstage.data import Candidates, Pair, PairSet, pairs_to_candidates, prompt_id_of
from prefstage.data.records import Generation, generation_of, response_message

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


def sampled(text: str, thought: str | None, *ids: int) -> Generation:
    return Generation(thought, ids, "tokenizer" if ids else "")


def test_thoughts_and_tokens_of_responses_go_with_them() -> None:
    first, second = sampled("A", "hm", 1, 2), sampled("B", None, 3)
    good, bad = response_message("A", first), response_message("B", second)
    rows = [
        Pair(prompt_id_of(ASKED), ASKED, (good,), (bad,)),
        pair("C", "A"),  # the same answer, by somebody who did not say how
    ]
    (row,) = pairs_to_candidates(PairSet.of(rows))
    assert row.responses == ("A", "B", "C")
    assert row.generations == (first, second, None)
    assert row.messages() == [good, bad, response_message("C")]


def test_what_was_generated_is_found_whichever_row_has_it() -> None:
    first = sampled("A", "hm", 1, 2)
    rows = [
        pair("A", "B"),
        Pair(prompt_id_of(ASKED), ASKED, (response_message("A", first),), pair("A", "C").rejected),
    ]
    (row,) = pairs_to_candidates(PairSet.of(rows))
    assert row.responses == ("A", "B", "C")
    assert row.generations == (first, None, None)


def test_pairs_that_nobody_sampled_have_no_generations() -> None:
    (row,) = pairs_to_candidates(PairSet.of([pair("A", "B")]))
    assert row.generations == ()


def test_some_responses_of_candidates_keep_what_is_known_of_them() -> None:
    how = (sampled("A", "a", 1), None, sampled("C", None, 3))
    row = Candidates("p", ASKED, ("A", "B", "C"), ("x", None, "z"), (1.0, 2.0, None), how)
    assert row.only([2, 0]) == Candidates(
        "p", ASKED, ("C", "A"), ("z", "x"), (None, 1.0), (how[2], how[0])
    )
    assert row.only([1]).generations == ()
    assert row.only([]).responses == ()


@pytest.mark.parametrize(
    "how", [None, sampled("A", "hm"), sampled("A", None, 1, 2), sampled("A", "hm", 1, 2)]
)
def test_a_message_says_how_it_was_generated(how: Generation | None) -> None:
    assert generation_of(response_message("A", how)) == how
