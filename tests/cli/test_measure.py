import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from prefstage import diagnose, load_pairs
from prefstage.cli.main import app
from prefstage.measuring import Stage
from tests.tiny_models import save_tiny_llama, tiny_tokenizer

RUNNER = CliRunner()
PROBABILITY = ("--votes", "probability")
JUDGE = "python:letters:more_letters?symmetric=true"
BY = ("--judge", JUDGE)
BASE = ("--off-policy", "OFF", *BY)


def run(*arguments: object) -> Any:
    return RUNNER.invoke(app, ["measure", *map(str, arguments)])


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(autouse=True)
def judge_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "letters.py").write_text(
        "def more_letters(a, b, prompt):\n"
        "    return 0.5 if len(a) == len(b) else float(len(a) > len(b))\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "letters", raising=False)


@pytest.fixture
def off(tmp_path: Path) -> Path:
    rows = [{"prompt": f"Q{n}?", "chosen": "a" * (n + 9), "rejected": "bbb"} for n in range(60)]
    return write_lines(tmp_path / "off.jsonl", rows)


@pytest.fixture
def short(tmp_path: Path) -> Path:
    rows = [{"prompt": f"Q{n}?", "responses": ["cccc", "dd"]} for n in range(50)]
    return write_lines(tmp_path / "short.jsonl", rows)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    return save_tiny_llama(folder, tiny_tokenizer("chatml"), max_position_embeddings=256)


def test_given_answers_lead_to_a_stage_and_a_folder(off: Path, short: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = run(
        "--off-policy",
        off,
        "--on-policy",
        short,
        "--policy",
        "terse",
        "--judge",
        JUDGE,
        "--out",
        out,
    )
    assert result.exit_code == 0, result.output
    assert "Injection stage: the off-policy answers win" in result.output
    assert "train on the pairs you have" in result.output
    assert "10 off-policy prompts left out: no on-policy responses" in result.output
    stage = Stage.load(out / "stage.json")
    assert (stage.stage, stage.policy, stage.prompts_available) == ("injection", "terse", 50)
    assert f"{stage.prompts_used} of 50 prompts used (enough to decide)" in result.output
    assert pq.read_table(out / "prompts.parquet").num_rows == stage.prompts_used
    assert (out / "ledger.sqlite").exists()
    assert "terse" in (out / "config.yaml").read_text()


def test_json_alone_is_the_stage(off: Path, short: Path) -> None:
    result = run(
        "--off-policy", off, "--on-policy", short, "--judge", JUDGE, "--all-prompts", "--json"
    )
    values = json.loads(result.stdout)
    assert (values["prompts_used"], values["method"]) == (50, "fixed-size")
    assert values["votes_on"] + values["votes_off"] + values["ties"] == values["judgments"] == 200
    assert values["recommendation"].startswith("The judge prefers the off-policy answers")
    assert any("exact for these prompts" in note for note in values["notes"])


def test_the_same_command_goes_on_and_judges_nothing_twice(
    off: Path, short: Path, tmp_path: Path
) -> None:
    command = (
        "--off-policy",
        off,
        "--on-policy",
        short,
        "--judge",
        JUDGE,
        "--out",
        tmp_path / "run",
        "--json",
    )
    first, second = json.loads(run(*command).stdout), json.loads(run(*command).stdout)
    assert first["judge_counts"] == {"calls": first["judgments"], "reused": 0}
    assert second["judge_counts"] == {"calls": 0, "reused": first["judgments"]}
    note = second["notes"].pop()  # and a person is told so
    assert note.startswith(f"{first['judgments']} answers of the judge were at hand from before")
    assert {**first, "judge_counts": {}} == {**second, "judge_counts": {}}


def test_a_model_is_sampled_judged_and_scored(off: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = ("--policy", model, "--off-policy", off, *BY, "--max-new-tokens", 4)
    result = run(*command, "--max-prompts", 8, "--distinctness", "--out", out)
    assert result.exit_code == 0, result.output
    stage = Stage.load(out / "stage.json")
    assert (stage.policy, stage.prompts_used) == ("tiny", 8)
    assert stage.tokens is not None
    assert 0 < stage.tokens["response"] <= 4 * 16
    assert stage.distinctness is not None
    assert 0.0 <= stage.distinctness <= 1.0
    assert "the policy finds its own responses likelier in" in result.output
    assert pq.read_table(out / "candidates.parquet").num_rows == 8
    again = json.loads(run(*command, "--max-prompts", 8, "--out", out, "--json").stdout)
    assert again["boundary_score"] == stage.boundary_score


def test_answers_at_hand_are_scored_by_the_weights_of_the_policy(
    off: Path, short: Path, model: Path, tmp_path: Path
) -> None:
    command = ("--off-policy", off, "--on-policy", short, *BY, "--all-prompts", "--distinctness")
    out = tmp_path / "run"
    result = run(*command, "--policy", model, "--dtype", "float32", "--out", out)
    assert result.exit_code == 0, result.output
    stage = Stage.load(out / "stage.json")
    assert (stage.policy, stage.tokens) == (str(model), None)  # nothing was sampled
    seen = diagnose(load_pairs(off), policy=model, on_policy=short).report["distinctness"]
    assert seen["comparisons"] == stage.judgments
    assert stage.distinctness == pytest.approx(seen["share"])
    # The judge likes what is longer, which a model finds less likely: they never agree here.
    assert (stage.boundary_score, stage.distinctness, stage.consistency) == (0.25, 0.75, 0.0)
    assert "Boundary score 0.250" in result.output
    assert "; unsimplified 0.000" in result.output
    assert "judge and policy order 0% of comparisons alike" in result.output
    for wrong in (("--concurrency", 2), ("--top-p", 1)):
        assert run(*command, "--policy", model, *wrong).exit_code == 2
    absent = run(*command, "--policy", "terse")
    assert absent.exit_code == 2
    assert "terse" in absent.output


def test_settings_come_from_yaml_and_options_win(off: Path, short: Path, tmp_path: Path) -> None:
    config = tmp_path / "measure.yaml"
    config.write_text(
        f"off_policy: {off}\non_policy: {short}\njudge: {JUDGE}\nseed: 3\nconfidence: 0.9\n"
    )
    values = json.loads(run("--config", config, "--confidence", 0.99, "--json").stdout)
    assert (values["seed"], values["confidence"]) == (3, 0.99)


def test_bad_rows_may_be_put_aside_and_are_told(off: Path, short: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text(off.read_text() + '{"prompt": "Q?", "chosen": "", "rejected": "b"}\n')
    command = ("--off-policy", bad, "--on-policy", short, *BY)
    assert run(*command).exit_code == 2
    aside = tmp_path / "aside.jsonl"
    result = run(*command, "--on-bad-row", "quarantine", "--quarantine-file", aside)
    assert result.exit_code == 0, result.output
    assert "off-policy data: 1 bad rows put aside" in result.output
    assert len(aside.read_text().splitlines()) == 1
    assert (tmp_path / "aside-on-policy.jsonl").read_text() == ""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--judge", JUDGE, "--policy", "x"], "give --off-policy"),
        (["--off-policy", "OFF", "--policy", "x"], "give --judge"),
        ([*BASE], "give --policy"),
        (
            [*BASE, "--on-policy", "ON", "--top-p", "1"],
            "sampling",
        ),
        (
            [*BASE, "--on-policy", "ON", "--dtype", "auto"],
            "dtype",
        ),
        (
            [*BASE, "--on-policy", "ON", "--votes", "soft"],
            "'votes'",
        ),
        (
            [*BASE, "--on-policy", "ON", "--confidence", "95"],
            "'confidence'",
        ),
        (
            [*BASE, "--on-policy", "ON", "--distinctness"],
            "distinctness",
        ),
        ([*BASE, "--on-policy", "absent.jsonl"], "absent.jsonl"),
        (
            ["--off-policy", "OFF", "--judge", "table:absent.jsonl", "--on-policy", "ON"],
            "absent.jsonl",
        ),
        (
            [*BASE, "--on-policy", "ON", "--max-judgments", "1"],
            "at least one prompt",
        ),
        (
            [
                "--off-policy",
                "OFF",
                "--judge",
                JUDGE,
                "--on-policy",
                "ON",
                "--ties",
                "off",
                *PROBABILITY,
            ],
            "no effect",
        ),
    ],
)
def test_a_users_error_is_one_line(arguments: list[str], said: str, off: Path, short: Path) -> None:
    files = {"OFF": str(off), "ON": str(short)}
    result = run(*(files.get(argument, argument) for argument in arguments))
    assert result.exit_code == 2
    assert result.stdout == ""
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1
    assert said in lines[0]


def test_another_run_in_the_same_folder_is_refused(off: Path, short: Path, tmp_path: Path) -> None:
    command = (
        "--off-policy",
        off,
        "--on-policy",
        short,
        "--judge",
        JUDGE,
        "--out",
        tmp_path / "run",
    )
    assert run(*command).exit_code == 0
    result = run(*command, "--seed", 1)
    assert result.exit_code == 2
    assert "another run (different: config)" in result.stderr


def test_help_needs_no_heavy_library() -> None:
    code = (
        "import sys; from prefstage.cli.main import app; "
        "app(['measure', '--help'], standalone_mode=False); "
        "print(sorted({'torch', 'transformers', 'datasets'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_sources_choose_whose_responses_take_part(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"Q{n}?", "responses": ["a" * 9, "bb", "c" * 5], "sources": ["x", "y", "z"]}
        for n in range(40)
    ]
    pool = write_lines(tmp_path / "pool.jsonl", rows)
    options = (
        "--off-policy",
        pool,
        "--on-policy",
        pool,
        "--on-sources",
        "z",
        "--judge",
        JUDGE,
        "--json",
    )
    stages = {}
    for writer in ("x", "y"):
        result = run(*options, "--off-sources", writer)
        assert result.exit_code == 0, result.output
        stages[writer] = json.loads(result.stdout)["stage"]
    assert stages == {"x": "injection", "y": "fine-tuning"}


def test_on_sources_without_on_is_an_error(off: Path) -> None:
    result = run("--off-policy", off, "--policy", "m", *BY, "--on-sources", "z")
    assert result.exit_code == 2
    assert "on_sources is set and no responses are given" in result.stderr


def test_the_reliability_is_told_where_the_accuracy_is_known(off: Path, short: Path) -> None:
    given = ("--off-policy", off, "--on-policy", short, *BY)
    plain = run(*given)
    assert plain.exit_code == 0, plain.output
    assert "Reliability" not in plain.stdout
    told = run(*given, "--judge-accuracy", 0.8, "--judge-bias", 0.05, "--overlap", 0.2)
    line = told.stdout.splitlines()[1]
    assert line.startswith("Reliability more than 99.9%: the chance that a judge without error")
    assert "right in 80% of comparisons (its bias at most 5%) and the sides overlap by 20%" in line
    kind = run(*given, "--judge-accuracy", 0.8, "--judge-errors", "close-pairs").stdout
    assert "right in 80% of comparisons, and errs in close pairs)" in kind.splitlines()[1]
    found = json.loads(run(*given, "--judge-accuracy", 0.8, "--json").stdout)
    assert 0.9 < found["reliability"] <= 1
    assert found["judge_accuracy"] == 0.8
    assert json.loads(run(*given, "--json").stdout)["reliability"] is None


@pytest.mark.parametrize(
    "wrong",
    [
        ("--judge-accuracy", 0.5),
        ("--judge-bias", 0.1),
        ("--overlap", 0.5),
        ("--judge-errors", "any-pair"),
    ],
)
def test_a_reliability_that_cannot_be_told_is_one_line(
    off: Path, short: Path, wrong: tuple[str, float]
) -> None:
    result = run("--off-policy", off, "--on-policy", short, *BY, *wrong)
    assert result.exit_code == 2
    assert result.stderr.startswith("prefstage: error: ")
    assert result.stderr.count("\n") == 1
