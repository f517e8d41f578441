"""Two processes that share every step end where one process ends: DDP and FSDP on CPU."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.training.preference_runs import (
    largest_difference,
    logged,
    preference_trainer,
    tiny_pairs,
    weights_of,
)

REPOSITORY = Path(__file__).resolve().parents[2]


def train_by_two(
    folder: Path, *, fsdp: int = 0, **settings: Any
) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    """Train on two processes that take half of each step; weights and log."""
    folder.mkdir(parents=True)
    settings["per_device_train_batch_size"] = 4
    order = {"folder": str(folder), "fsdp": fsdp, "settings": settings}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = ["torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}"]
    module = ["-m", "tests.training.distributed_run", json.dumps(order)]
    done = subprocess.run(
        [sys.executable, "-m", *launcher, *module],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    log = json.loads((folder / "log.json").read_text(encoding="utf-8"))
    return torch.load(folder / "weights.pt"), log


def check_equal(tmp_path: Path, *, fsdp: int = 0, **settings: Any) -> None:
    """Compare weights, losses, gradients and evaluation of two processes with one."""
    settings = {"token_budget": 150, "eval_strategy": "steps", "eval_steps": 2, **settings}
    one = preference_trainer(tmp_path / "one", eval_dataset=tiny_pairs(7, seed=5), **settings)
    one.train()
    weights, log = train_by_two(tmp_path / "two", fsdp=fsdp, **settings)
    if weights:
        difference = largest_difference(weights_of(one.model), weights)
        print(f"largest difference of a weight: {difference:.2g}")
        assert difference < 1e-5
    for name in ("loss", "grad_norm", "eval_loss", "eval_logps/chosen", "logps/chosen"):
        found = [entry[name] for entry in log if name in entry]
        assert found == pytest.approx(logged(one, name), rel=1e-4), name


def test_two_processes_equal_one(tmp_path: Path) -> None:
    """DDP, with several micro-batches before the exchange of gradients.

    21 items in steps of 8: the last step of an epoch has 5 for the two processes.
    """
    check_equal(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("fsdp", [0, 1, 2])
@pytest.mark.parametrize("loss", ["kto", "aot", "bco", "sgdpo"])
def test_every_kind_of_loss_is_the_same_on_two_processes(
    loss: str, fsdp: int, tmp_path: Path
) -> None:
    check_equal(tmp_path, fsdp=fsdp, loss=loss)


@pytest.mark.slow
@pytest.mark.parametrize("fsdp", [0, 2])
def test_the_flat_layout_is_the_same_on_two_processes(fsdp: int, tmp_path: Path) -> None:
    """Processes may have different numbers of passes, which FSDP must not notice."""
    check_equal(tmp_path, fsdp=fsdp, layout="flat")


@pytest.mark.slow
def test_fewer_items_than_processes_are_trained_on_all_the_same(tmp_path: Path) -> None:
    check_equal(tmp_path, fsdp=2, pairs=9, max_steps=4)
