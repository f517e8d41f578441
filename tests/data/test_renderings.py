"""Any conversation through every reader and writer renders the same text as its source."""

import csv
import gzip
import json
import tempfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, Features, Json, List, Value
from hypothesis import HealthCheck, given, settings, strategies as st

from prefstage.data import Pair, PairSet, load_pairs
from tests.tiny_models import tiny_tokenizer

if find_spec("trl") is None:
    pytest.skip("TRL's templates are not installed", allow_module_level=True)
TEMPLATES = Path(str(find_spec("trl").origin)).parent / "chat_templates"  # type: ignore[union-attr]
NAMES = ("qwen3", "glm4moe", "llama3_1", "nemotron_3_nano")

Row = dict[str, Any]
characters = st.characters(exclude_categories=("Cs",))
texts = st.text(characters, min_size=1, max_size=20).filter(str.strip)
names = st.text(st.sampled_from("zyxabc_"), min_size=1, max_size=4)
scalars = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(characters, max_size=8)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=6,
)
objects = st.dictionaries(names, values, max_size=4)
calls = st.builds(
    lambda name, arguments: {
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    },
    names,
    objects,
)
kinds = st.sampled_from(("string", "number"))
tools = st.builds(
    lambda name, properties, more: {
        "type": "function",
        "function": {
            "name": name,
            "description": "A tool",
            "parameters": {"type": "object", "properties": properties, **more},
        },
    },
    names,
    st.dictionaries(
        names, st.fixed_dictionaries({"type": kinds, "description": texts}), max_size=3
    ),
    st.dictionaries(st.sampled_from(("default", "required_by")), values),
)
few = settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def turn(role: str, content: str | None, **more: Any) -> Row:
    return {"role": role, "content": content, **more}


@st.composite
def conversations(draw: st.DrawFn) -> Row:
    """A row of a preference dataset: text, tool calls in the prompt and as a response, tools."""
    prompt = [turn("system", text) for text in draw(st.lists(texts, max_size=1))]
    prompt.append(turn("user", draw(texts)))
    if draw(st.booleans()):
        content = draw(st.sampled_from(("", "So:")))
        prompt.append(turn("assistant", content, tool_calls=[draw(calls)]))
        prompt.append(turn("tool", draw(texts)))
    answers = draw(st.tuples(texts, texts).filter(lambda both: both[0] != both[1]))
    chosen, rejected = (turn("assistant", text) for text in answers)
    if draw(st.booleans()):
        chosen = turn("assistant", "", tool_calls=[draw(calls)])
    row: Row = {"prompt": prompt, "chosen": [chosen], "rejected": [rejected]}
    known = draw(st.lists(tools, max_size=2))
    return row | ({"tools": known} if known else {})


rows_drawn = st.lists(conversations(), min_size=1, max_size=3)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_tokenizer("chatml")


def rendered(tokenizer: Any, messages: list[Row], known: Any, name: str) -> str:
    template = (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")
    return str(
        tokenizer.apply_chat_template(
            messages, tools=known or None, chat_template=template, tokenize=False
        )
    )


def of_source(tokenizer: Any, row: Row, name: str) -> list[str]:
    return [
        rendered(tokenizer, [*row["prompt"], *row[side]], row.get("tools"), name)
        for side in ("chosen", "rejected")
    ]


def of_pair(tokenizer: Any, pair: Pair, name: str) -> list[str]:
    known = pair.prompt[0].get("tools")
    prompt = [{k: v for k, v in message.items() if k != "tools"} for message in pair.prompt]
    return [
        rendered(tokenizer, [*prompt, *side], known, name) for side in (pair.chosen, pair.rejected)
    ]


def json_lines(rows: list[Row], folder: Path) -> Path:
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "a.jsonl"


def json_list(rows: list[Row], folder: Path) -> Path:
    (folder / "a.json.gz").write_bytes(gzip.compress(json.dumps(rows, indent=1).encode()))
    return folder / "a.json.gz"


def json_texts(rows: list[Row], folder: Path) -> Path:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with (folder / "a.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(columns)
        writer.writerows(
            [json.dumps(row[name], ensure_ascii=False) if name in row else "" for name in columns]
            for row in rows
        )
    return folder / "a.csv"


def typed(rows: list[Row], _: Path) -> Dataset:
    messages = List({"role": Value("string"), "content": Value("string"), "tool_calls": Json()})
    sides = dict.fromkeys(("prompt", "chosen", "rejected"), messages)
    filled = [{"tools": None, **row} for row in rows]
    return Dataset.from_list(filled, features=Features({**sides, "tools": List(Json())}))


def typed_parquet(rows: list[Row], folder: Path) -> Path:
    typed(rows, folder).to_parquet(folder / "a.parquet")
    return folder / "a.parquet"


def typed_folder(rows: list[Row], folder: Path) -> Path:
    typed(rows, folder).save_to_disk(folder / "a")
    return folder / "a"


def saved_as(name: str) -> Callable[[list[Row], Path], Path]:
    def save(rows: list[Row], folder: Path) -> Path:
        load_pairs(rows).save(folder / name)
        return folder / name

    return save


CARRIERS: dict[str, Callable[[list[Row], Path], Any]] = {
    "a list": lambda rows, _: rows,
    "JSON lines": json_lines,
    "a JSON list": json_list,
    "CSV with JSON text": json_texts,
    "a dataset": typed,
    "a stream": lambda rows, folder: typed(rows, folder).to_iterable_dataset(),
    "Parquet": typed_parquet,
    "a dataset's folder": typed_folder,
    **{
        f"saved {name}": saved_as(name)
        for name in ("s.parquet", "s.parquet.gz", "s.jsonl", "s.jsonl.gz", "s")
    },
}


def loads(rows: list[Row], carrier: str) -> Iterator[list[Pair]]:
    with tempfile.TemporaryDirectory() as folder:
        source = CARRIERS[carrier](rows, Path(folder))
        loaded = load_pairs(source)
        yield list(loaded)
        yield [loaded[index] for index in range(len(loaded))]
        yield list(load_pairs(source, streaming=True))
        yield list(PairSet.of(loaded))


@pytest.mark.parametrize("carrier", CARRIERS)
@few
@given(rows=rows_drawn, name=st.sampled_from(NAMES))
def test_every_way_renders_as_the_source(
    tokenizer: Any, carrier: str, rows: list[Row], name: str
) -> None:
    expected = [of_source(tokenizer, row, name) for row in rows]
    exact = json.dumps([[row["prompt"], row["chosen"], row["rejected"]] for row in rows])
    for pairs in loads(rows, carrier):
        assert [of_pair(tokenizer, pair, name) for pair in pairs] == expected
        bare = [
            [
                [{k: v for k, v in m.items() if k != "tools"} for m in pair.prompt],
                pair.chosen,
                pair.rejected,
            ]
            for pair in pairs
        ]
        assert json.dumps(bare) == exact
        known = [pair.prompt[0].get("tools") for pair in pairs]
        assert json.dumps(known) == json.dumps([row.get("tools") for row in rows])
