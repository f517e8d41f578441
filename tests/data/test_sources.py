"""Where datasets come from: files, folders, splits, URLs; and memory that stays flat."""

import json
import threading
import tracemalloc
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from prefstage.core.errors import DataError, InputError
from prefstage.data import PairSet, PairStream, load_candidates, load_pairs

ROWS = [{"prompt": f"Why {i}?", "chosen": "Good.", "rejected": "Bad."} for i in range(3)]


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    """A web server on loopback that gives out the test's folder."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "DOWNLOADED_DATASETS_PATH", str(tmp_path / "downloads"))


def write(path: Path, rows: list[dict[str, Any]] = ROWS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def prompts(pairs: PairSet | PairStream) -> list[str]:
    return [pair.prompt[0]["content"] for pair in pairs]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_url_is_read_like_a_file(tmp_path: Path, url: str, streaming: bool) -> None:
    write(tmp_path / "rows.jsonl")
    Dataset.from_list(ROWS).to_parquet(tmp_path / "rows.parquet")
    places = ("rows.jsonl", "rows.parquet?download=true")
    for place in (*(f"{url}/{name}" for name in places), f"file://{tmp_path}/rows.jsonl"):
        pairs: PairSet | PairStream = (
            load_pairs(place, streaming=True) if streaming else load_pairs(place)
        )
        assert prompts(pairs) == ["Why 0?", "Why 1?", "Why 2?"]


def test_a_missing_url_is_one_line(url: str) -> None:
    with pytest.raises(DataError, match=r"nothing\.jsonl' cannot be loaded .*; check the name"):
        load_pairs(f"{url}/nothing.jsonl")


def test_a_repository_folder_has_splits(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    write(repository / "train.jsonl")
    write(repository / "test.jsonl", ROWS[:1])
    assert len(load_pairs(f"{repository}:train")) == 3
    assert len(load_pairs(repository, split="test")) == 1
    streamed = load_pairs(repository, split="train", streaming=True)
    assert prompts(streamed) == ["Why 0?", "Why 1?", "Why 2?"]
    with pytest.raises(DataError, match=r"splits train, test; .*name it, e\.g\. split='train'"):
        load_pairs(repository)
    with pytest.raises(DataError, match="none of which is 'dev'"):
        load_pairs(f"{repository}:dev")


def test_a_hub_id_takes_config_and_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A local repository under its bare name stands for one of the Hub."""
    card = {"configs": [{"config_name": name, "data_files": f"{name}/*.jsonl"} for name in "ab"]}
    write(tmp_path / "mine" / "a" / "train.jsonl")
    write(tmp_path / "mine" / "b" / "train.jsonl", ROWS[:2])
    (tmp_path / "mine" / "README.md").write_text(f"---\n{json.dumps(card)}\n---\n")
    monkeypatch.chdir(tmp_path)
    assert len(load_pairs("mine:a:train")) == 3
    assert len(load_pairs("mine:b:train")) == 2
    with pytest.raises(DataError, match=r"cannot be loaded .*'c'"):
        load_pairs("mine:c:train")
    with pytest.raises(DataError, match=r"cannot be loaded .*[Cc]onfig"):
        load_pairs("mine:train")


def test_a_saved_folder_may_hold_splits(tmp_path: Path) -> None:
    table = Dataset.from_list(ROWS)
    DatasetDict(train=table, test=table.select([0])).save_to_disk(tmp_path / "both")
    DatasetDict(train=table).save_to_disk(tmp_path / "one")
    table.save_to_disk(tmp_path / "none")
    assert len(load_pairs(f"{tmp_path / 'both'}:test")) == 1
    assert len(load_pairs(tmp_path / "one")) == 3
    assert len(load_pairs(tmp_path / "none")) == 3
    with pytest.raises(DataError, match="splits train, test, none of which is 'dev'"):
        load_pairs(tmp_path / "both", split="dev")
    with pytest.raises(InputError, match="a single table"):
        load_pairs(tmp_path / "none", split="dev")
    (tmp_path / "none" / "dataset_info.json").unlink()
    with pytest.raises(DataError, match="cannot be loaded"):
        load_pairs(tmp_path / "none")


def test_an_open_dataset_is_read_as_it_is() -> None:
    table = Dataset.from_list(ROWS)
    assert prompts(load_pairs(table)) == ["Why 0?", "Why 1?", "Why 2?"]
    assert len(load_pairs(table.to_iterable_dataset())) == 3
    with pytest.raises(InputError, match="split 'test' of dataset, which is a single table"):
        load_pairs(table, split="test")


def test_class_labels_are_read_by_their_names(tmp_path: Path) -> None:
    rows = [{"prompt": "Why?", "response_a": "x", "response_b": "y", "winner": 1}]
    texts = {name: Value("string") for name in ("prompt", "response_a", "response_b")}
    features = Features({**texts, "winner": ClassLabel(names=["model_b", "model_a"])})
    Dataset.from_list(rows, features=features).save_to_disk(tmp_path / "arena")
    pairs = load_pairs(tmp_path / "arena")
    assert pairs[0].chosen[0]["content"] == "x"
    assert any("model_a = first" in note for note in pairs.report.notes)


def test_the_report_says_what_was_done(tmp_path: Path) -> None:
    bad = {**ROWS[0], "chosen": ""}
    tie = {"prompt": "Why?", "response_a": "x", "response_b": "y", "winner": "tie"}
    aside = tmp_path / "aside.jsonl"
    pairs = load_pairs(
        write(tmp_path / "a.jsonl", [*ROWS, bad]), on_bad_row="quarantine", quarantine_file=aside
    )
    assert str(pairs.report) == (
        f"{tmp_path / 'a.jsonl'}: read as trl-standard; 3 of 4 rows\n1 bad rows written to {aside}"
    )
    ties = load_pairs(write(tmp_path / "b.jsonl", [tie]))
    assert ties.report.ties == 1
    assert "1 ties kept with agreement 0.5" in str(ties.report)


def test_pairs_open_in_trl_as_conversational_preferences(tmp_path: Path) -> None:
    trl = pytest.importorskip("trl")
    load_pairs(write(tmp_path / "a.jsonl")).save(tmp_path / "a.parquet")
    table = Dataset.from_parquet(str(tmp_path / "a.parquet"), cache_dir=str(tmp_path / "c"))
    assert trl.is_conversational(table[0])
    assert table[0]["prompt"] == [{"role": "user", "content": "Why 0?"}]
    assert table[0]["chosen"] == [{"role": "assistant", "content": "Good."}]


def test_saving_replaces_files_and_refuses_folders(tmp_path: Path) -> None:
    pairs = load_pairs(write(tmp_path / "a.jsonl"))
    for _ in range(2):
        pairs.save(tmp_path / "b.jsonl.gz")
    pairs.save(tmp_path / "c")
    with pytest.raises(InputError, match="which exists"):
        pairs.save(tmp_path / "c")
    with pytest.raises(InputError, match=r"c\.txt, whose ending"):
        pairs.save(tmp_path / "c.txt")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_stream_stops_at_the_first_bad_row(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [ROWS[0], {**ROWS[1], "chosen": ""}, ROWS[2]])
    pairs = iter(load_pairs(path, streaming=True))
    next(pairs)
    with pytest.raises(DataError, match=r"a\.jsonl row 2.*an empty response"):
        next(pairs)
    stream = load_pairs(
        path, streaming=True, on_bad_row="quarantine", quarantine_file=tmp_path / "q.jsonl"
    )
    for _ in range(2):  # each iteration is a new pass with its own account
        assert prompts(stream) == ["Why 0?", "Why 2?"]
        assert (stream.report.rows_read, stream.report.quarantined) == (3, 1)
    stream.save(tmp_path / "b.jsonl")
    assert len(load_pairs(tmp_path / "b.jsonl")) == 2


def test_candidates_stream_where_rows_are_whole(tmp_path: Path) -> None:
    rows = [{"prompt": f"{i}", "responses": ["A", "B"]} for i in range(3)]
    stream = load_candidates(write(tmp_path / "a.jsonl", rows), streaming=True)
    assert [row.responses for row in stream] == [("A", "B")] * 3
    stream.save(tmp_path / "b.jsonl")
    assert len(load_candidates(tmp_path / "b.jsonl")) == 3
    with pytest.raises(DataError, match="load it without streaming"):
        load_candidates(write(tmp_path / "c.jsonl"), streaming=True)


@pytest.mark.parametrize("name", ["big.jsonl", "big.json", "big.csv", "big.parquet"])
def test_a_stream_keeps_memory_flat(tmp_path: Path, name: str) -> None:
    """20 MB of rows pass through less than 4 MB of memory."""
    rows, text = 1000, "word " * 2000
    big = [{"prompt": f"Why {i}?", "chosen": text, "rejected": text + "!"} for i in range(rows)]
    if name.endswith(".csv"):
        lines = ["prompt,chosen,rejected", *(",".join(row.values()) for row in big)]
        (tmp_path / name).write_text("\n".join(lines))
    elif name.endswith(".parquet"):
        Dataset.from_list(big).to_parquet(tmp_path / name, batch_size=50)
    elif name.endswith(".json"):
        (tmp_path / name).write_text(json.dumps(big))
    else:
        write(tmp_path / name, big)
    del big
    stream = load_pairs(tmp_path / name, streaming=True)
    tracemalloc.start()
    try:
        assert sum(1 for _ in stream) == rows
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4e6
