"""One record set for every kind of record: slices, filters, maps, content hashes, any source."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, concatenate_datasets

from prefstage.core.errors import ConfigError, DataError, InputError
from prefstage.data import (
    CandidateSet,
    ConversationSet,
    Pair,
    PairSet,
    ReadOptions,
    RecordSet,
    UnpairedSet,
    load_candidates,
    load_conversations,
    load_pairs,
    load_prompts,
    load_unpaired,
)
from prefstage.data.settings import ReadArguments
from tests.data.dataset_rows import GOOD, LISTED, write_rows

ROWS = [{**GOOD, "prompt": f"Why {n}?", "score_chosen": n} for n in range(6)]
LOADERS: dict[str, tuple[Callable[..., RecordSet[Any]], list[dict[str, Any]]]] = {
    "pairs": (load_pairs, ROWS),
    "candidates": (load_candidates, [{**LISTED, "prompt": f"p{n}"} for n in range(6)]),
    "unpaired": (
        load_unpaired,
        [{"prompt": f"p{n}", "completion": "a", "label": n % 2} for n in range(6)],
    ),
    "conversations": (
        load_conversations,
        [{"prompt": f"p{n}", "completion": "a"} for n in range(6)],
    ),
}


@pytest.mark.parametrize(("load", "rows"), LOADERS.values(), ids=LOADERS)
def test_slices_filters_and_maps_are_sets_of_the_same_kind(
    load: Callable[..., RecordSet[Any]], rows: list[dict[str, Any]]
) -> None:
    whole = load(rows)
    records = list(whole)
    for part, expected in (
        (whole[:3], records[:3]),
        (whole[4:1:-2], records[4:1:-2]),
        (whole[1:5][1:3], records[2:4]),
        (whole.filter(lambda record: record.prompt[0]["content"][-2] != "5"), None),
        (whole.select([5, 0]), [records[5], records[0]]),
        (whole[:0], []),
        (whole.map(lambda record: record), records),
    ):
        assert type(part) is type(whole)
        if expected is not None:
            assert list(part) == expected
            assert part.fingerprint == type(whole).of(expected).fingerprint
    assert whole[-1] == records[-1]
    assert [whole[index] for index in range(len(whole))] == records
    with pytest.raises(IndexError):
        whole[len(whole)]


def test_a_part_knows_where_its_rows_stand(tmp_path: Path) -> None:
    pairs = load_pairs(write_rows(tmp_path / "a.jsonl", ROWS))
    odd = pairs.filter(lambda pair: pair.score_chosen in (1, 3, 5))
    assert [odd.report.position_of(index, len(odd)) for index in range(3)] == [
        *(("a.jsonl", 2), ("a.jsonl", 4)),
        ("a.jsonl", 6),
    ]
    odd.report.notes.append("mine")
    assert "mine" not in pairs.report.notes


def test_a_mapped_set_holds_what_the_function_makes() -> None:
    pairs = load_pairs(ROWS)
    turned = pairs.map(Pair.swapped)
    assert [pair.score_rejected for pair in turned] == [0, 1, 2, 3, 4, 5]
    assert turned.fingerprint != pairs.fingerprint
    assert turned.map(Pair.swapped).fingerprint == pairs.fingerprint


def test_equal_content_has_one_fingerprint(tmp_path: Path) -> None:
    pairs = load_pairs(ROWS)
    pairs.save(tmp_path / "a.parquet")
    rebuilt = Dataset.from_list(pairs.dataset.to_list(), features=pairs.dataset.features)
    with_more = pairs.dataset.add_column("weight", [1.0] * 6)
    halves = concatenate_datasets([pairs[:3].dataset, pairs[3:].dataset])
    integers = [replace(pair, score_chosen=int(pair.score_chosen or 0)) for pair in pairs]
    empty = [
        replace(pair, prompt=({**pair.prompt[0], "name": None},), score_rejected=None)
        for pair in pairs
    ]
    for same in (
        load_pairs(tmp_path / "a.parquet"),
        *(PairSet(rows) for rows in (rebuilt, with_more, halves)),
        *(PairSet.of(rows) for rows in (pairs, integers, empty)),
    ):
        assert same.fingerprint == pairs.fingerprint
    assert pairs[::-1].fingerprint != pairs.fingerprint


@pytest.mark.parametrize(("load", "rows"), LOADERS.values(), ids=LOADERS)
def test_every_loader_takes_what_users_hold(
    tmp_path: Path, load: Callable[..., RecordSet[Any]], rows: list[dict[str, Any]]
) -> None:
    whole = load(rows)
    path = write_rows(tmp_path / "a.jsonl", rows)
    sources = (path, str(path), Dataset.from_list(rows), list(whole), tuple(whole), whole[:])
    for source in sources:
        assert list(load(source)) == list(whole)
        assert load(source).fingerprint == whole.fingerprint
    assert load(whole) is whole


def test_pairs_serve_every_loader() -> None:
    pairs = load_pairs(ROWS)
    for source in (pairs, list(pairs)):
        assert [row.responses for row in load_candidates(source)] == [("Good.", "Bad.")] * 6
        assert isinstance(load_prompts(source), CandidateSet)
        assert len(load_unpaired(source)) == 12
        assert isinstance(load_unpaired(source), UnpairedSet)
        assert isinstance(load_conversations(source), ConversationSet)
    with pytest.raises(DataError, match="load_candidates"):
        load_pairs(load_candidates([LISTED]))
    with pytest.raises(InputError, match="split='train' for a record set"):
        load_pairs(pairs, split="train")


@pytest.mark.parametrize("source", [7, {"a": 1}, [1, 2], b"rows", None])
def test_what_is_no_source_is_refused(source: Any) -> None:
    with pytest.raises(InputError, match=r"a dataset of type .*; expected a path"):
        load_pairs(source)


def test_one_set_of_options_for_all_loaders() -> None:
    assert ReadArguments.__annotations__.keys() == ReadOptions.model_fields.keys()
    for load, rows in LOADERS.values():
        with pytest.raises(ConfigError, match=r"unknown setting 'colums'.*did you mean 'columns'"):
            load(rows, colums={})
        with pytest.raises(ConfigError, match=r"on_bad_row.*'error' or 'quarantine'"):
            load(rows, on_bad_row="skip")
    labelled = {"prompt": "q", "output_A": "a", "output_B": "b", "label": True}
    pairs = load_pairs([labelled], labels={True: "second", False: "first"})
    assert pairs[0].chosen[0]["content"] == "b"
    (desirable, _) = load_unpaired([labelled], labels={True: "second", False: "first"})
    assert desirable.completion[0]["content"] == "b"
