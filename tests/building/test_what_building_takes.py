"""`build_pairs` takes what users hold; equal builds have equal fingerprints."""

import json
from pathlib import Path

import pytest

from prefstage.building import build_pairs
from prefstage.core.errors import PrefstageError
from prefstage.data import load_pairs

PAIRS = [
    {"prompt": f"question {n}", "chosen": f"a long good answer {n}", "rejected": f"bad {n}"}
    for n in range(20)
]


def longer(a: str, b: str, prompt: object) -> float:
    return 0.9 if len(a) > len(b) else 0.1


def test_paths_rows_and_sets_build_the_same_pairs(tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text("\n".join(map(json.dumps, PAIRS)), encoding="utf-8")
    splits = {"test": 0.3}
    prints = {
        (made.parts["relabel"]["train"].fingerprint, made.parts["relabel"]["test"].fingerprint)
        for made in (
            build_pairs({"pairs": source, "judge": longer, "method": "relabel", "splits": splits})
            for source in (PAIRS, PAIRS, str(file), file, load_pairs(PAIRS))
        )
    }
    assert len(prints) == 1


def test_a_build_read_back_has_the_fingerprint_that_it_was_built_with(tmp_path: Path) -> None:
    made = build_pairs({"pairs": PAIRS, "method": "keep"}, out=str(tmp_path / "run"))
    again = build_pairs({"pairs": PAIRS, "method": "keep"}, out=str(tmp_path / "run"))
    read = load_pairs(tmp_path / "run" / "keep" / "train.parquet")
    assert made.train.fingerprint == again.train.fingerprint == read.fingerprint


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        (7, "a recipe as a int"),
        ("no-such-recipe.yaml", "check the path"),
        ({"pairs": 7, "method": "keep"}, "a dataset of type int"),
        ({"pairs": PAIRS, "judge": 7, "method": "relabel"}, "a judge of type int"),
        ({"pairs": PAIRS, "metod": "keep"}, "metod"),
    ],
)
def test_anything_else_is_one_clear_line(recipe: object, words: str) -> None:
    with pytest.raises(PrefstageError, match=words) as caught:
        build_pairs(recipe)
    assert "\n" not in str(caught.value)
