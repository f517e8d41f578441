"""Must show 3: resumed = uninterrupted, bit for bit, after SIGKILL at random moments."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from prefstage.training.checkpoints import STAGING
from tests.training.run_results import results_of

REPOSITORY = Path(__file__).resolve().parents[2]

SETTINGS = {"eval_strategy": "epoch", "save_total_limit": 2, "logging_steps": 2}
RUNS = {
    "a loss with state, attention dropout": {"loss": "bco", "dropout": 0.1},
    "a random loss, LoRA with dropout": {"loss": "sgdpo", "dropout": 0.2, "lora": True},
    "two losses with state, whole batches": {
        "loss": [{"name": "beta_dpo"}, {"name": "re_po", "weight": 0.5}],
        "dropout": 0.1,
        "lora": True,
    },
}


def under_kills(folder: Path, kills: int, settings: dict, program: str) -> dict:
    """Train once whole and again under kills; what the program of the kills tells."""
    arguments = [program, str(folder), str(kills), "3", json.dumps(settings)]
    ran = subprocess.run(
        [sys.executable, "-m", "tests.training.killing", *arguments],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=1800,
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout.splitlines()[-1])


def check(folder: Path, told: dict) -> None:
    expected = results_of(folder / "whole")
    assert len(expected["log of the run"][0]) >= 6
    for number in range(told["trainings"]):
        assert results_of(folder / f"killed-{number}") == expected
        assert not (folder / f"killed-{number}" / STAGING).exists()


def test_three_kills_change_nothing(tmp_path: Path) -> None:
    settings = {**SETTINGS, **RUNS["a loss with state, attention dropout"]}
    check(tmp_path, under_kills(tmp_path, 3, settings, "tests.training.checkpoint_runs"))


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS)
def test_twenty_kills_change_nothing(tmp_path: Path, run: str) -> None:
    settings = {**SETTINGS, **RUNS[run], "num_train_epochs": 4}
    told = under_kills(tmp_path, 20, settings, "tests.training.checkpoint_runs")
    assert told["kills"] == 20
    assert told["during_save"] >= 3
    check(tmp_path, told)


@pytest.mark.slow
def test_twenty_kills_change_nothing_in_a_plain_trainer(tmp_path: Path) -> None:
    settings = {"num_train_epochs": 4, "eval_strategy": "epoch", "save_total_limit": 2}
    check(tmp_path, under_kills(tmp_path, 20, settings, "tests.training.plain_runs"))
