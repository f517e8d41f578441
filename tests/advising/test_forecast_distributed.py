"""Two processes that share every batch forecast what one process forecasts."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.advising.distributed_run import BATCH, figures_of

REPOSITORY = Path(__file__).resolve().parents[2]


def test_forecasts_of_two_processes_equal_those_of_one(tmp_path: Path) -> None:
    """Losses without and with a look at the whole batch, and at random; batches of odd numbers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = ["torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}"]
    done = subprocess.run(
        [sys.executable, "-m", *launcher, "-m", "tests.advising.distributed_run", str(tmp_path)],
        cwd=REPOSITORY,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(map(str, (REPOSITORY, REPOSITORY / "src"))),
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (
        json.loads((tmp_path / f"figures-{rank}.json").read_text("utf-8")) for rank in (0, 1)
    )
    assert first == second
    for loss, figures in figures_of(tmp_path / "one", a_process=BATCH).items():
        assert first[loss] == pytest.approx(figures, rel=1e-4), loss
