"""What labels mean: by their words, by column names, by position and said so, or as declared."""

import json
from pathlib import Path
from typing import Any

import pytest

from prefstage.data import load_pairs
from prefstage.data.rows import declared_scheme, infer_scheme, spell

LETTERS, ONES, ZEROS = ("output_A", "output_B"), ("output_1", "output_2"), ("r0", "r1")


@pytest.mark.parametrize(
    ("labels", "names", "verdicts"),
    [
        (["A", "B", "tie"], LETTERS, ["first", "second", "tie"]),
        (["model_b", "tie (bothbad)"], LETTERS, ["second", "tie"]),
        (["[[A]]", "[[C]]"], LETTERS, ["first", "tie"]),
        (["output_B", "output_A"], LETTERS, ["second", "first"]),
        (["Output_2"], ONES, ["second"]),
        (["model_1", "Draw"], ONES, ["first", "tie"]),
        ([1, 2, 1.0, "2"], ONES, ["first", "second", "first", "second"]),
        ([0, 1], ZEROS, ["first", "second"]),
        ([1], ZEROS, ["second"]),
        ([0, 1, 0], LETTERS, ["first", "second", "first"]),
        ([0], LETTERS, ["first"]),
        ([1, 2], LETTERS, ["first", "second"]),
        ([2, None, float("nan")], LETTERS, ["second", None, None]),
        (["A", 7], LETTERS, ["first", None]),
    ],
)
def test_labels_are_read(labels: list[Any], names: tuple[str, str], verdicts: list[Any]) -> None:
    scheme = infer_scheme(labels, names, column="label", source="x")
    assert [scheme.verdicts.get(spell(label)) for label in labels] == verdicts


def test_a_guess_by_position_is_said_and_can_be_overruled(tmp_path: Path) -> None:
    rows = [
        {"prompt": "Why?", "output_A": "x", "output_B": "y", "label": label} for label in (0, 1)
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    guessed = load_pairs(path)
    assert [pair.chosen[0]["content"] for pair in guessed] == ["x", "y"]
    assert guessed.report.notes[0] == (
        "labels read as 0 = first, 1 = second (by position; if wrong, pass labels=)"
    )
    declared = load_pairs(path, labels={1: "first", 0: "second"})
    assert [pair.chosen[0]["content"] for pair in declared] == ["y", "x"]
    assert declared.report.notes[0] == "labels read as 1 = first, 0 = second (as declared)"


def test_declared_labels_may_say_tie_in_several_ways() -> None:
    scheme = declared_scheme({1: "first", 2: "second", 0: "tie", "both": "tie"})
    assert [scheme.verdicts.get(spell(label)) for label in (1, "2", 0.0, " BOTH ", 3)] == [
        *("first", "second", "tie", "tie"),
        None,
    ]


def test_one_spelling_for_a_label_of_any_type() -> None:
    assert {spell(label) for label in (1, 1.0, "1", " 1 ")} == {"1"}
