"""One row of every recognised format, read as the pair or candidates that it means."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from prefstage.core.errors import DataError
from prefstage.data import Pair, load_candidates, load_pairs
from prefstage.data.formats import COLUMN_ROLES, CONVERSATIONS, FORMATS, UNPAIRED
from tests.data.dataset_rows import write_rows

QUESTION = [{"role": "user", "content": "Why?"}]
GOOD = {"role": "assistant", "content": "Good."}
BAD = {"role": "assistant", "content": "Bad."}
TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Why?"},
]
TALK = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Why?\n\nAssistant:"
SHAREGPT = [
    {"from": "system", "value": "Be brief."},
    {"from": "human", "value": "Hi"},
    {"from": "gpt", "value": "Hello"},
    {"from": "human", "value": "Why?"},
]

PAIRS: list[tuple[str, dict[str, Any], list[dict[str, Any]], dict[str, Any]]] = [
    # name of the format, a row, the prompt, optional fields of the pair
    ("trl-standard", {"prompt": "Why?", "chosen": "Good.", "rejected": "Bad."}, QUESTION, {}),
    ("trl-standard", {"question": "Why?", "chosen": "Good.", "rejected": "Bad."}, QUESTION, {}),
    (
        "trl-standard",
        {"system": "Be brief.", "question": "Why?", "chosen": "Good.", "rejected": "Bad."},
        [TURNS[0], *QUESTION],
        {},
    ),
    ("trl-conversational", {"prompt": TURNS, "chosen": [GOOD], "rejected": [BAD]}, TURNS, {}),
    (
        "trl-conversational",
        {"prompt": TURNS, "chosen": [*TURNS, GOOD], "rejected": [*TURNS, BAD]},
        TURNS,
        {},
    ),
    ("trl-conversational", {"prompt": TURNS, "chosen": "Good.", "rejected": "Bad."}, TURNS, {}),
    (
        "trl-conversational-implicit",
        {"chosen": [*TURNS, GOOD], "rejected": [*TURNS, BAD]},
        TURNS,
        {},
    ),
    (
        "ultrafeedback-binarized",
        {
            "prompt": "Why?",
            "prompt_id": "x",
            "chosen": [*QUESTION, GOOD],
            "rejected": [*QUESTION, BAD],
            "messages": [*QUESTION, GOOD],
            "score_chosen": 8.5,
            "score_rejected": 3,
        },
        QUESTION,
        {"score_chosen": 8.5, "score_rejected": 3.0},
    ),
    (
        "ultrafeedback-binarized",
        {"prompt": "Why?", "chosen": [GOOD], "rejected": [BAD], "chosen-model": "m"},
        QUESTION,
        {"source_chosen": "m"},
    ),
    ("hh-transcript", {"chosen": f"{TALK} Good.", "rejected": f"{TALK} Bad."}, TURNS[1:], {}),
    (
        "hh-transcript-prompt",
        {"prompt": TALK, "chosen": " Good.", "rejected": " Bad."},
        TURNS[1:],
        {},
    ),
    (
        "sharegpt",
        {
            "conversations": SHAREGPT,
            "chosen": {"from": "gpt", "value": "Good."},
            "rejected": {"from": "gpt", "value": "Bad."},
        },
        TURNS,
        {},
    ),
    (
        "sharegpt",
        {
            "system": "Be brief.",
            "conversations": SHAREGPT[1:],
            "chosen": "Good.",
            "rejected": "Bad.",
        },
        TURNS,
        {},
    ),
    (
        "alpaca",
        {"instruction": "Why?", "input": "", "chosen": "Good.", "rejected": "Bad."},
        QUESTION,
        {},
    ),
    (
        "alpaca",
        {
            "instruction": "Add.",
            "input": "1, 2",
            "history": [["Hi", "Hello"]],
            "chosen": "Good.",
            "rejected": "Bad.",
        },
        [*TURNS[1:3], {"role": "user", "content": "Add.\n1, 2"}],
        {},
    ),
    ("alpaca-output-list", {"instruction": "Why?", "output": ["Good.", "Bad."]}, QUESTION, {}),
    (
        "auto-j",
        {
            "scenario": "s",
            "prompt": "Why?",
            "response 1": "Bad.",
            "response 2": "Good.",
            "label": 1,
        },
        QUESTION,
        {},
    ),
    (
        "auto-j",
        {"prompt": "Why?", "response 1": "Good.", "response 2": "Bad.", "label": 2},
        QUESTION,
        {"agreement": 0.5},
    ),
    (
        "shp",
        {
            "history": "Why?",
            "human_ref_A": "Good.",
            "human_ref_B": "Bad.",
            "labels": 1,
            "score_A": 20,
            "score_B": 5,
        },
        QUESTION,
        {"score_chosen": 20.0, "score_rejected": 5.0},
    ),
    (
        "alpacaeval-annotations",
        {
            "instruction": "Why?",
            "output_1": "Bad.",
            "generator_1": "base",
            "output_2": "Good.",
            "generator_2": "new",
            "preference": 1.75,
        },
        QUESTION,
        {"agreement": 0.75, "source_chosen": "new", "source_rejected": "base"},
    ),
    (
        "alpacaeval-annotations",
        {"instruction": "Why?", "output_1": "Good.", "output_2": "Bad.", "preference": 1},
        QUESTION,
        {"agreement": 1.0},
    ),
    *(
        (
            "alpacaeval-annotations",
            {"instruction": "Why?", "output_1": "Good.", "output_2": "Bad.", "preference": draw},
            QUESTION,
            {"agreement": 0.5},
        )
        for draw in (0, 1.5)
    ),
    (
        "labelled",
        {"instruction": "Why?", "output_A": "Bad.", "output_B": "Good.", "label": "B"},
        QUESTION,
        {},
    ),
    (
        "labelled",
        {"prompt": "Why?", "response_a": "Good.", "response_b": "Bad.", "winner": "tie"},
        QUESTION,
        {"agreement": 0.5},
    ),
    (
        "labelled",
        {"question": "Why?", "answer_1": "Bad.", "answer_2": "Good.", "preferred": "answer_2"},
        QUESTION,
        {},
    ),
    (
        "labelled",
        {"prompt": "Why?", "response_0": "Bad.", "response_1": "Good.", "better_response_id": 1},
        QUESTION,
        {},
    ),
    (
        "labelled",
        {
            "conversation_a": [*QUESTION, BAD],
            "conversation_b": [*QUESTION, GOOD],
            "model_a": "old",
            "model_b": "new",
            "winner": "model_b",
        },
        QUESTION,
        {"source_chosen": "new", "source_rejected": "old"},
    ),
    (
        "vote-list",
        {
            "prompt": "Why?",
            "response_a": "Bad.",
            "response_b": "Good.",
            "votes": ["B", "B", "A", "tie"],
        },
        QUESTION,
        {"agreement": 0.625},
    ),
    (
        "trl-conversational",
        {
            "prompt": {"role": ["user"], "content": ["Why?"]},
            "chosen": {"role": ["assistant"], "content": ["Good."]},
            "rejected": [BAD],
        },
        QUESTION,
        {},
    ),
    (
        "votes",
        {"prompt": "Why?", "response_a": "Bad.", "response_b": "Good.", "votes_a": 1, "votes_b": 3},
        QUESTION,
        {"agreement": 0.75},
    ),
    (
        "votes",
        {
            "prompt": "Why?",
            "response_a": "Good.",
            "response_b": "Bad.",
            "votes_a": 2,
            "votes_b": 1,
            "votes_tie": 1,
        },
        QUESTION,
        {"agreement": 0.625},
    ),
    (
        "votes",
        {"prompt": "Why?", "response_a": "Good.", "response_b": "Bad.", "votes_a": 2, "votes_b": 2},
        QUESTION,
        {"agreement": 0.5},
    ),
]


@pytest.mark.parametrize(("name", "row", "prompt", "optional"), PAIRS)
def test_pairs_are_recognised_and_read(
    tmp_path: Path, name: str, row: dict[str, Any], prompt: list[Any], optional: dict[str, Any]
) -> None:
    pairs = load_pairs(write_rows(tmp_path / "rows.jsonl", [row]))
    (pair,) = pairs
    assert pairs.report.format == name
    assert pair == Pair(
        prompt_id=pair.prompt_id,
        prompt=tuple(prompt),
        chosen=(GOOD,),
        rejected=(BAD,),
        **optional,
    )
    assert pairs.report.ties == (pair.agreement == 0.5)


@pytest.mark.parametrize(("name", "row", "prompt", "optional"), PAIRS)
def test_any_pair_format_loads_as_candidates(
    tmp_path: Path, name: str, row: dict[str, Any], prompt: list[Any], optional: dict[str, Any]
) -> None:
    sets = load_candidates(write_rows(tmp_path / "rows.jsonl", [row]))
    (candidates,) = sets
    assert sets.report.format == name
    assert candidates.prompt == tuple(prompt)
    assert candidates.responses == ("Good.", "Bad.")
    assert candidates.sources == (optional.get("source_chosen"), optional.get("source_rejected"))
    assert candidates.scores == (optional.get("score_chosen"), optional.get("score_rejected"))


def test_tool_fields_are_kept(tmp_path: Path) -> None:
    tools = [{"type": "function", "function": {"name": "add", "parameters": {"x": [1, "a", None]}}}]
    call = [{"id": "1", "function": {"name": "add", "arguments": {"x": 1, "y": {"z": 2.5}}}}]
    prompt = [
        {"role": "user", "content": "Add."},
        {"role": "assistant", "content": None, "tool_calls": call},
        {"role": "tool", "content": "3", "tool_call_id": "1", "name": "add"},
    ]
    row = {"prompt": prompt, "chosen": [GOOD], "rejected": [BAD], "tools": json.dumps(tools)}
    (pair,) = load_pairs(write_rows(tmp_path / "rows.jsonl", [row]))
    assert pair.prompt == (
        {"role": "user", "content": "Add.", "tools": tools},
        {"role": "assistant", "content": "", "tool_calls": call},
        prompt[2],
    )


def test_a_tool_call_may_be_a_response(tmp_path: Path) -> None:
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "add"}}]}
    row = {"prompt": QUESTION, "chosen": [call], "rejected": [BAD]}
    path = write_rows(tmp_path / "rows.jsonl", [row])
    assert load_pairs(path)[0].chosen == (call,)
    with pytest.raises(DataError, match="saw a tool call, expected a response of text alone"):
        load_candidates(path)


def test_a_column_map_names_what_is_not_recognised(tmp_path: Path) -> None:
    row = {"frage": "Why?", "gut": "Good.", "schlecht": "Bad.", "note": "4.5", "other": 1}
    columns = {"prompt": "frage", "chosen": "gut", "rejected": "schlecht", "score_chosen": "note"}
    pairs = load_pairs(write_rows(tmp_path / "rows.jsonl", [row]), columns=columns)
    assert (pairs[0].prompt, pairs[0].chosen, pairs[0].rejected) == (
        tuple(QUESTION),
        (GOOD,),
        (BAD,),
    )
    assert pairs[0].score_chosen == 4.5


def test_a_column_map_works_for_comparisons_and_candidates(tmp_path: Path) -> None:
    row = {"q": "Why?", "x": "Bad.", "y": "Good.", "who": "y"}
    path = write_rows(tmp_path / "rows.jsonl", [row])
    columns = {"prompt": "q", "response_a": "x", "response_b": "y", "label": "who"}
    labels = {"x": "first", "y": "second"}
    assert load_pairs(path, columns=columns, labels=labels)[0].chosen == (GOOD,)
    columns = {"prompt": "q", "response": "x", "source": "who"}
    assert load_candidates(path, columns=columns)[0].sources == ("y",)


def test_a_pair_is_never_built_by_position(tmp_path: Path) -> None:
    """Rows in even/odd order that share no pair of columns are no pairs."""
    rows = [
        {"prompt": "Why?", "completion": text, "label": good} for text, good in (("A", 1), ("B", 0))
    ]
    with pytest.raises(DataError, match="load it with load_unpaired"):
        load_pairs(write_rows(tmp_path / "rows.jsonl", rows))


def test_repeated_prompts_are_kept_and_noted(tmp_path: Path) -> None:
    rows = [{"prompt": "Why?", "chosen": f"Good {i}", "rejected": "Bad."} for i in range(3)]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    pairs = load_pairs(path)
    assert len(pairs) == 3
    assert pairs.report.notes == ["2 pairs repeat the prompt of an earlier pair (all kept)"]
    (candidates,) = load_candidates(path)
    assert candidates.responses == ("Good 0", "Bad.", "Good 1", "Good 2")


def test_a_list_of_json_and_gzip_read_alike(tmp_path: Path) -> None:
    rows = [row for name, row, *_ in PAIRS if name == "trl-standard"]
    expected = list(load_pairs(write_rows(tmp_path / "rows.jsonl", rows)))
    (tmp_path / "rows.json").write_text(json.dumps(rows, indent=2))
    (tmp_path / "rows.json.gz").write_bytes(gzip.compress(json.dumps(rows).encode()))
    for name in ("rows.json", "rows.json.gz"):
        assert list(load_pairs(tmp_path / name)) == expected


def test_the_documentation_shows_every_format() -> None:
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    for format_ in (*FORMATS, *UNPAIRED, *CONVERSATIONS):
        assert f"| `{format_.name}` |" in page
    for role in COLUMN_ROLES:
        assert f"`{role}`" in page
