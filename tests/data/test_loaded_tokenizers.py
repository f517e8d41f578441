"""Tokenizers from files that are whole, or not."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from prefstage.core.errors import ModelError
from prefstage.data.rendering import load_tokenizer
from tests.tiny_models import tiny_tokenizer


def cut(name: str) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])

    return change


def rewritten(change: Callable[[dict[str, object]], object]) -> Callable[[Path], object]:
    def rewrite(folder: Path) -> None:
        content = json.loads((folder / "tokenizer.json").read_text())
        change(content["model"])
        (folder / "tokenizer.json").write_text(json.dumps(content))

    return rewrite


FAULTS = {
    "cut off": (cut("tokenizer.json"), "tokenizer.json cannot be read ("),
    "settings cut off": (
        cut("tokenizer_config.json"),
        "tokenizer_config.json cannot be read (",
    ),
    "an empty file": (
        lambda f: (f / "tokenizer.json").write_text(""),
        "tokenizer.json cannot be read",
    ),
    "an empty object": (lambda f: (f / "tokenizer.json").write_text("{}"), "no tokenizer at"),
    "no file": (lambda f: (f / "tokenizer.json").unlink(), "no tokenizer files"),
    "merges without a token": (rewritten(lambda m: m["vocab"].popitem()), "out of vocabulary"),
    "no vocabulary": (rewritten(lambda m: m.update(vocab={}, merges=[])), "empty vocabulary"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_tokenizer_is_one_line(fault: str, tmp_path: Path) -> None:
    tiny_tokenizer().save_pretrained(tmp_path)
    change, said = FAULTS[fault]
    change(tmp_path)
    with pytest.raises(ModelError) as caught:
        load_tokenizer(str(tmp_path))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_whole_one_is_what_was_saved(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    again = load_tokenizer(str(tmp_path))
    assert again.get_vocab() == tokenizer.get_vocab()
    assert again("The fox")["input_ids"] == tokenizer("The fox")["input_ids"]
