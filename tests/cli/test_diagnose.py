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
        (["--store", "x.sqlite"], ["--store without --judge"]),
        (["--ranked", "x.jsonl"], ["--ranked without --policy"]),
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


def test_scored_candidates_are_ranked_by_a_policy(tmp_path):
    from tests.scoring.tiny_models import tiny_model
    from tests.tiny_models import tiny_tokenizer

    model = tmp_path / "model"
    tiny_model("llama", vocab_size=512).save_pretrained(model)
    tiny_tokenizer("chatml").save_pretrained(model)
    rows = tmp_path / "rows.jsonl"
    row = {"prompt": "Why?", "responses": ["So it is.", "No.", "Yes"], "scores": [3, 2, 1]}
    rows.write_text(json.dumps(row) + "\n", encoding="utf-8")
    command = ["diagnose", "--ranked", f"mine={rows}", "--policy", str(model)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "| mine | model | 1 | 3 |" in result.stdout
    told = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)
    assert told["diagnoses"] == []
    assert told["orders"][0]["pairwise"]["log_probs"]["pairs"] == 3
    assert told["orders"][0]["by_chance"] == pytest.approx(1 / 6)


def test_two_datasets_of_one_name_are_refused(pairs):
    result = CliRunner().invoke(app, ["diagnose", "--pairs", str(pairs), "--pairs", str(pairs)])
    assert result.exit_code == 2
    assert "--pairs NAME=FILE" in result.stderr


EXAMPLES = {
    "build": "best-vs-worst",
    "build_tiers": "tiers",
    "build_gap_quality": "gap-quality",
    "build_gaps_world": "gap-quality",
    "build_mixing": "mixing",
    "build_per_prompt": "per-prompt",
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_example_recipes_are_valid(name):
    assert read_recipe(REPOSITORY / "examples" / f"{name}.yaml").name == EXAMPLES[name]


def test_every_build_recipe_of_the_examples_is_known():
    found = {path.stem for path in (REPOSITORY / "examples").glob("build*.yaml")}
    assert found == set(EXAMPLES)


def test_own_answers_need_no_judge_for_their_diversity(pairs, tmp_path):
    own = tmp_path / "own.jsonl"
    row = {"prompt": "Why?", "responses": ["So it is.", "So it was."]}
    own.write_text(json.dumps(row) + "\n", encoding="utf-8")
    result = CliRunner().invoke(app, ["diagnose", "--pairs", str(pairs), "--on-policy", str(own)])
    assert result.exit_code == 0, result.output
    assert "self-BLEU" in result.stdout


def test_no_dataset_is_refused():
    result = CliRunner().invoke(app, ["diagnose"])
    assert result.exit_code == 2
    assert "--pairs FILE or --ranked FILE" in result.stderr
