"""`prefstage evaluate`: answers judged, verdicts recounted, a stop gone on from."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from prefstage.cli.main import app

RUNNER = CliRunner()
HERE = Path(__file__).parent


def longer(a: str, b: str, prompt: Any) -> float:
    return 0.5 + 0.5 * ((len(a) > len(b)) - (len(a) < len(b)))


def slow(a: str, b: str, prompt: Any) -> float:
    with Path(os.environ["VERDICTS"]).open("a") as stream:
        stream.write(f"{prompt[0]['content']} {min(a, b)}\n")
    time.sleep(0.02)
    return longer(a, b, prompt)


def outputs(path: Path, name: str, texts: list[str]) -> Path:
    rows = [
        {"instruction": f"q{k}", "output": text, "generator": name} for k, text in enumerate(texts)
    ]
    path.write_text(json.dumps(rows))
    return path


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    sizes = [(k * 7) % 11 for k in range(60)]
    return {
        "m": outputs(tmp_path / "m.json", "m", ["x" * size for size in sizes]),
        "n": outputs(tmp_path / "n.json", "n", ["x" * (size + 2) for size in sizes]),
        "b": outputs(tmp_path / "b.json", "b", ["x" * 6] * 60),
    }


def run(*arguments: object) -> Any:
    return RUNNER.invoke(app, ["evaluate", *map(str, arguments)])


def judged(files: dict[str, Path], *more: object, judge: str = "longer") -> list[object]:
    return [
        *("--answers", files["m"], "--baseline", files["b"]),
        *("--judge", f"python:test_evaluate:{judge}", "--out", files["m"].parent / "out", *more),
    ]


def test_models_are_judged_compared_and_written(files: dict[str, Path]) -> None:
    done = run(*judged(files, "--answers", files["n"], "--json"))
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    sizes = [(k * 7) % 11 for k in range(60)]
    wins = sum(size > 6 for size in sizes) + 0.5 * sum(size == 6 for size in sizes)
    assert result["results"]["m"]["rates"]["win_rate"] == pytest.approx(100 * wins / 60)
    assert result["results"]["m"]["controlled"]["difficulty"] == "none"
    assert result["comparison"][0]["better"] == "n"
    out = files["m"].parent / "out"
    saved = json.loads((out / "results.json").read_text())
    assert saved["results"] == result["results"]
    assert (out / "leaderboard.csv").read_text().count("\n") == 3
    again = run("--annotations", out / "model-0" / "annotations.json", "--json")
    assert again.exit_code == 0, again.output
    assert json.loads(again.stdout)["win_rate"] == pytest.approx(100 * wins / 60)


def test_a_summary_is_told(files: dict[str, Path]) -> None:
    done = run(*judged(files, "--stop-early"))
    assert done.exit_code == 0, done.output
    assert "win rate" in done.stdout
    assert "wrote" in done.stdout


def test_annotations_are_recounted_as_published(tmp_path: Path) -> None:
    rows = [
        {
            "instruction": f"q{k}",
            "output_1": "a" * (k + 1),
            "output_2": "b" * (2 * k % 13),
            "generator_1": "base",
            "generator_2": "model",
            "annotator": "judge",
            "preference": 1 + (k % 5) / 4,
        }
        for k in range(40)
    ]
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(rows))
    done = run("--annotations", path, "--lookup", "as-published", "--out", tmp_path / "o", "--json")
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert (result["difficulty"], result["win_rate"]) == ("official", 50.0)
    assert (tmp_path / "o" / "leaderboard.csv").exists()


def test_a_killed_evaluation_judges_nothing_twice(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    verdicts = files["m"].parent / "verdicts.txt"
    environment = {**os.environ, "VERDICTS": str(verdicts), "PYTHONPATH": str(HERE)}
    words = ["evaluate", *map(str, judged(files, "--json", judge="slow"))]
    script = "from prefstage.cli.main import main; main()"
    first = subprocess.Popen(
        [sys.executable, "-c", script, *words], env=environment, stdout=subprocess.PIPE
    )
    while not verdicts.exists() or len(verdicts.read_text().splitlines()) < 40:
        assert first.poll() is None
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert first.stdout is not None
    first.stdout.close()
    monkeypatch.setenv("VERDICTS", str(verdicts))
    done = run(*judged(files, "--json", judge="slow"))
    assert done.exit_code == 0, done.output
    asked = verdicts.read_text().splitlines()
    assert json.loads(done.stdout)["counts"]["reused"] >= 15
    # each comparison in both orders; only the one that the kill cut short is asked again
    assert len(asked) <= 2 * len(set(asked)) + 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "a model to evaluate"),
        (["--answers", "a.json"], "--baseline"),
        (["--answers", "a.json", "--annotations", "b.json"], "--annotations and --answers"),
        (["--annotations", "none.json"], "none.json"),
    ],
)
def test_wrong_commands_are_one_line(words: list[str], message: str) -> None:
    done = run(*words)
    assert done.exit_code == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
