import json

import pytest
from typer.testing import CliRunner

from prefstage.building.recipe import read_recipe
from prefstage.cli.main import app
from tests.conftest import REPOSITORY

ROWS = [
    {"prompt": "Why?", "chosen": "Because it is so.", "rejected": "No."},
    {"prompt": "Who?", "chosen": "She was there.", "rejected": "Nobody."},
]


@pytest.fixture
def pairs(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return path


def test_pairs_alone_are_diagnosed(pairs, tmp_path):
    out = tmp_path / "report"
    result = CliRunner().invoke(
        app, ["diagnose", "--pairs", f"mine={pairs}", "--out", str(out), "--json"]
    )
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told == json.loads((out / "report.json").read_text(encoding="utf-8"))
    (one,) = told["diagnoses"]
    assert (one["dataset"], one["data"]["pairs"], one["data"]["longer_wins"]) == ("mine", 2, 1.0)
    text = (out / "report.md").read_text(encoding="utf-8")
    assert "largely explained by length" in text
    assert "prefstage build" in text


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--on", "x.jsonl"], ["--on without --judge"]),
        (["--reference", "x"], ["--reference without --policy"]),
        (["--cache", "x"], ["--cache without --policy"]),
        (["--beta", "-1"], ["'beta' is -1.0"]),
        (["--policy", "./none"], ["./none"]),
    ],
)
def test_wrong_options_are_one_line(pairs, options, words):
    result = CliRunner().invoke(app, ["diagnose", "--pairs", str(pairs), *options])
    assert result.exit_code == 2, result.output
    assert result.stderr.count("\n") == 1
    for word in words:
        assert word in result.stderr


def test_two_datasets_of_one_name_are_refused(pairs):
    result = CliRunner().invoke(app, ["diagnose", "--pairs", str(pairs), "--pairs", str(pairs)])
    assert result.exit_code == 2
    assert "--pairs NAME=FILE" in result.stderr


def test_the_example_recipe_is_valid():
    assert read_recipe(REPOSITORY / "examples" / "build.yaml").name == "best-vs-worst"
