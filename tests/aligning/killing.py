"""Aligns under SIGKILL, again and again with the same call until done.

    python -m tests.aligning.killing WORLD FOLDER KILLS SEED

aligns once without interruption into FOLDER/whole, and then into FOLDER/killed with KILLS
kills: half of them at the n-th moment at which something is made durable (an fsync), half after
a random time. If a run ends before all kills are spent, its folder becomes FOLDER/killed-N and
the next begins. Every attempt is a process forked from this one. Prints JSON.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from prefstage.aligning import align
from tests.aligning.tiny_world import settings

LONGEST_S = 300.0
POLL_S = 0.001
_WHOLE_FSYNC = os.fsync


def recipe(world: Path) -> dict:
    """Two iterations, off and then on, judged by a judge that writes down what it is asked."""
    return settings(world, schedule=["off", "on"], judge="python:tests.aligning.judges:noted")


def start(world: Path, out: Path, *, die_at: int | None) -> int:
    """Fork a process that aligns, and may kill itself at its `die_at`-th fsync."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        log = os.open(f"{out}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ["PREFSTAGE_NOTED"] = f"{out}.asked"
        count = 0

        def fsync(handle: int) -> None:
            nonlocal count
            count += 1
            if count == die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            _WHOLE_FSYNC(handle)

        os.fsync = fsync
        align(recipe(world), out=out)
        Path(f"{out}.fsyncs").write_text(str(count))
        status = 0
    finally:
        os._exit(status)


def wait(child: int, seconds: float = LONGEST_S) -> int | None:
    """The signal that ended a process, 0 for a good end, None if it goes on."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            if os.WIFSIGNALED(status):
                return os.WTERMSIG(status)
            if os.WEXITSTATUS(status):
                raise SystemExit(f"an attempt failed with status {status}")
            return 0
        time.sleep(POLL_S)
    return None


def attempt(world: Path, out: Path, dice: random.Random, *, fsyncs: int, took_s: float) -> bool:
    """Align until the kill; False if it ended before."""
    if dice.random() < 0.5:
        return wait(start(world, out, die_at=dice.randint(1, fsyncs))) == signal.SIGKILL
    child = start(world, out, die_at=None)
    if wait(child, dice.uniform(0, took_s)) is not None:
        return False
    os.kill(child, signal.SIGKILL)
    wait(child)
    return True


def main() -> None:
    """Align whole, then under kills, and tell what happened."""
    world, folder = Path(sys.argv[1]), Path(sys.argv[2])
    kills, dice = int(sys.argv[3]), random.Random(int(sys.argv[4]))
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    wait(start(world, folder / "whole", die_at=None))
    sizes = {"took_s": time.monotonic() - began}
    sizes["fsyncs"] = int((folder / "whole.fsyncs").read_text())
    left, runs, attempts = kills, 0, 0
    while left:
        out = folder / f"killed-{runs}"
        attempts += 1
        if attempt(world, out, dice, **sizes):
            left -= 1
            if not left:
                wait(start(world, out, die_at=None))
        else:
            runs += 1
    print(json.dumps({"kills": kills, "attempts": attempts, **sizes}))


if __name__ == "__main__":
    main()
