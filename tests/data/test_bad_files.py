"""The bad-input table, continued: files and arguments that are wrong as a whole."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from prefstage.core.errors import DataError, InputError
from prefstage.data import load_pairs
from tests.data.dataset_rows import GOOD, LABELLED, LISTED, lines, one_line

ROW = json.dumps(GOOD)
BAD_FILES: list[tuple[str, str, bytes, list[str]]] = [
    # id, file name, its bytes, what the message must say
    ("empty", "a.jsonl", b"", ["without any row", "how the file was made"]),
    ("blank", "a.jsonl", b"\n \n", ["without any row"]),
    ("an empty list", "a.json", b"[]", ["without any row"]),
    ("no JSON at all", "a.jsonl", b"prompt,chosen\n", ["'prompt,chosen'", "malformed JSON"]),
    (
        "a broken line",
        "a.jsonl",
        f"{ROW}\n{ROW[:20]}\n".encode(),
        ["row 2", "malformed JSON", "mend"],
    ),
    (
        "a cut list",
        "a.json",
        f"[{ROW}, {ROW[:20]}".encode(),
        ["after row 1", "closed by ]", "mend"],
    ),
    ("text after the list", "a.json", f"[{ROW}] x".encode(), ["'x' after the closing ]"]),
    ("an object over lines", "a.json", b'{\n "a": 1\n}', ["malformed JSON", "list [...]"]),
    (
        "Latin-1",
        "a.jsonl",
        f"{ROW}\n".encode() + b'{"prompt": "\xe9"}\n',
        ["row 2", "UTF-8", "iconv"],
    ),
    ("Latin-1 in a list", "a.json", f'[{ROW}, {{"a": "'.encode() + b'\xe9"}]', ["row 2", "UTF-8"]),
    ("Latin-1 in CSV", "a.csv", b"prompt,chosen,rejected\na,b,c\na,\xe9,c\n", ["row 3", "UTF-8"]),
    ("UTF-16", "a.jsonl", ROW.encode("utf-16"), ["UTF-8", "none of whose first"]),
    ("no gzip", "a.jsonl.gz", ROW.encode(), ["damaged gzip", "compress the file again"]),
    ("cut gzip", "a.jsonl.gz", gzip.compress(ROW.encode() * 99)[:-20], ["damaged gzip"]),
    ("no Parquet", "a.parquet", b"PAR1 or not", ["no readable Parquet file", "fetch or write"]),
    (
        "more fields",
        "a.csv",
        b"prompt,chosen,rejected\na,b,c\na,b,c,d\n",
        ["4 fields under 3", "quote"],
    ),
    (
        "fewer fields",
        "a.csv",
        b"prompt,chosen,rejected\na,b,c\na,b\n",
        ["2 fields under 3", "quote"],
    ),
    ("a column twice", "a.csv", b"prompt,chosen,chosen\na,b,c\n", ["'chosen' twice", "rename"]),
    (
        "fewer fields between semicolons",
        "a.csv",
        b"prompt;chosen;rejected\na;b;c\na;b\n",
        ["2 fields under 3", "quote texts that hold semicolons"],
    ),
    (
        "a key twice",
        "a.jsonl",
        f"{ROW}\n".encode() + b'{"prompt": "a", "chosen": "b", "chosen": "c", "rejected": "d"}',
        ["row 2", "'chosen'", "the key 'chosen' twice", "rename or remove"],
    ),
    (
        "a number of thousands of digits",
        "a.jsonl",
        f'{ROW}\n{{"prompt": {"9" * 5000}}}\n'.encode(),
        ["row 2", "5,000 digits", "mend the row"],
    ),
    (
        "such a number in a list",
        "a.json",
        f'[{ROW}, {{"prompt": {"9" * 5000}}}, {ROW}]'.encode(),
        ["1 bad of 3 rows", "row 2", "5,000 digits"],
    ),
    (
        "lists in lists in lists",
        "a.jsonl",
        f'{ROW}\n{{"prompt": {"[" * 500}{"]" * 500}}}\n'.encode(),
        ["row 2", "nested deeper than 100 levels"],
    ),
    (
        "a million columns",
        "a.csv",
        ",".join(f"c{n}" for n in range(1_000_000)).encode() + b"\n",
        ["1,000,000 columns", "at most 10,000"],
    ),
    (
        "twenty thousand fields",
        "a.jsonl",
        lines([{f"c{n}": 1 for n in range(20_000)}]),
        ["20,000 columns", "leave out"],
    ),
    (
        "a name of a million letters",
        "a.jsonl",
        lines([{"k" * 1_000_000: 1}]),
        ["with the columns kkk", "name the columns"],
    ),
    ("open quote", "a.csv", b'prompt,chosen,rejected\na,b,"c\n', ["malformed CSV", "CSV library"]),
    ("header only", "a.csv", b"prompt,chosen,rejected\n", ["without any row"]),
    ("unknown ending", "a.txt", ROW.encode(), ["a.txt", ".jsonl", "rename or convert"]),
    (
        "unknown columns",
        "a.jsonl",
        b'{"promt": "a", "chosen": "b", "rejekted": "c"}',
        ["promt, chosen, rejekted", "prompt, chosen, rejected", "columns={"],
    ),
    (
        "SFT data",
        "a.jsonl",
        b'{"prompt": "a", "completion": "b"}',
        ["prompt-completion", "load_conversations"],
    ),
    (
        "two formats at once",
        "a.jsonl",
        json.dumps({**GOOD, "response_a": "x", "response_b": "y", "winner": "a"}).encode(),
        ["fit both trl-standard and labelled", "format='trl-standard'"],
    ),
    (
        "three label numbers",
        "a.jsonl",
        lines([{**LABELLED, "label": n} for n in (0, 1, 2)]),
        ["'label'", "0, 1, 2", "different meanings", "labels={0: 'first'"],
    ),
    (
        "labels 1 only",
        "a.jsonl",
        lines([{**LABELLED, "label": 1}]),
        ["labels 1,", "different meanings"],
    ),
    (
        "labels 0 and 1 for columns 1 and 2",
        "a.jsonl",
        lines([{"prompt": "a", "output_1": "b", "output_2": "c", "label": n} for n in (0, 1)]),
        ["0, 1", "'output_1'", "labels={"],
    ),
    (
        "graded labels",
        "a.jsonl",
        lines([{**LABELLED, "label": n} for n in (0.25, 0.75)]),
        ["0.25, 0.75", "labels={"],
    ),
    ("no labels at all", "a.jsonl", lines([{**LABELLED, "label": None}]), ["labels nothing"]),
    (
        "candidates as pairs",
        "a.jsonl",
        json.dumps(LISTED).encode(),
        ["responses without a chosen one", "load_candidates"],
    ),
    (
        "only bad rows",
        "a.jsonl",
        lines([{**GOOD, "chosen": ""}]),
        ["1 bad of 1 rows", "an empty response"],
    ),
]


@pytest.mark.parametrize(
    ("name", "data", "said"), [case[1:] for case in BAD_FILES], ids=[case[0] for case in BAD_FILES]
)
def test_a_bad_file_is_named(tmp_path: Path, name: str, data: bytes, said: list[str]) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(DataError) as caught:
        load_pairs(path)
    for part in [name, *said]:
        assert part in one_line(caught.value)


BAD_ARGUMENTS: list[tuple[str, dict[str, Any], list[str]]] = [
    ("no such file", {"source": "no/such/file.jsonl"}, ["no file or folder", "check the path"]),
    ("no such folder", {"source": "./nothing"}, ["'./nothing'", "check the path"]),
    ("too many colons", {"source": "a:b:c:d"}, ["'a:b:c:d'", "name:config:split", "two colons"]),
    ("an empty part", {"source": "a::test"}, ["'a::test'", "nothing empty"]),
    ("two splits", {"source": "a:test", "split": "train"}, ["'test'", "'train'", "leave one"]),
    ("a file's split", {"split": "train"}, ["split='train'", "it has none", "leave split out"]),
    (
        "unknown format",
        {"format": "trl-standart"},
        ["'trl-standart'", "did you mean 'trl-standard'?"],
    ),
    ("unknown role", {"columns": {"promt": "prompt"}}, ["'promt'", "did you mean 'prompt'?"]),
    ("unknown column", {"columns": {"prompt": "promt"}}, ["'promt'", "did you mean 'prompt'?"]),
    ("unknown policy", {"on_bad_row": "skip"}, ["'skip'", "'error' or 'quarantine'"]),
    ("no quarantine file", {"on_bad_row": "quarantine"}, ["quarantine_file=None", "set both"]),
    ("no quarantine", {"quarantine_file": "q.jsonl"}, ["'error'", "'q.jsonl'", "set both"]),
    ("labels without use", {"labels": {0: "first"}}, ["trl-standard", "leave labels out"]),
    ("a format of candidates", {"format": "ultrafeedback"}, ["'ultrafeedback'", "load_candidates"]),
    (
        "labels that say nothing",
        {"format": "labelled", "labels": {0: "tie"}},
        ["{0: 'tie'}", "first, second, tie"],
    ),
    (
        "labels with a wrong verdict",
        {"format": "labelled", "labels": {0: "first", 1: "chosen"}},
        ["'chosen'", "first, second, tie"],
    ),
]


@pytest.mark.parametrize(
    ("arguments", "said"), [c[1:] for c in BAD_ARGUMENTS], ids=[c[0] for c in BAD_ARGUMENTS]
)
def test_a_bad_argument_is_named(
    tmp_path: Path, arguments: dict[str, Any], said: list[str]
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(lines([GOOD]))
    with pytest.raises(InputError) as caught:
        load_pairs(**{"source": path, **arguments})
    for part in said:
        assert part in one_line(caught.value)


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.json.gz", "a.csv.gz", "a.parquet.gz"])
@pytest.mark.parametrize("filling", [b" ", b"x", b"\n", b"\0"])
def test_a_file_that_expands_without_end_is_refused(
    tmp_path: Path, name: str, filling: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prefstage.data.raw_rows._UNZIPPED_BYTES", 1 << 20)
    begin = {"a.jsonl.gz": ROW + "\n", "a.json.gz": f"[{ROW}, ", "a.csv.gz": "prompt,chosen\n"}
    text = begin.get(name, "").encode() + (b'"' if filling == b"x" else b"") + filling * (8 << 20)
    (tmp_path / name).write_bytes(gzip.compress(text))
    with pytest.raises(DataError, match=r"expands to more than 1,048,576 bytes.; expected"):
        load_pairs(tmp_path / name)


def test_what_shrinks_as_text_does_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefstage.data.raw_rows._UNZIPPED_BYTES", 1 << 10)
    rows = [{**GOOD, "prompt": f"question {number * number}"} for number in range(2000)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    assert len(load_pairs(tmp_path / "a.jsonl.gz")) == len(rows)
