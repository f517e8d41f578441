"""Any valid pair or candidate set comes back exactly from every writer, and from every
foreign format that can hold it."""

import csv
import gzip
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from hypothesis import HealthCheck, given, settings, strategies as st

from prefstage.data import (
    Candidates,
    CandidateSet,
    Pair,
    PairSet,
    load_candidates,
    load_pairs,
    prompt_id_of,
)

WRITTEN = ("set.parquet", "set.parquet.gz", "set.jsonl", "set.jsonl.gz", "set")

characters = st.characters(exclude_categories=("Cs",))
texts = st.text(characters, min_size=1, max_size=30).filter(str.strip)
numbers = st.floats(-1e6, 1e6)
json_values = st.recursive(
    st.booleans() | st.integers(-(2**53), 2**53) | st.text(characters, max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.text(st.sampled_from("abc_"), min_size=1, max_size=4), inner, max_size=3
        )
    ),
    max_leaves=5,
)
few = settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def turn(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": text}


@st.composite
def prompts(draw: st.DrawFn, *, tools: bool = True) -> tuple[dict[str, Any], ...]:
    system = draw(st.lists(texts, max_size=1))
    earlier = draw(st.lists(st.tuples(texts, texts), max_size=2))
    turns = [turn("system", text) for text in system]
    for question, answer in earlier:
        turns += [turn("user", question), turn("assistant", answer)]
    turns.append(turn("user", draw(texts)))
    if tools and draw(st.booleans()):
        turns[0]["tools"] = draw(st.lists(json_values, min_size=1, max_size=2))
        turns.append(
            {**turn("assistant", ""), "tool_calls": draw(st.lists(json_values, min_size=1))}
        )
        turns.append({**turn("tool", draw(texts)), "name": draw(texts)})
    return tuple(turns)


@st.composite
def pairs(
    draw: st.DrawFn, prompt: st.SearchStrategy[Any] | None = None, known: bool = True
) -> Pair:
    asked = draw(prompts() if prompt is None else prompt)
    chosen, rejected = draw(st.tuples(texts, texts).filter(lambda both: both[0] != both[1]))
    optional = {}
    if known:
        for side in ("chosen", "rejected"):
            optional[f"score_{side}"] = draw(st.none() | numbers)
            optional[f"source_{side}"] = draw(st.none() | texts)
        optional["agreement"] = draw(st.none() | st.floats(0.5, 1))
    return Pair(
        prompt_id=prompt_id_of(asked),
        prompt=asked,
        chosen=(turn("assistant", chosen),),
        rejected=(turn("assistant", rejected),),
        **optional,
    )


@st.composite
def candidates(draw: st.DrawFn, prompt: st.SearchStrategy[Any] | None = None) -> Candidates:
    asked = draw(prompts() if prompt is None else prompt)
    rows = draw(
        st.lists(st.tuples(texts, st.none() | texts, st.none() | numbers), min_size=1, max_size=4)
    )
    responses, sources, scores = zip(*rows, strict=True)
    return Candidates(prompt_id_of(asked), asked, responses, sources, scores)


@contextmanager
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@pytest.mark.parametrize("name", WRITTEN)
@few
@given(rows=st.lists(pairs(), min_size=1, max_size=3))
def test_pairs_come_back_from_every_writer(name: str, rows: list[Pair]) -> None:
    saved = PairSet.of(rows)
    assert list(saved) == rows
    with folder() as place:
        saved.save(place / name)
        loaded = load_pairs(place / name)
        assert list(loaded) == rows
        assert loaded.fingerprint == saved.fingerprint
        assert list(load_pairs(place / name, streaming=True)) == rows


@pytest.mark.parametrize("name", WRITTEN)
@few
@given(rows=st.lists(candidates(), min_size=1, max_size=3, unique_by=lambda row: row.prompt_id))
def test_candidates_come_back_from_every_writer(name: str, rows: list[Candidates]) -> None:
    saved = CandidateSet.of(rows)
    assert list(saved) == rows
    with folder() as place:
        saved.save(place / name)
        loaded = load_candidates(place / name)
        assert list(loaded) == rows
        assert loaded.fingerprint == saved.fingerprint


def response(message: tuple[dict[str, Any], ...]) -> str:
    return str(message[0]["content"])


def to_standard(pair: Pair) -> dict[str, Any]:
    return {
        "prompt": pair.prompt[0]["content"],
        "chosen": response(pair.chosen),
        "rejected": response(pair.rejected),
    }


def to_implicit(pair: Pair) -> dict[str, Any]:
    return {"chosen": [*pair.prompt, *pair.chosen], "rejected": [*pair.prompt, *pair.rejected]}


def to_explicit(pair: Pair) -> dict[str, Any]:
    return {
        "prompt": list(pair.prompt),
        "chosen": list(pair.chosen),
        "rejected": list(pair.rejected),
    }


def to_binarized(pair: Pair) -> dict[str, Any]:
    whole = to_implicit(pair)
    return {"prompt": pair.prompt[-1]["content"], **whole, "messages": whole["chosen"]}


def to_transcript(pair: Pair) -> dict[str, Any]:
    names = {"user": "\n\nHuman: ", "assistant": "\n\nAssistant: "}
    before = "".join(names[message["role"]] + message["content"] for message in pair.prompt)
    return {
        side: f"{before}\n\nAssistant: {response(getattr(pair, side))}"
        for side in ("chosen", "rejected")
    }


def to_sharegpt(pair: Pair) -> dict[str, Any]:
    names = {"user": "human", "assistant": "gpt", "system": "system"}

    def spelled(message: dict[str, Any]) -> dict[str, str]:
        return {"from": names[message["role"]], "value": message["content"]}

    return {
        "conversations": [spelled(message) for message in pair.prompt],
        "chosen": spelled(pair.chosen[0]),
        "rejected": spelled(pair.rejected[0]),
    }


def to_alpaca(pair: Pair) -> dict[str, Any]:
    return {
        "instruction": pair.prompt[0]["content"],
        "input": "",
        "output": [response(pair.chosen), response(pair.rejected)],
    }


def to_labelled(pair: Pair) -> dict[str, Any]:
    return {
        "prompt": pair.prompt[0]["content"],
        "output_A": response(pair.rejected),
        "output_B": response(pair.chosen),
        "label": "B",
    }


def to_annotation(pair: Pair) -> dict[str, Any]:
    return {
        "instruction": pair.prompt[0]["content"],
        "output_1": response(pair.chosen),
        "output_2": response(pair.rejected),
        "preference": 1,
    }


def to_auto_j(pair: Pair) -> dict[str, Any]:
    return {
        "prompt": pair.prompt[0]["content"],
        "response 1": response(pair.rejected),
        "response 2": response(pair.chosen),
        "label": 1,
    }


one_turn = texts.map(lambda text: (turn("user", text),))
no_transcript = st.text(characters.filter(lambda c: c != ":"), min_size=1, max_size=30).filter(
    str.strip
)
talks = st.lists(st.tuples(no_transcript, no_transcript), max_size=2).flatmap(
    lambda earlier: no_transcript.map(
        lambda last: (
            *(
                turn(role, text)
                for both in earlier
                for role, text in zip(("user", "assistant"), both, strict=True)
            ),
            turn("user", last),
        )
    )
)
FOREIGN: list[tuple[str, Callable[[Pair], dict[str, Any]], st.SearchStrategy[Any]]] = [
    ("trl-standard", to_standard, one_turn),
    ("trl-conversational", to_explicit, prompts()),
    ("trl-conversational-implicit", to_implicit, prompts()),
    ("ultrafeedback-binarized", to_binarized, prompts(tools=False)),
    ("hh-transcript", to_transcript, talks),
    ("sharegpt", to_sharegpt, prompts(tools=False)),
    ("alpaca-output-list", to_alpaca, one_turn),
    ("labelled", to_labelled, one_turn),
    ("alpacaeval-annotations", to_annotation, one_turn),
    ("auto-j", to_auto_j, one_turn),
]


@pytest.mark.parametrize(("name", "render", "prompt"), FOREIGN, ids=[case[0] for case in FOREIGN])
@few
@given(data=st.data())
def test_pairs_come_back_from_every_foreign_format(
    name: str, render: Callable[[Pair], dict[str, Any]], prompt: st.SearchStrategy[Any], data: Any
) -> None:
    rows = data.draw(st.lists(pairs(prompt, known=False), min_size=1, max_size=3))
    foreign = [render(row) for row in rows]
    expected = [replace(row, agreement=1.0) for row in rows] if "alpacaeval" in name else rows
    with folder() as place:
        (place / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in foreign))
        (place / "a.json.gz").write_bytes(gzip.compress(json.dumps(foreign).encode()))
        for file in ("a.jsonl", "a.json.gz"):
            loaded = load_pairs(place / file)
            assert loaded.report.format == name
            assert list(loaded) == expected


@few
@given(rows=st.lists(pairs(one_turn, known=False), min_size=1, max_size=3))
def test_pairs_come_back_from_tables(rows: list[Pair]) -> None:
    foreign = [to_standard(row) for row in rows]
    with folder() as place:
        with (place / "a.csv").open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, list(foreign[0]))
            writer.writeheader()
            writer.writerows(foreign)
        (place / "a.csv.gz").write_bytes(gzip.compress((place / "a.csv").read_bytes()))
        Dataset.from_list(foreign).to_parquet(place / "a.parquet")
        Dataset.from_list(foreign).save_to_disk(place / "a")
        for file in ("a.csv", "a.csv.gz", "a.parquet", "a"):
            assert list(load_pairs(place / file)) == rows


def to_ultrafeedback(row: Candidates) -> list[dict[str, Any]]:
    entries = zip(row.responses, row.sources, row.scores, strict=True)
    completions = [
        {"response": text, "model": source, "overall_score": score}
        for text, source, score in entries
    ]
    return [{"instruction": row.prompt[0]["content"], "completions": completions}]


def to_answers(row: Candidates) -> list[dict[str, Any]]:
    entries = zip(row.responses, row.sources, row.scores, strict=True)
    return [
        {
            "instruction": row.prompt[0]["content"],
            "output": text,
            "generator": source,
            "preference": score,
        }
        for text, source, score in entries
    ]


@pytest.mark.parametrize(
    ("name", "render"), [("ultrafeedback", to_ultrafeedback), ("model-outputs", to_answers)]
)
@few
@given(data=st.data())
def test_candidates_come_back_from_foreign_formats(
    name: str, render: Callable[[Candidates], list[dict[str, Any]]], data: Any
) -> None:
    drawn = data.draw(
        st.lists(candidates(one_turn), min_size=1, max_size=3, unique_by=lambda row: row.prompt_id)
    )
    rows = [replace(row, sources=tuple(source or "m" for source in row.sources)) for row in drawn]
    with folder() as place:
        foreign = [line for row in rows for line in render(row)]
        (place / "a.json").write_text(json.dumps(foreign))
        loaded = load_candidates(place / "a.json")
        assert loaded.report.format == name
        assert list(loaded) == rows
