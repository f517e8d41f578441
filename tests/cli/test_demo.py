import json

import pytest
from typer.testing import CliRunner

from prefstage.cli.main import app
from prefstage.sandbox import demo
from prefstage.sandbox.demo import DemoConfig

STAGES = {"injection", "fine-tuning", "undecided"}
SMALL = {"pairs": 24, "held_out": 6, "demonstrations": 60, "sft_steps": 2, "epochs": 1}


@pytest.fixture(scope="module")
def small_demo():
    """A demo of seconds; what it finds does not matter here."""
    full = demo.run_demo

    def run(out, *, config, tell):
        return full(out, config=DemoConfig(seed=config.seed, **SMALL), tell=tell)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "run_demo", run)
        yield


def call(*arguments, columns=80):
    return CliRunner().invoke(app, ["demo", *arguments], env={"COLUMNS": str(columns)})


@pytest.fixture(scope="module")
def first(small_demo, tmp_path_factory):
    """A folder and what a person read as the demo made it."""
    out = tmp_path_factory.mktemp("demo") / "d"
    return out, call("--out", str(out))


def test_people_read_six_parts_and_where_the_files_are(first):
    out, result = first
    assert result.exit_code == 0, result.output
    for title in (
        "1. The preference data at hand",
        "2. A model to align",
        "3. Advice: which data next?",
        "4. Was it right?",
        "5. Aligning it, by stages",
        "6. Going on",
    ):
        assert title in result.stdout
    assert f"wrote {out / 'demo.json'}" in result.stdout
    assert f"--policy {out / 'world' / 'policy'}" in result.stdout
    assert f"The report: {out / 'report.html'}" in result.stdout
    assert (out / "report.html").read_text().startswith("<!doctype html>")
    assert "\x1b" not in result.stdout
    assert "from an earlier run" not in " ".join(result.output.split())


def test_what_is_said_is_what_was_found(first):
    out, result = first
    found = json.loads((out / "demo.json").read_text())
    text = " ".join(result.stdout.split())
    for depth, advice in found["advice"].items():
        assert f"{depth}: train on {advice['choice']}" in text
        best = next(iter(found["truth"]))
        behind = advice["behind_the_best"]
        words = f"{behind['gain']:.3f} ± {1.96 * behind['error']:.3f} behind {best}"
        how = "the best" if advice["choice"] == best else words
        assert f"{depth}: named {advice['choice']}, {how}" in text
    for truth in found["truth"].values():
        assert f"{truth['gain']:+.3f} ± {1.96 * truth['error']:.3f}" in text
    for each in found["iterations"]:
        before, after = each["true_reward"]["before"], each["true_reward"]["after"]
        assert f"mean grade {before:.3f} -> {after:.3f}" in text
        assert f"boundary score {each['stage']['boundary_score']:.2f}" in text
        assert f"in truth {each['true_boundary_score']:.2f}" in text


@pytest.fixture
def page_as_it_is(first, monkeypatch):
    """The page of the first call, not written again."""
    monkeypatch.setattr("prefstage.cli.demo._page", lambda report: report.folder / "report.html")


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.usefixtures("page_as_it_is")
def test_the_text_fits_the_terminal(first, columns):
    out, _ = first
    result = call("--out", str(out), columns=columns)
    assert "from an earlier run" in " ".join(result.output.split())
    text = [line for line in result.stdout.splitlines() if str(out) not in line]
    assert max(map(len, text)) <= columns
    assert any("data" in line and "true gain" in line for line in text)


@pytest.mark.usefixtures("page_as_it_is")
def test_machines_read_json_alone(first):
    out, _ = first
    result = call("--out", str(out), "--json")
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert found["config"]["seed"] == 0
    assert {each["stage"]["stage"] for each in found["iterations"]} <= STAGES
    assert list(found["advice"]) == ["stage", "forecast", "pilot"]
    assert {*found["truth"]} == {"off", "on", "mix: 0.5"}
    saved = json.loads((out / "demo.json").read_text())
    assert {**saved, "seconds": found["seconds"], "report": str(out / "report.html")} == found


@pytest.mark.parametrize(
    ("terminal", "environment", "opens"),
    [
        (True, {"DISPLAY": ":0"}, True),
        (True, {"WAYLAND_DISPLAY": "wayland-0"}, True),
        (True, {}, False),
        (True, {"DISPLAY": ":0", "CI": "true"}, False),
        (True, {"DISPLAY": ":0", "SSH_CONNECTION": "::1 1 ::1 22"}, False),
        (False, {"DISPLAY": ":0"}, False),
    ],
)
def test_the_page_is_opened_for_people_at_a_display_alone(
    monkeypatch, terminal, environment, opens
):
    from prefstage.cli import demo as command

    for name in ("CI", "SSH_CONNECTION", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(command.sys, "platform", "linux")
    monkeypatch.setattr(command.sys.stdout, "isatty", lambda: terminal)
    assert command._on_desktop() is opens


def test_another_world_in_the_same_folder_is_refused_in_one_line(first):
    out, _ = first
    result = call("--out", str(out), "--seed", "1")
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
