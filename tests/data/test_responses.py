"""Labelled responses and conversations: every format, bad rows, round trips."""

import json
from pathlib import Path
from typing import Any

import pytest

from prefstage.core.errors import DataError, InputError
from prefstage.data import load_conversations, load_pairs, load_unpaired
from prefstage.data.formats import CONVERSATIONS, UNPAIRED
from tests.data.dataset_rows import one_line, write_rows

USER = {"role": "user", "content": "Why?"}
GOOD = {"role": "assistant", "content": "Good."}
HELLO = {"role": "assistant", "content": "Hello"}
SYSTEM = {"role": "system", "content": "Be brief."}
TALK = [SYSTEM, {"role": "user", "content": "Hi"}, HELLO, USER, GOOD]
PAIR = {"prompt": "Why?", "chosen": "Good.", "rejected": "Bad."}

LABELLED: list[tuple[str, dict[str, Any], list[Any], bool]] = [
    ("trl-unpaired", {"prompt": "Why?", "completion": "Good.", "label": True}, [USER], True),
    ("trl-unpaired", {"prompt": "Why?", "completion": "Good.", "label": 0}, [USER], False),
    ("trl-unpaired", {"question": "Why?", "response": "Good.", "label": "true"}, [USER], True),
    ("trl-unpaired", {"prompt": [USER], "completion": [GOOD], "label": False}, [USER], False),
    ("trl-unpaired", {"prompt": TALK[:4], "completion": TALK, "label": True}, TALK[:4], True),
    ("trl-unpaired-implicit", {"completion": TALK, "label": True}, TALK[:4], True),
]

SHOWN: list[tuple[str, dict[str, Any], list[Any], list[Any]]] = [
    ("messages", {"messages": TALK}, TALK[:2], TALK[2:]),
    ("messages", {"system": "Be brief.", "messages": TALK[1:]}, TALK[:2], TALK[2:]),
    ("messages", {"prompt": "Hi", "prompt_id": "x", "messages": TALK}, TALK[:2], TALK[2:]),
    (
        "sharegpt-conversations",
        {
            "conversations": [
                {"from": "gpt", "value": "Hello"},
                {"from": "human", "value": "Why?"},
                {"from": "gpt", "value": "Good."},
            ]
        },
        [HELLO, USER],
        [GOOD],
    ),
    ("ultrachat", {"id": "0", "data": ["Hi", "Hello", "Why?", "Good."]}, TALK[1:2], TALK[2:]),
    (
        "transcript",
        {"text": "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Why?\n\nAssistant: Good."},
        TALK[1:2],
        TALK[2:],
    ),
    ("prompt-completion", {"prompt": "Why?", "completion": "Good."}, [USER], [GOOD]),
    ("prompt-completion", {"prompt": TALK[:4], "completion": [GOOD]}, TALK[:4], [GOOD]),
    (
        "prompt-completion",
        {"instruction": "Add.", "input": "1", "output": "Good."},
        [{"role": "user", "content": "Add.\n1"}],
        [GOOD],
    ),
    ("trl-standard", PAIR, [USER], [GOOD]),
]


@pytest.mark.parametrize(("name", "row", "prompt", "label"), LABELLED)
def test_a_labelled_response_is_read(
    tmp_path: Path, name: str, row: dict[str, Any], prompt: list[Any], label: bool
) -> None:
    rows = load_unpaired(write_rows(tmp_path / "a.jsonl", [row]))
    (read,) = rows
    assert rows.report.format == name
    assert (list(read.prompt), list(read.completion), read.label) == (prompt, [GOOD], label)


@pytest.mark.parametrize(("name", "row", "prompt", "completion"), SHOWN)
def test_a_conversation_is_read(
    tmp_path: Path, name: str, row: dict[str, Any], prompt: list[Any], completion: list[Any]
) -> None:
    rows = load_conversations(write_rows(tmp_path / "a.jsonl", [row]))
    (read,) = rows
    assert rows.report.format == name
    assert (list(read.prompt), list(read.completion)) == (prompt, completion)


def test_every_format_has_its_row() -> None:
    assert {each.name for each in UNPAIRED} == {name for name, *_ in LABELLED}
    assert {each.name for each in CONVERSATIONS} < {name for name, *_ in SHOWN}


def test_each_assistant_turn_comes_with_all_before_it(tmp_path: Path) -> None:
    (talk,) = load_conversations(write_rows(tmp_path / "a.jsonl", [{"messages": TALK}]))
    assert [(list(before), turn) for before, turn in talk.turns()] == [
        (TALK[:2], HELLO),
        (TALK[:4], GOOD),
    ]


def test_pairs_are_split_and_ties_left_out(tmp_path: Path) -> None:
    votes = {"response_a": "x", "response_b": "y", "prompt": "Q"}
    tie = {**votes, "votes_a": 1, "votes_b": 1}
    won = {**votes, "votes_a": 1, "votes_b": 3}
    rows = load_unpaired(write_rows(tmp_path / "a.jsonl", [tie, won]))
    assert [(r.completion[0]["content"], r.label) for r in rows] == [("y", True), ("x", False)]
    assert any("1 ties left out" in note for note in rows.report.notes)
    assert "1 desirable and 1 undesirable responses" in rows.report.notes


def test_a_question_at_the_end_is_kept_and_told(tmp_path: Path) -> None:
    rows = load_conversations(write_rows(tmp_path / "a.jsonl", [{"messages": [*TALK, USER]}]))
    assert len(list(rows[0].turns())) == 2
    assert any("1 conversations end with a turn" in note for note in rows.report.notes)


BAD_LABELLED = [
    ("a score as label", {"prompt": "Q", "completion": "A", "label": 0.7}, ["'label'", "0.7"]),
    ("no label", {"prompt": "Q", "completion": "A", "label": None}, ["'label'", "nothing"]),
    ("an empty response", {"prompt": "Q", "completion": " ", "label": 1}, ["'completion'"]),
    ("a prompt of nothing", {"prompt": "", "completion": "A", "label": 1}, ["'prompt'", "empty"]),
]
BAD_SHOWN = [
    ("no answer", {"messages": [USER]}, ["'messages'", "an assistant turn after"]),
    ("an empty answer", {"messages": [USER, {**GOOD, "content": ""}]}, ["'messages[1]'", "empty"]),
    ("two answers in a row", {"messages": [USER, GOOD, HELLO]}, ["'messages[2]'", "join"]),
    ("a role of no kind", {"messages": [USER, {**GOOD, "role": "me"}]}, ["role", "'me'"]),
    ("a text that is none", {"id": 1, "data": ["a", 5]}, ["'data[1]'", "int 5"]),
    ("an empty completion", {"prompt": "Q", "completion": ""}, ["'completion[0]'", "empty"]),
    (
        "a prompt that is answered",
        {"prompt": [USER, GOOD], "completion": [GOOD]},
        ["'prompt'", "'assistant'"],
    ),
]


@pytest.mark.parametrize(("row", "said"), [case[1:] for case in BAD_LABELLED])
def test_a_bad_labelled_response_is_told_by_row_and_field(
    tmp_path: Path, row: dict[str, Any], said: list[str]
) -> None:
    good = {"prompt": "Q", "completion": "A", "label": True}
    path = write_rows(tmp_path / "a.jsonl", [good, row])
    with pytest.raises(DataError) as caught:
        load_unpaired(path)
    for part in ["a.jsonl row 2", *said]:
        assert part in one_line(caught.value)
    rows = load_unpaired(path, on_bad_row="quarantine", quarantine_file=tmp_path / "bad.jsonl")
    assert (len(rows), rows.report.quarantined) == (1, 1)
    assert json.loads((tmp_path / "bad.jsonl").read_text())["raw"] == row


@pytest.mark.parametrize(("row", "said"), [case[1:] for case in BAD_SHOWN])
def test_a_bad_conversation_is_told_by_row_and_field(
    tmp_path: Path, row: dict[str, Any], said: list[str]
) -> None:
    shape = {"data": ["a", "b"]} if "data" in row else {"messages": TALK}
    shape = {"prompt": "Q", "completion": "A"} if "completion" in row else shape
    path = write_rows(tmp_path / "a.jsonl", [shape, row])
    with pytest.raises(DataError) as caught:
        load_conversations(path, format="ultrachat" if "data" in row else None)
    for part in ["a.jsonl row 2", *said]:
        assert part in one_line(caught.value)


def test_data_of_another_kind_is_told_with_its_loader(tmp_path: Path) -> None:
    talks = write_rows(tmp_path / "talks.jsonl", [{"messages": TALK}])
    liked = write_rows(tmp_path / "liked.jsonl", [LABELLED[0][1]])
    for load, path, cure in (
        (load_pairs, talks, "load_conversations"),
        (load_pairs, liked, "load_unpaired"),
        (load_unpaired, talks, "load_conversations"),
        (load_conversations, liked, "load_unpaired"),
    ):
        with pytest.raises(DataError, match=cure):
            load(path)
    with pytest.raises(DataError, match="fit no known format"):
        load_conversations(write_rows(tmp_path / "other.jsonl", [{"x": 1}]))
    with pytest.raises(InputError, match="did you mean 'messages'"):
        load_conversations(talks, format="message")


def test_columns_with_names_of_their_own(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [{"q": "Why?", "a": "Good.", "liked": True}])
    columns = {"prompt": "q", "completion": "a", "label": "liked"}
    assert load_unpaired(path, columns=columns)[0].label is True
    talk = write_rows(tmp_path / "b.jsonl", [{"dialog": TALK}])
    assert load_conversations(talk, columns={"messages": "dialog"})[0].completion[-1] == GOOD


@pytest.mark.parametrize("ending", [".jsonl", ".parquet", ""])
def test_what_is_saved_reads_back_exactly(tmp_path: Path, ending: str) -> None:
    calls = [{"function": {"name": "f", "arguments": {"x": 1}}}]
    tools = [
        USER,
        {"role": "assistant", "content": "", "tool_calls": calls},
        {"role": "tool", "content": "2"},
        GOOD,
    ]
    talks = load_conversations(
        write_rows(tmp_path / "a.jsonl", [{"messages": TALK}, {"messages": tools}])
    )
    talks.save(tmp_path / f"talks{ending}")
    again = load_conversations(tmp_path / f"talks{ending}")
    assert (list(again), again.fingerprint) == (list(talks), talks.fingerprint)
    row = {"prompt": "Why?", "completion": "Good.", "label": True, "score": 1.5, "source": "m"}
    liked = load_unpaired(write_rows(tmp_path / "b.jsonl", [row, LABELLED[3][1]]))
    liked.save(tmp_path / f"liked{ending}")
    back = load_unpaired(tmp_path / f"liked{ending}")
    assert (list(back), back.fingerprint) == (list(liked), liked.fingerprint)


def test_real_pairs_serve_both(shared: Path, tmp_path: Path) -> None:
    path = shared / "data" / "hh_rlhf_harmless_test.jsonl.gz"
    given: dict[str, Any] = {"on_bad_row": "quarantine", "quarantine_file": tmp_path / "bad.jsonl"}
    pairs, liked, talks = (
        load(path, **given) for load in (load_pairs, load_unpaired, load_conversations)
    )
    assert len(liked) == 2 * len(pairs)
    assert [talk.completion for talk in talks] == [pair.chosen for pair in pairs]
