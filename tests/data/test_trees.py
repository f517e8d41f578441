"""OpenAssistant's trees and StackExchange's answers, as prompts with ranked replies."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from prefstage.core.errors import DataError
from prefstage.data import CandidateSet, load_candidates, load_conversations, load_pairs
from tests.data.dataset_rows import write_rows

CASES = Path(__file__).parent / "cases"


def message(name: str, parent: str | None, text: Any, **more: Any) -> dict[str, Any]:
    role = "prompter" if str(text).endswith("?") else "assistant"
    row = {"message_id": name, "parent_id": parent, "role": role, "message_tree_id": "1"}
    return {**row, "text": text, "rank": None, **more}


FLAT = [
    message("1", None, "Why?"),
    message("2", "1", "Worst", rank=2),
    message("3", "1", "Best", rank=0),
    message("4", "1", "Unranked"),
    message("5", "3", "And?"),
    message("6", "5", "Thus", rank=0),
    message("7", "3", "Nobody answers?"),
    message("8", "2", "Gone?", deleted=True),
    message("9", "8", "Under what is gone"),
]


def nested(name: str) -> dict[str, Any]:
    row = next(row for row in FLAT if row["message_id"] == name)
    replies = [nested(r["message_id"]) for r in FLAT if r["parent_id"] == name]
    return {key: row[key] for key in row if key != "parent_id"} | {"replies": replies}


def said(candidates: CandidateSet) -> list[tuple[list[str], tuple[str, ...], tuple[Any, ...]]]:
    return [([m["content"] for m in row.prompt], row.responses, row.scores) for row in candidates]


EXPECTED = [
    (["Why?"], ("Best", "Worst", "Unranked"), (0.0, -2.0, None)),
    (["Why?", "Best", "And?"], ("Thus",), (0.0,)),
]


def test_the_case() -> None:
    candidates = load_candidates(CASES / "oasst_tree.jsonl")
    assert said(candidates) == [(["Why is the sky blue?"], ("Rayleigh", "Paint"), (0.0, -1.0))]
    assert candidates.report.format == "openassistant-messages"
    assert candidates.report.unused_columns == ("lang",)


def test_every_user_turn_with_replies_is_a_prompt_whatever_the_rows_order(tmp_path: Path) -> None:
    rows = list(FLAT)
    for seed in range(5):
        loaded = load_candidates(write_rows(tmp_path / "a.jsonl", rows))
        assert sorted(said(loaded)) == sorted(EXPECTED) if seed else said(loaded) == EXPECTED
        roles = [[m["role"] for m in row.prompt] for row in loaded]
        assert ["user", "assistant", "user"] in roles
        random.Random(seed).shuffle(rows)
    assert (
        "9 messages of 1 trees hold 2 prompts; 1 user turns that nobody answers left out; "
        "2 deleted messages with what follows them left out"
    ) in loaded.report.notes


def test_nested_trees_are_the_same(tmp_path: Path) -> None:
    tree = {"message_tree_id": "1", "tree_state": "ready", "prompt": nested("1")}
    path = write_rows(tmp_path / "a.jsonl", [tree])
    candidates = load_candidates(path)
    assert said(candidates) == EXPECTED
    assert candidates.report.format == "openassistant-trees"
    assert candidates.report.unused_columns == ("tree_state",)
    assert [row.responses for row in load_candidates(path, streaming=True)] == [
        responses for _, responses, _ in EXPECTED
    ]


@pytest.mark.parametrize(
    ("bad", "what"),
    [
        (message("x", "nobody", "A"), "field 'parent_id': saw 'nobody', no message read"),
        (message("3", "1", "A"), "field 'message_id': saw '3', as in row 3"),
        (message("x", "1", None), "field 'text': saw nothing"),
        (message("x", "1", "A", role="narrator"), "'narrator'"),
        (message("x", "1", "A", rank="best"), "field 'rank': saw 'best'"),
        (message("x", "x", "A"), "field 'parent_id': saw 'x', which leads to no root"),
    ],
)
def test_bad_messages_are_bad_rows_and_can_be_put_aside(
    tmp_path: Path, bad: dict[str, Any], what: str
) -> None:
    path = write_rows(tmp_path / "a.jsonl", [*FLAT, bad])
    with pytest.raises(DataError) as caught:
        load_candidates(path)
    assert f"a.jsonl row {len(FLAT) + 1}" in str(caught.value)
    assert what in str(caught.value)
    aside = tmp_path / "aside.jsonl"
    kept = load_candidates(path, on_bad_row="quarantine", quarantine_file=aside)
    assert said(kept) == EXPECTED
    assert json.loads(aside.read_text())["raw"] == bad


def test_a_broken_nested_tree_is_named_by_its_path(tmp_path: Path) -> None:
    tree = {"message_tree_id": "1", "prompt": nested("1")}
    tree["prompt"]["replies"][0]["replies"] = ["Hi"]
    with pytest.raises(DataError, match=r"field 'prompt\.replies\[0\]\.replies\[0\]': saw 'Hi'"):
        load_candidates(write_rows(tmp_path / "a.jsonl", [tree]))


def test_what_needs_other_loaders_names_them() -> None:
    for name in ("oasst_tree.jsonl", "stackexchange.jsonl"):
        with pytest.raises(DataError, match=r"load_candidates.*prefstage build"):
            load_pairs(CASES / name)
        with pytest.raises(DataError, match="load it with load_candidates"):
            load_conversations(CASES / name)
    with pytest.raises(DataError, match="without streaming"):
        load_candidates(CASES / "oasst_tree.jsonl", streaming=True)


def test_stackexchange() -> None:
    candidates = load_candidates(CASES / "stackexchange.jsonl")
    assert [row.scores for row in candidates] == [(0.0, 1.0, 2.0)] * 4
    assert candidates[1].prompt == ({"role": "user", "content": "<p>How 1?</p>"},)
    assert candidates[1].responses[2] == "<p>Answer 2 of 1</p>"
    assert candidates.report.format == "stackexchange"
    assert candidates.report.unused_columns == ("qid", "date", "metadata")


@pytest.mark.parametrize(
    ("answers", "field"),
    [
        ([{"text": "a", "pm_score": 1}, "b"], "answers[1]"),
        ([{"text": "a", "pm_score": "many"}], "answers[0].pm_score"),
        ([{"text": "a", "pm_score": 1}, {"pm_score": 1}], "answers[1].text"),
    ],
)
def test_broken_answers_are_bad_rows(answers: Any, field: str) -> None:
    good = {"question": "Why?", "answers": [{"text": "a", "pm_score": 0}]}
    with pytest.raises(DataError) as caught:
        load_candidates([good, {**good, "answers": answers}])
    assert f"list row 2, field '{field}'" in str(caught.value)
