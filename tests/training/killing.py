"""Trains under SIGKILL at random moments, again and again with the same command until done.

    python -m tests.training.killing PROGRAM FOLDER KILLS SEED SETTINGS

trains once without interruption into FOLDER/whole and then with KILLS kills into
FOLDER/killed-0, killed-1, ...: whenever a training ends before all kills are spent, the next
begins. PROGRAM is a module with ``run(folder, settings)``, which goes on from what is there.
Every attempt is a process forked from this one, so that libraries are imported once. Half of
the kills come as soon as a checkpoint is being written, a moment later. Prints JSON.
"""

import importlib
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prefstage.training.checkpoints import STAGING

POLL_S = 0.0005
LONGEST_S = 300.0


def start(run: Callable[[Path, dict[str, Any]], None], folder: Path, settings: dict) -> int:
    """Fork a process that trains; its output goes to a file beside the folder."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        log = os.open(f"{folder}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        run(folder, settings)
        status = 0
    finally:
        os._exit(status)


def ended(child: int) -> bool:
    """Whether a process has ended; a failure is an error."""
    found, status = os.waitpid(child, os.WNOHANG)
    if found and status:
        raise SystemExit(f"an attempt failed with status {status}")
    return bool(found)


def kill(child: int, moment: str, wait_s: float, folder: Path) -> bool:
    """Kill a process at a moment; False if it ended before."""
    staging = folder / STAGING
    deadline = time.monotonic() + (LONGEST_S if moment == "saving" else wait_s)
    while time.monotonic() < deadline and not (moment == "saving" and staging.exists()):
        if ended(child):
            return False
        time.sleep(POLL_S)
    if moment == "saving":
        time.sleep(wait_s)
    if ended(child):
        return False
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


def finish(child: int) -> None:
    """Wait for a process to end well."""
    while not ended(child):
        time.sleep(POLL_S)


def main() -> None:
    """Train whole, then under kills, and tell what happened."""
    name, place, kills, seed, given = sys.argv[1:]
    run, settings = importlib.import_module(name).run, json.loads(given)
    base, dice = Path(place), random.Random(int(seed))
    base.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    finish(start(run, base / "whole", settings))
    took_s = time.monotonic() - began
    left, trainings, during_save, attempts = int(kills), 0, 0, 0
    while left:
        folder = base / f"killed-{trainings}"
        child = start(run, folder, settings)
        while left:
            attempts += 1
            moment = dice.choice(["saving", "training"])
            wait_s = dice.uniform(0, 0.01 if moment == "saving" else took_s)
            if not kill(child, moment, wait_s, folder):
                break
            left -= 1
            during_save += (folder / STAGING).exists()
            child = start(run, folder, settings)
        else:
            finish(child)
        trainings += 1
    told = {"trainings": trainings, "attempts": attempts, "during_save": during_save}
    print(json.dumps(told | {"kills": int(kills)}))


if __name__ == "__main__":
    main()
