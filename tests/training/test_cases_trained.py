"""Small inputs of other people's bug reports, from the file to the tokens that are trained on."""

import json
from pathlib import Path
from typing import Any

import pytest

from prefstage.core.errors import DataError
from prefstage.data import ResponseEncoder, load_pairs
from prefstage.training.items import encode_items
from tests.data.chat_templates import rendered, template_files, tokenizer_for
from tests.tiny_models import tiny_tokenizer

CASES = Path(__file__).parents[1] / "data" / "cases"
KNOWS_TOOLS = ("qwen3", "qwen2_5", "llama3_1", "gptoss", "glm4moe", "nemotron_3_nano", "gemma4")


def tokenizer_of(stem: str) -> Any:
    path = next(path for path in template_files() if path.stem == stem)
    return tokenizer_for(path.read_text(encoding="utf-8"), "llama")


def whole_of(tokenizer: Any, row: dict[str, Any], side: str) -> list[int]:
    """What transformers renders of a row of the file as it stands there."""
    first, *others = row["prompt"]
    return rendered(tokenizer, [{**first, "tools": row["tools"]}, *others, *row[side]])


@pytest.mark.parametrize("stem", KNOWS_TOOLS)
@pytest.mark.parametrize("name", ["toolcall", "toolcall_vs_text"])
def test_tool_calls_are_trained_on_as_the_template_renders_them(name: str, stem: str) -> None:
    tokenizer = tokenizer_of(stem)
    file = CASES / f"{name}.jsonl"
    items = encode_items(load_pairs(file), ResponseEncoder(tokenizer))
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(items) == len(rows) == 8
    for item, row in zip(items.items, rows, strict=True):
        tree = item.trees[0]
        for side, ids in zip(("chosen", "rejected"), tree.response_ids, strict=True):
            got, whole = [*tree.prompt_ids, *ids], whole_of(tokenizer, row, side)
            assert got == whole[: len(got)]
            assert not tokenizer.decode(whole[len(got) :]).strip()
        assert tree.response_ids[0] != tree.response_ids[1]


@pytest.mark.parametrize("family", ["chatml", "zephyr", "phi3"])
@pytest.mark.parametrize("name", ["toolcall", "toolcall_vs_text", "args_string"])
def test_a_template_without_tools_refuses_such_rows_by_name(name: str, family: str) -> None:
    pairs = load_pairs(CASES / f"{name}.jsonl")
    with pytest.raises(DataError, match=rf"8 of 8 rows .*{name}.jsonl row 1, field 'prompt\[0\]"):
        encode_items(pairs, ResponseEncoder(tiny_tokenizer(family)))


@pytest.mark.parametrize("stem", KNOWS_TOOLS)
def test_arguments_as_text_are_trained_on_as_the_mapping(stem: str) -> None:
    tokenizer = tokenizer_of(stem)
    file = CASES / "args_string.jsonl"
    items = encode_items(load_pairs(file), ResponseEncoder(tokenizer))
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for item, row in zip(items.items, rows, strict=True):
        for message in row["prompt"]:
            for call in message.get("tool_calls", ()):
                function = call["function"]
                if stem not in ("qwen3", "gemma4"):  # these two read either, each in its own way
                    function["arguments"] = json.loads(function["arguments"])
        tree = item.trees[0]
        got = [*tree.prompt_ids, *tree.response_ids[0]]
        assert got == whole_of(tokenizer, row, "chosen")[: len(got)]


@pytest.mark.parametrize(("limit", "alike"), [(8, 6), (1, 6), (100, 0)])
def test_pairs_of_one_head_are_left_out_where_the_limit_makes_them_alike(
    limit: int, alike: int
) -> None:
    encoder = ResponseEncoder(word_tokenizer(), max_response_tokens=limit)
    pairs = load_pairs(CASES / "samehead.jsonl")
    items = encode_items(pairs, encoder)
    assert len(items) == len(pairs) - alike
    assert items.counts.get("same_tokens_by_truncation", 0) == alike


def test_where_all_pairs_become_alike_the_limit_is_named(tmp_path: Path) -> None:
    file = tmp_path / "alike.jsonl"
    file.write_text("".join((CASES / "samehead.jsonl").read_text().splitlines(keepends=True)[:2]))
    with pytest.raises(DataError, match="raise max_response_tokens"):
        encode_items(load_pairs(file), ResponseEncoder(word_tokenizer(), max_response_tokens=8))


def word_tokenizer() -> Any:
    """A token a word, as the limits of the file mean it."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    rows = [json.loads(line) for line in (CASES / "samehead.jsonl").read_text().splitlines()]
    words = sorted({word for row in rows for text in row.values() for word in text.split()})
    vocabulary = {word: n for n, word in enumerate(["<unk>", "<eos>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken("<eos>", special=True)])
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", unk_token="<unk>")
    made.chat_template = (
        "{% for m in messages %}{{ m['content'] + ' ' }}"
        "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    )
    return made
