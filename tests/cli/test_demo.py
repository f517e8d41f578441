import json

import pytest
from typer.testing import CliRunner

from prefstage.cli.main import app
from prefstage.sandbox import demo
from prefstage.sandbox.demo_report import DemoConfig

STAGES = {"injection", "fine-tuning", "undecided"}


@pytest.fixture
def small_demo(monkeypatch):
    """A demo of seconds; what it finds does not matter here."""
    full = demo.run_demo

    def run(out, *, config, tell):
        sizes = {"prompts": 30, "demonstrations": 60, "weak_steps": 1, "strong_steps": 2}
        return full(out, config=DemoConfig(seed=config.seed, **sizes), tell=tell)

    monkeypatch.setattr(demo, "run_demo", run)


def call(*arguments, columns=80):
    return CliRunner().invoke(app, ["demo", *arguments], env={"COLUMNS": str(columns)})


def test_people_read_five_steps_and_where_the_files_are(small_demo, tmp_path):
    out = tmp_path / "d"
    result = call("--out", str(out))
    assert result.exit_code == 0, result.output
    for title in (
        "1. The preference data at hand",
        "2. Two models to be measured",
        "3. Measuring",
        "4. The stages",
        "5. What to do next",
    ):
        assert title in result.stdout
    assert f"wrote {out / 'demo.json'}" in result.stdout
    assert f"--policy {out / 'policies' / 'weak'}" in result.stdout
    assert "30 prompts and 120 judgments" in result.stdout
    assert "\x1b" not in result.stdout


@pytest.mark.parametrize("columns", [80, 120])
def test_the_text_fits_the_terminal(small_demo, tmp_path, columns):
    result = call("--out", str(tmp_path / "d"), columns=columns)
    lines = result.stdout.splitlines()
    text = [line for line in lines if str(tmp_path) not in line]
    assert max(map(len, text)) <= columns
    table = next(line for line in lines if "95% interval" in line and "truth" in line)
    assert "judgments" in table


def test_machines_read_json_alone(small_demo, tmp_path):
    result = call("--out", str(tmp_path / "d"), "--seed", "3", "--json")
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert found["config"]["seed"] == 3
    assert found["fixed_budget"] == {"prompts": 30, "judgments": 120}
    assert {each["stage"]["stage"] for each in found["policies"].values()} <= STAGES
    saved = json.loads((tmp_path / "d" / "demo.json").read_text())
    assert {**saved, "seconds": found["seconds"]} == found


def test_a_second_run_says_that_it_reuses_the_policies(small_demo, tmp_path):
    out = str(tmp_path / "d")
    assert "from an earlier run" not in call("--out", out).output
    assert "from an earlier run" in " ".join(call("--out", out).output.split())


def test_another_world_in_the_same_folder_is_refused_in_one_line(small_demo, tmp_path):
    out = str(tmp_path / "d")
    call("--out", out)
    result = call("--out", out, "--seed", "1")
    assert result.exit_code == 2
    (line,) = [line for line in result.stderr.splitlines() if line.strip()]
    assert "different: seed" in line
    assert "--out" in line


def test_a_folder_of_something_else_is_left_alone(small_demo, tmp_path):
    (tmp_path / "mine.txt").write_text("keep me")
    result = call("--out", str(tmp_path))
    assert result.exit_code == 2
    assert (tmp_path / "mine.txt").read_text() == "keep me"
    assert len(list(tmp_path.iterdir())) == 1
