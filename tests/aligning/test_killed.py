"""Killed at any moment and called again: the results of a run that was never stopped."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from prefstage.core.files import digest_file
from prefstage.core.ledger import LEDGER, Ledger
from prefstage.data import load_pairs
from tests.aligning.killing import sampled, trained


def weights(out: Path) -> list[str]:
    return [digest_file(path) for path in sorted(out.glob("steps/*/model/model.safetensors"))]


def judgments(out: Path) -> list[tuple[Any, ...]]:
    """Every judgment on file."""
    with Ledger(out / LEDGER) as ledger:
        return sorted(ledger.rows("judgments"))


def figures(out: Path) -> dict[str, Any]:
    result = json.loads((out / "align.json").read_text())
    return {name: result[name] for name in ("iterations", "costs", "stopped")}


def samples(out: Path) -> list[tuple[Any, ...]]:
    with Ledger(out / LEDGER) as ledger:
        return sorted(ledger.rows("samples"))


def pairs(out: Path) -> list[list[Any]]:
    return [list(load_pairs(path)) for path in sorted(out.glob("steps/*/pairs.parquet"))]


ENDS = {"align": "align.json", "experiment": "experiment.json"}


def killed(work: str, world: Path, folder: Path, *, kills: int, seed: int) -> list[Path]:
    """The folders of the killed runs that ended in the end."""
    words = [sys.executable, "-m", "tests.aligning.killing", work, world, folder, kills, seed]
    ran = subprocess.run([str(word) for word in words], check=False, capture_output=True, text=True)
    logs = "\n".join(path.read_text()[-2000:] for path in sorted(folder.glob("*.log")))
    assert ran.returncode == 0, ran.stderr + logs
    assert json.loads(ran.stdout)["kills"] == kills
    ended = ENDS.get(work, "advise.json")
    return sorted(path for path in folder.glob("killed-*") if (path / ended).exists())


def check_nothing_twice(runs: list[Path], *, kills: int) -> None:
    """No finished training was begun again; of the rest only what a kill interrupted."""
    twice = 0
    for run in runs:
        begun = [line.split() for line in Path(f"{run}.trained").read_text().splitlines()]
        assert {word for word, _ in begun} == {"begun"}
        assert {step for _, step in begun} == trained(run)
        answers = [line.split(" ", 1) for line in Path(f"{run}.sampled").read_text().splitlines()]
        assert {word for word, _ in answers} == {"begun"}, "sampled though it was on disk"
        assert {name for _, name in answers} == sampled(run)
        twice += len(answers) - len(sampled(run))
    assert twice <= kills, "more than the one answer that a kill keeps from the disk"
    asked = [Counter(Path(f"{run}.asked").read_text().splitlines()) for run in runs]
    again = sum(count - 1 for each in asked for count in each.values() if count > 1)
    assert again <= 2 * kills, "more than the one comparison (two orders) that a kill interrupts"


def check(world: Path, folder: Path, *, kills: int, seed: int) -> None:
    runs = killed("align", world, folder, kills=kills, seed=seed)
    whole = folder / "whole"
    assert runs
    assert weights(whole)
    for run in runs:
        assert weights(run) == weights(whole)
        assert figures(run) == figures(whole)
        assert samples(run) == samples(whole)
        assert judgments(run) == judgments(whole)
        assert pairs(run) == pairs(whole)
    check_nothing_twice(runs, kills=kills)


def test_three_kills_change_nothing(world: Path, tmp_path: Path) -> None:
    check(world, tmp_path, kills=3, seed=1)


@pytest.mark.slow
def test_fifty_kills_change_nothing(world: Path, tmp_path: Path) -> None:
    check(world, tmp_path, kills=50, seed=2)


def tables(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((out / "tables").iterdir())}


@pytest.mark.slow
def test_an_experiment_under_ten_kills_finds_the_same(world: Path, tmp_path: Path) -> None:
    runs, whole = killed("experiment", world, tmp_path, kills=10, seed=3), tmp_path / "whole"
    assert runs
    assert weights(whole / "store")
    for run in runs:
        assert set(tables(run)) == {"full.md", "full.tex", "full.csv"}
        assert tables(run) == tables(whole)
        assert (run / "experiment.json").read_bytes() == (whole / "experiment.json").read_bytes()
        assert weights(run / "store") == weights(whole / "store")
        assert judgments(run / "store") == judgments(whole / "store")
        assert samples(run / "store") == samples(whole / "store")
    check_nothing_twice(runs, kills=10)


def check_advice(work: str, world: Path, folder: Path, *, kills: int, seed: int) -> None:
    runs, whole = killed(work, world, folder, kills=kills, seed=seed), folder / "whole"
    assert runs
    assert bool(weights(whole)) is (work == "advise")
    for run in runs:
        assert (run / "advise.json").read_bytes() == (whole / "advise.json").read_bytes()
        assert weights(run) == weights(whole)
        assert samples(run) == samples(whole)
        assert judgments(run) == judgments(whole)
        assert pairs(run) == pairs(whole)
    if work == "advise":
        check_nothing_twice(runs, kills=kills)


def test_three_kills_change_no_advice(world: Path, tmp_path: Path) -> None:
    check_advice("advise", world, tmp_path, kills=3, seed=4)


@pytest.mark.slow
def test_twenty_kills_of_pilots_change_no_advice(world: Path, tmp_path: Path) -> None:
    check_advice("advise", world, tmp_path, kills=20, seed=5)


@pytest.mark.slow
def test_ten_kills_of_a_forecast_change_no_advice(world: Path, tmp_path: Path) -> None:
    check_advice("forecast", world, tmp_path, kills=10, seed=6)
