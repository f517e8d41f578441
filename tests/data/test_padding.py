"""Arrow's padding: never in what is read, whatever holds the rows; explicit nulls stay where
they can be told from it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, IterableDataset, Value, load_dataset

from prefstage.data import Pair, load_pairs
from prefstage.data.raw_rows import arrow_reader, without_padding
from tests.data.dataset_rows import GOOD

CASES = Path(__file__).parent / "cases"
TOOLS = [
    {"name": "a", "parameters": {"z": {"type": "text", "enum": ["x", None]}, "b": {}}},
    {"name": "b", "parameters": {"y": {"default": 1.5, "more": [{"p": 1}, {"q": "s"}]}}},
]
ROWS = [
    {
        "prompt": [{"role": "user", "content": "q0"}],
        "chosen": [
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"function": {"name": "a", "arguments": {"z": "x"}}}],
            }
        ],
        "rejected": [{"role": "assistant", "content": "no"}],
        "tools": TOOLS,
    },
    {
        "prompt": [{"role": "user", "content": "q1", "name": "n"}],
        "chosen": [{"role": "assistant", "content": "yes"}],
        "rejected": [
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"function": {"name": "b", "arguments": {"y": [1, 2]}}}],
            }
        ],
        "tools": [TOOLS[1]],
    },
]
STORED = json.loads(json.dumps(ROWS))
STORED[0]["tools"][0]["parameters"].pop("b")  # Parquet has no empty objects


def exactly(pairs: Any) -> list[str]:
    """Messages with their keys in order, as text."""
    return [json.dumps([pair.prompt, pair.chosen, pair.rejected]) for pair in pairs]


def test_parquet_rows_are_the_json_rows() -> None:
    rows = load_pairs(CASES / "tools.jsonl")
    assert exactly(load_pairs(CASES / "tools.parquet")) == exactly(rows)
    assert "null" not in "".join(exactly(rows))
    assert load_pairs(CASES / "tools.parquet").fingerprint == rows.fingerprint


def test_key_order_is_the_sources() -> None:
    for streaming in (False, True):
        (pair,) = load_pairs(CASES / "order.jsonl", streaming=streaming)
        call = pair.chosen[0]["tool_calls"][0]["function"]
        assert list(call["arguments"]) == ["to", "amount", "currency"]
        schema = pair.prompt[0]["tools"][0]["function"]
        assert list(schema) == ["name", "description", "parameters"]
        assert list(schema["parameters"]["properties"]) == ["to", "amount", "currency"]


def as_file(suffix: str) -> Callable[[Dataset, Path], Any]:
    def write(dataset: Dataset, folder: Path) -> Path:
        path = folder / f"rows{suffix}"
        if suffix == ".parquet":
            dataset.to_parquet(path)
        else:
            dataset.save_to_disk(path)
        return path

    return write


def streamed_json(_: Dataset, folder: Path) -> IterableDataset:
    (folder / "a.jsonl").write_text("\n".join(map(json.dumps, STORED)))
    files = str(folder / "a.jsonl")
    return load_dataset("json", data_files=files, streaming=True, split="train")


HELD_BY: dict[str, Callable[[Dataset, Path], Any]] = {
    "dataset": lambda dataset, _: dataset,
    "numpy": lambda dataset, _: dataset.with_format("numpy"),
    "transform": lambda dataset, _: dataset.with_transform(lambda batch: batch),
    "stream": lambda dataset, _: dataset.to_iterable_dataset(),
    "mapped stream": lambda dataset, _: dataset.to_iterable_dataset().map(lambda row: row),
    "typed stream": lambda dataset, _: IterableDataset.from_generator(
        lambda: iter(dataset), features=dataset.features
    ),
    "streamed json": streamed_json,
    "json": lambda _, __: Dataset.from_list(STORED, on_mixed_types="use_json"),
    "parquet": as_file(".parquet"),
    "folder": as_file(""),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("held_by", HELD_BY)
@pytest.mark.parametrize("streaming", [False, True])
def test_no_holder_adds_nulls_or_changes_the_order(
    held_by: str, streaming: bool, tmp_path: Path
) -> None:
    source = HELD_BY[held_by](Dataset.from_list(STORED), tmp_path)
    expected = exactly(load_pairs(STORED))
    assert exactly(load_pairs(source, streaming=streaming)) == expected
    assert '"enum": ["x", null]' in expected[0]  # a list's null is no padding


def test_maps_and_json_columns_keep_their_nulls() -> None:
    columns = {
        "m": pa.array([[("a", 1), ("b", None)]], pa.map_(pa.string(), pa.int64())),
        "j": pa.array(['{"x": null, "f": 0.1}'], pa.json_()),
        "n": pa.nulls(1),
    }
    struct = pa.StructArray.from_arrays(list(columns.values()), list(columns))
    table = pa.table({"c": struct, "gone": pa.nulls(1)})
    row = next(arrow_reader(table.schema)(table))
    assert row == {"c": {"m": {"a": 1, "b": None}, "j": {"x": None, "f": 0.1}}, "gone": None}


def test_json_columns_refuse_a_key_twice(tmp_path: Path) -> None:
    table = pa.table({**{k: [v, v] for k, v in GOOD.items()}, "x": pa.array(["{}", "{}"])})
    twice = pa.array(["{}", '{"a": 1, "a": 2}']).cast(pa.json_())
    pq.write_table(table.set_column(3, "x", twice), tmp_path / "a.parquet")
    with pytest.raises(Exception, match="row 2, field 'a': saw the key 'a' twice"):
        load_pairs(tmp_path / "a.parquet")


def test_class_labels_are_their_names_in_files_and_objects(tmp_path: Path) -> None:
    features = Features(
        {
            **{name: Value("string") for name in ("prompt", "output_A", "output_B")},
            "label": ClassLabel(names=["A", "B"]),
        }
    )
    row = {"prompt": "q", "output_A": "a", "output_B": "b", "label": 1}
    dataset = Dataset.from_list([row], features=features)
    dataset.to_parquet(tmp_path / "a.parquet")
    for source in (dataset, dataset.to_iterable_dataset(), tmp_path / "a.parquet"):
        assert load_pairs(source)[0].chosen[0]["content"] == "b"


def test_padding_is_stripped_by_type() -> None:
    features = Dataset.from_list(STORED, on_mixed_types="use_json").features
    padded = [{"name": "a", "parameters": None}, {"name": None}]
    assert without_padding(padded, None) == [{"name": "a"}, {}]
    value = {"x": None}
    assert without_padding(value, None) == {}
    assert features["tools"] is not None


def test_numbers_of_tool_calls_are_exact(tmp_path: Path) -> None:
    numbers = [0.1 + 0.2, 1.7976931348623157e308, 5e-324, 2**53 + 1, -0.0, 1e22, 3.9e-17]
    call = {"function": {"name": "f", "arguments": {"x": numbers, "none": None, "whole": 1.0}}}
    turn = {"role": "assistant", "content": "", "tool_calls": [call]}
    rows = [{**ROWS[1], "chosen": [turn]}]
    expected = exactly(load_pairs(rows, streaming=True))
    loaded = load_pairs(rows)
    assert exactly(loaded) == exactly([loaded[0]]) == expected
    for name in ("a.parquet", "a.jsonl", "a.jsonl.gz", "a.parquet.gz", "a"):
        loaded.save(tmp_path / name)
        assert exactly(load_pairs(tmp_path / name)) == expected
        assert exactly(load_pairs(tmp_path / name, streaming=True)) == expected


def test_messages_whose_fields_have_different_orders_come_back(tmp_path: Path) -> None:
    turns = [
        {"role": "user", "content": "q"},
        {"content": "a", "role": "assistant", "weight": 1},
        {"name": "n", "role": "user", "content": "r"},
    ]
    row: dict[str, Any] = {**ROWS[1], "prompt": turns, "tools": None}
    loaded = load_pairs([row])
    pair: Pair = loaded[0]
    assert json.dumps(list(pair.prompt)) == json.dumps(turns)
    for name in ("a.parquet", "a.jsonl", "a"):
        loaded.save(tmp_path / name)
        again = load_pairs(tmp_path / name)
        assert exactly(again) == exactly(loaded)
        assert again.fingerprint == loaded.fingerprint
        assert again.report.unused_columns == ()
