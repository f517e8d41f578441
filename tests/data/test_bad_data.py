"""The bad-input table of datasets: what is wrong, what the one line says, what it tells to do."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prefstage.core.errors import DataError, InputError
from prefstage.data import load_candidates, load_pairs
from tests.data.dataset_rows import GOOD, LABELLED, LISTED, lines, one_line

ASKED = [{"role": "user", "content": "Why?"}]
ANSWER = [{"role": "assistant", "content": "Good."}]
OTHER = [{"role": "assistant", "content": "Bad."}]
COMPLETION = {"response": "A", "model": "m", "overall_score": 7}


def changed(row: dict[str, Any], **changes: Any) -> list[Any]:
    """A good row, and the same with changes (None removes a column)."""
    bad = {key: value for key, value in {**row, **changes}.items() if value is not ...}
    return [row, bad]


BAD_ROWS: list[tuple[str, list[Any], list[str]]] = [
    # id, rows of a JSON-lines file (the second is bad), what the message must say
    (
        "empty chosen",
        changed(GOOD, chosen=""),
        ["row 2", "'chosen'", "an empty response", "remove"],
    ),
    ("blank rejected", changed(GOOD, rejected=" \n"), ["'rejected'", "only whitespace", "remove"]),
    ("equal", changed(GOOD, rejected="Good."), ["same response", "'Good.'", "write the other"]),
    ("no chosen", changed(GOOD, chosen=...), ["'chosen'", "no such field", "fill"]),
    ("null rejected", changed(GOOD, rejected=None), ["'rejected'", "nothing", "fill"]),
    ("no prompt", changed(GOOD, prompt=...), ["'prompt'", "no such field", "fill"]),
    ("number as chosen", changed(GOOD, chosen=3), ["'chosen'", "int 3", "text", "fill"]),
    ("number as prompt", changed(GOOD, prompt=3), ["'prompt'", "int 3", "messages", "mend"]),
    (
        "empty prompt",
        changed(GOOD, prompt=" "),
        ["'prompt'", "only empty turns", "write the prompt"],
    ),
    ("list of numbers", changed(GOOD, chosen=[1, 2]), ["'chosen'", "list [1, 2]", "fill"]),
    (
        "system of a wrong type",
        changed({**GOOD, "system": "s"}, system=7),
        ["'system'", "int 7", "text"],
    ),
    (
        "two systems",
        changed({**GOOD, "system": "s"}, prompt=[{"role": "system", "content": "t"}, *ASKED]),
        ["'system'", "'s'", "one system message", "empty the column"],
    ),
    (
        "broken tools",
        changed({**GOOD, "tools": ""}, tools="[{"),
        ["'tools'", "'[{'", "mend the JSON"],
    ),
    (
        "broken history",
        changed({**GOOD, "history": []}, history=["Hi", "Hello"]),
        ["'history'", "[user, assistant]", "mend"],
    ),
    (
        "score in words",
        changed({**GOOD, "score_chosen": 1}, score_chosen="good"),
        ["'score_chosen'", "'good'", "a finite number"],
    ),
    (
        "true as a score",
        changed({**GOOD, "score_chosen": 1}, score_chosen=True),
        ["'score_chosen'", "bool True", "a finite number"],
    ),
    (
        "agreement below a half",
        changed({**GOOD, "agreement": 1}, agreement=0.25),
        ["'agreement'", "0.25", "[0.5, 1]", "swap"],
    ),
    (
        "source of a wrong type",
        changed({**GOOD, "source_chosen": "m"}, source_chosen=["m"]),
        ["'source_chosen'", "list ['m']", "text"],
    ),
    (
        "prompt ends with the assistant",
        changed({"prompt": ASKED, "chosen": ANSWER, "rejected": OTHER}, prompt=[*ASKED, *OTHER]),
        ["'prompt'", "'assistant'", "ends with a user", "cut the prompt"],
    ),
    (
        "unknown role",
        changed(
            {"prompt": ASKED, "chosen": ANSWER, "rejected": OTHER},
            prompt=[{"role": "narrator", "content": "x"}],
        ),
        ["'prompt[0].role'", "'narrator'", "one of system", "rename the role"],
    ),
    (
        "no content",
        changed({"prompt": ASKED, "chosen": ANSWER, "rejected": OTHER}, prompt=[{"role": "user"}]),
        ["'prompt[0].content'", "NoneType", "text", "mend"],
    ),
    (
        "an image",
        changed(
            {"prompt": ASKED, "chosen": ANSWER, "rejected": OTHER},
            prompt=[{"role": "user", "content": [{"type": "image"}]}],
        ),
        ["'prompt[0].content'", "image", "images and audio are not supported"],
    ),
    (
        "a picture beside its sign",
        changed({**GOOD, "images": []}, prompt="<image> What?", images=["a.png"]),
        ["'images'", "<image> in the text", "text alone", "remove the rows with pictures"],
    ),
    (
        "messages as Python's text",
        changed(GOOD, prompt="[{'role': 'user', 'content': 'Why?'}]"),
        ["'prompt'", "text that is no JSON", "their JSON text", "json.dumps(messages)"],
    ),
    (
        "cut JSON of messages",
        changed(GOOD, chosen='[{"role": "assistant", "content": "Go'),
        ["'chosen'", "text that is no JSON", "json.dumps(messages)"],
    ),
    (
        "a key twice in JSON text",
        changed(GOOD, prompt='[{"role": "user", "content": "a", "content": "b"}]'),
        ["'prompt'", "the key 'content' twice", "rename or remove"],
    ),
    (
        "two system prompts",
        changed({**GOOD, "system": "s"}, system_prompt="t"),
        ["'system_prompt'", "'t' beside 's' in system", "empty one of the columns"],
    ),
    (
        "an annotator that is no name",
        changed({**GOOD, "annotator": "a"}, annotator=["a"]),
        ["'annotator'", "list ['a']", "name or number"],
    ),
    (
        "votes without annotators",
        changed({**GOOD, "votes": []}, votes=[1, 0]),
        ["'votes'", "list [1, 0]", "{annotator, preference}"],
    ),
    (
        "a message that is text",
        changed({"prompt": ASKED, "chosen": ANSWER, "rejected": OTHER}, prompt=[*ASKED, "Why?"]),
        ["'prompt[1]'", "'Why?'", "a message {role, content}"],
    ),
    (
        "response by the user",
        changed({"prompt": ASKED, "chosen": ANSWER, "rejected": OTHER}, chosen=ASKED),
        ["'chosen'", "turns ['user']", "one assistant turn"],
    ),
    (
        "response of two turns",
        changed({"prompt": ASKED, "chosen": ANSWER, "rejected": OTHER}, chosen=[*ANSWER, *OTHER]),
        ["'chosen'", "['assistant', 'assistant']", "one assistant turn"],
    ),
    (
        "conversations that part early",
        changed(
            {"chosen": [*ASKED, *ANSWER], "rejected": [*ASKED, *OTHER]},
            chosen=[*ASKED, *ANSWER, *ASKED, *ANSWER],
        ),
        ["'chosen'", "turns", "end both conversations with their first different answer"],
    ),
    (
        "equal conversations",
        changed(
            {"chosen": [*ASKED, *ANSWER], "rejected": [*ASKED, *OTHER]}, rejected=[*ASKED, *ANSWER]
        ),
        ["'rejected'", "same response", "'Good.'"],
    ),
    (
        "prompt that is in neither conversation",
        changed(
            {"prompt": "Why?", "chosen": [*ASKED, *ANSWER], "rejected": [*ASKED, *OTHER]},
            prompt="How?",
        ),
        ["'prompt'", "'How?'", "no user turn", "remove the prompt column"],
    ),
    (
        "a transcript without turns",
        changed(
            {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"},
            rejected="c",
        ),
        ["'rejected'", "'c'", "Human:"],
    ),
    (
        "a transcript without an answer",
        changed(
            {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"},
            rejected="\n\nHuman: a\n\nAssistant:",
        ),
        ["'rejected'", "an empty response"],
    ),
    (
        "texts that share nothing",
        changed({"chosen": "It is so.", "rejected": "It is not."}, rejected="No."),
        ["'chosen'", "no prompt column", "columns={'prompt': ...}"],
    ),
    (
        "alpaca's output of three",
        changed({"instruction": "Why?", "output": ["A", "B"]}, output=["A", "B", "C"]),
        ["'output'", "['A', 'B', 'C']", "chosen, rejected"],
    ),
    (
        "a sharegpt side that is a list of texts",
        changed(
            {
                "conversations": [{"from": "human", "value": "a"}],
                "chosen": {"from": "gpt", "value": "b"},
                "rejected": {"from": "gpt", "value": "c"},
            },
            chosen=["b"],
        ),
        ["'chosen'", "list ['b']", "text or {role, content} messages"],
    ),
    (
        "unknown label",
        changed(LABELLED, label="D"),
        ["'label'", "'D'", "a = first", "labels={...}"],
    ),
    ("no label", changed(LABELLED, label=None), ["'label'", "no label", "labels={...}"]),
    (
        "no preference",
        changed(
            {"instruction": "Why?", "output_1": "A", "output_2": "B", "preference": 1},
            preference=None,
        ),
        ["'preference'", "no preference", "from 1", "annotate"],
    ),
    (
        "preference off the scale",
        changed(
            {"instruction": "Why?", "output_1": "A", "output_2": "B", "preference": 1},
            preference=0.7,
        ),
        ["'preference'", "0.7", "to 2"],
    ),
    (
        "no votes",
        changed(
            {"prompt": "Why?", "response_a": "A", "response_b": "B", "votes_a": 1, "votes_b": 0},
            votes_a=0,
        ),
        ["'votes_a'", "[0.0, 0.0]", "at least one vote"],
    ),
    (
        "fewer than no votes",
        changed(
            {"prompt": "Why?", "response_a": "A", "response_b": "B", "votes_a": 1, "votes_b": 0},
            votes_b=-1,
        ),
        ["'votes_a'", "-1", "not negative"],
    ),
    (
        "an empty list of votes",
        changed({"prompt": "Why?", "response_a": "A", "response_b": "B", "votes": ["A"]}, votes=[]),
        ["'votes'", "list []", "at least one label", "collect votes"],
    ),
    (
        "an unknown vote",
        changed(
            {"prompt": "Why?", "response_a": "A", "response_b": "B", "votes": ["A"]},
            votes=["A", "x"],
        ),
        ["'votes[1]'", "'x'", "a = first", "labels={...}"],
    ),
    ("a row that is a list", [GOOD, [1, 2]], ["row 2", "list [1, 2]", "{column: value}"]),
    ("a row that is null", [GOOD, None], ["row 2", "NoneType", "{column: value}"]),
    ("a lone surrogate", changed(GOOD, chosen="\ud800"), ["row 2", "surrogate", "UTF-8", "remove"]),
    (
        "a number beyond 64 bits in a message",
        changed(
            {"prompt": ASKED, "chosen": ANSWER, "rejected": OTHER},
            prompt=[{"role": "user", "content": "x", "meta": {"n": 10**30}}],
        ),
        ["row 2", "cannot be stored", "turn the value into text"],
    ),
]

BAD_CANDIDATES: list[tuple[str, list[Any], list[str]]] = [
    (
        "an empty answer",
        changed(LISTED, responses=["A", ""]),
        ["'responses[1]'", "an empty response"],
    ),
    ("no answers", changed(LISTED, responses=[]), ["'responses'", "an empty list", "at least one"]),
    ("answers as text", changed(LISTED, responses="A"), ["'responses'", "'A'", "a list"]),
    (
        "a number as answer",
        changed(LISTED, responses=["A", 2]),
        ["'responses[1]'", "int 2", "text"],
    ),
    ("too few scores", changed(LISTED, scores=[1]), ["'scores'", "1 scores beside 2 responses"]),
    ("too many sources", changed(LISTED, sources=["x"] * 3), ["'sources'", "3 sources beside 2"]),
    ("an infinite score", changed(LISTED, scores=[1, 1e999]), ["'scores[1]'", "inf", "finite"]),
    (
        "a completion without response",
        changed({"instruction": "Why?", "completions": [COMPLETION]}, completions=[{"model": "m"}]),
        ["'completions[0].response'", "no such field"],
    ),
    (
        "a completion that is text",
        changed({"instruction": "Why?", "completions": [COMPLETION]}, completions=["A"]),
        ["'completions[0]'", "'A'", "an object"],
    ),
    (
        "an empty output",
        changed({"instruction": "Why?", "output": "A", "generator": "g"}, output=""),
        ["'output'", "an empty response"],
    ),
]


@pytest.mark.parametrize(("rows", "said"), [c[1:] for c in BAD_ROWS], ids=[c[0] for c in BAD_ROWS])
def test_a_bad_pair_is_named_or_set_aside(tmp_path: Path, rows: list[Any], said: list[str]) -> None:
    path, aside = tmp_path / "rows.jsonl", tmp_path / "aside.jsonl"
    path.write_bytes(lines(rows))
    with pytest.raises(DataError) as caught:
        load_pairs(path)
    text = one_line(caught.value)
    for part in ["1 bad of 2 rows", "rows.jsonl row 2", "on_bad_row='quarantine'", *said]:
        assert part in text
    kept = load_pairs(path, on_bad_row="quarantine", quarantine_file=aside)
    assert (len(kept), kept.report.quarantined) == (1, 1)
    (record,) = [json.loads(line) for line in aside.read_text().splitlines()]
    assert (record["file"], record["row"], record["raw"]) == ("rows.jsonl", 2, rows[1])


@pytest.mark.parametrize(
    ("rows", "said"), [c[1:] for c in BAD_CANDIDATES], ids=[c[0] for c in BAD_CANDIDATES]
)
def test_bad_candidates_are_named(tmp_path: Path, rows: list[Any], said: list[str]) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(lines(rows))
    with pytest.raises(DataError) as caught:
        load_candidates(path)
    for part in ["1 bad of 2 rows", "rows.jsonl row 2", *said]:
        assert part in one_line(caught.value)


def test_the_dataset_is_no_quarantine_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(lines([GOOD]))
    with pytest.raises(InputError, match="the dataset itself"):
        load_pairs(path, on_bad_row="quarantine", quarantine_file=path)
    assert path.read_bytes() == lines([GOOD])


def test_many_bad_rows_are_one_error_with_the_first_few_and_the_count(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(lines([GOOD, *[{**GOOD, "chosen": ""}] * 50]))
    with pytest.raises(DataError) as caught:
        load_pairs(path)
    text = one_line(caught.value)
    assert text.count("an empty response") == 3
    assert "50 bad of 51 rows" in text
    assert "and 47 more" in text


def test_not_utf8_in_parquet_is_a_row_of_its_own(tmp_path: Path) -> None:
    binary = [b"Why?", b"Why?", b"\xff\xfe"]
    prompt = pa.Array.from_buffers(pa.string(), 3, pa.array(binary, pa.binary()).buffers())
    table = pa.table({"prompt": prompt, "chosen": ["A", "B", "C"], "rejected": ["x", "y", "z"]})
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"1 bad of 3 rows: a\.parquet row 3.*not UTF-8"):
        load_pairs(tmp_path / "a.parquet")


def test_if_no_row_is_good_quarantine_is_no_way_out(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(lines([{**GOOD, "chosen": ""}] * 2))
    with pytest.raises(DataError, match=r"2 bad of 2 rows.*no row is good"):
        load_pairs(path, on_bad_row="quarantine", quarantine_file=tmp_path / "q.jsonl")
