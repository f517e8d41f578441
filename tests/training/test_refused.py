"""Rows that a chat template cannot render: named by file, row and field, or set aside."""

import json
from pathlib import Path
from typing import Any

import pytest

from prefstage.core.errors import DataError
from prefstage.data import PairSet, ResponseEncoder, load_conversations, load_pairs, load_unpaired
from prefstage.training.items import encode_items, left_out
from tests.data.chat_templates import CONVERSATIONS, template_files, tokenizer_for
from tests.tiny_models import tiny_tokenizer

_CALL = CONVERSATIONS["call in the response"][1]
_PLAIN = {"prompt": "Hello", "chosen": "Hi.", "rejected": "Go."}


def encoder_for(stem: str) -> ResponseEncoder:
    path = next(path for path in template_files() if path.stem == stem)
    return ResponseEncoder(tokenizer_for(path.read_text(encoding="utf-8"), "llama"))


def rows_with(*bad: Any) -> list[dict[str, Any]]:
    messages = [{"role": "user", "content": "Hello"}]
    good = {side: [{"role": "assistant", "content": side}] for side in ("chosen", "rejected")}
    return [{"prompt": messages, **good}, *bad, {"prompt": messages, **good}]


def written(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / "pairs.jsonl"
    path.write_text("\n" + "".join(json.dumps(row) + "\n" for row in rows))  # an empty first line
    return path


def bad_row(side: str) -> dict[str, Any]:
    other = {"chosen": "rejected", "rejected": "chosen"}[side]
    asked = [{"role": "user", "content": "Weather?"}]
    return {"prompt": asked, side: [_CALL], other: [{"role": "assistant", "content": "No."}]}


@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_a_refused_row_is_named_by_file_row_and_field(tmp_path: Path, side: str) -> None:
    pairs = load_pairs(written(tmp_path, rows_with(bad_row(side))))
    with pytest.raises(DataError) as caught:
        encode_items(pairs, ResponseEncoder(tiny_tokenizer("chatml")))
    said = str(caught.value)
    assert "1 of 3 rows cannot be rendered: pairs.jsonl row 3" in said
    assert f"field '{side}.tool_calls'" in said
    assert "on_bad_row: quarantine" in said
    assert "\n" not in said


def test_refused_rows_are_set_aside_and_counted(tmp_path: Path) -> None:
    aside = tmp_path / "aside.jsonl"
    unread = {"prompt": "Hello", "chosen": "Hi.", "rejected": None}
    path = written(tmp_path, rows_with(bad_row("chosen"), unread, bad_row("rejected")))
    pairs = load_pairs(path, on_bad_row="quarantine", quarantine_file=aside)
    items = encode_items(pairs, ResponseEncoder(tiny_tokenizer("chatml")))
    assert len(items) == 2
    assert items.counts["rows_refused"] == 2
    assert any(
        "2 rows that the chat template cannot render" in line for line in left_out(items.counts)
    )
    lines = [json.loads(line) for line in aside.read_text().splitlines()]
    assert [(line["row"], line["field"]) for line in lines] == [
        (4, "rejected"),
        (3, "chosen.tool_calls"),
        (5, "rejected.tool_calls"),
    ]
    assert lines[1]["raw"]["chosen"][0]["tool_calls"]


def test_a_prompt_that_the_template_refuses_is_named(tmp_path: Path) -> None:
    system = {"prompt": [{"role": "system", "content": "x"}, {"role": "user", "content": "y"}]}
    answers = {side: [{"role": "assistant", "content": side}] for side in ("chosen", "rejected")}
    pairs = load_pairs(written(tmp_path, rows_with({**system, **answers})))
    with pytest.raises(DataError, match=r"pairs.jsonl row 3.*turns system, user.*no system"):
        encode_items(pairs, ResponseEncoder(tiny_tokenizer("gemma")))


@pytest.mark.parametrize("arguments", ["city=Paris", "{'city': 'Paris'}"])
def test_arguments_that_are_no_json_are_named(tmp_path: Path, arguments: str) -> None:
    function = {"name": "get_weather", "arguments": arguments}
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": function}]}
    asked, _ = CONVERSATIONS["call in the response"]
    row = {"prompt": [asked], "chosen": [call], "rejected": [{"role": "assistant", "content": "N"}]}
    pairs = load_pairs(written(tmp_path, [row]))
    with pytest.raises(DataError, match=r"pairs.jsonl row 2.*tool call 0, arguments"):
        encode_items(pairs, encoder_for("glm4moe"))


@pytest.mark.parametrize("load", [load_unpaired, load_conversations])
def test_other_kinds_of_data_name_their_rows_too(tmp_path: Path, load: Any) -> None:
    asked = [{"role": "user", "content": "Hello"}]
    path = tmp_path / "rows.jsonl"
    completion = [{"role": "assistant", "content": "Hi."}]
    rows = [{"prompt": asked, "completion": turns} for turns in (completion, [_CALL], completion)]
    label = {"label": True} if load is load_unpaired else {}
    path.write_text("".join(json.dumps({**row, **label}) + "\n" for row in rows))
    with pytest.raises(DataError, match=r"rows.jsonl row 2, field 'completion.tool_calls'"):
        encode_items(load(path), ResponseEncoder(tiny_tokenizer("chatml")))


def test_pairs_made_in_memory_are_named_by_their_place() -> None:
    pairs = load_pairs([_PLAIN])
    whole = PairSet.of([*pairs, *pairs])
    tokenizer = tiny_tokenizer("chatml")
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "{% for m in messages %}", "{% for m in messages if m['content'] != 'Go.' %}"
    )
    with pytest.raises(DataError, match=r"memory row 1, field 'rejected'.*; memory row 2"):
        encode_items(whole, ResponseEncoder(tokenizer))
