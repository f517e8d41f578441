"""Aligns, or experiments, under SIGKILL, again and again with the same call until done.

    python -m tests.aligning.killing WORK WORLD FOLDER KILLS SEED

does WORK (align, experiment, advise or forecast) once without interruption into FOLDER/whole, and
then into FOLDER/killed-0 with KILLS kills: half of them at the n-th moment at which something is
made durable (an fsync, or a record of the ledger), half after a random time. If a run ends before
all kills are spent, the next begins in FOLDER/killed-1, and so on. Every attempt is a process
forked from this one. Beside each folder stand what its judge was asked (.asked), what it trained
(.trained): "begun STEP", or "again STEP" if that step was whole when the attempt began, and what
it sampled (.sampled): each answer as it is finished, before it is kept, likewise. Prints JSON."""

import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from prefstage.aligning import advise, align, run_experiment
from prefstage.aligning.steps import train
from prefstage.core.ledger import LEDGER, Ledger
from prefstage.sampling import Sample, SampleRequest, TransformersSampler
from tests.aligning.tiny_world import settings

LONGEST_S = 300.0
POLL_S = 0.001
_WHOLE_FSYNC, _WHOLE_PUT = os.fsync, Ledger.put


def recipe(world: Path) -> dict[str, Any]:
    """Two iterations, off and then on, judged by a judge that writes down what it is asked."""
    return settings(world, schedule=["off", "on"], judge="python:tests.aligning.judges:noted")


def grid(world: Path) -> dict[str, Any]:
    """Two losses by three schedules, with a table."""
    losses = {"DPO": {"train.loss": "sigmoid"}, "SLiC-HF": {"train.loss": "slic"}}
    table = {"kind": "stages", "by": ["loss"], "columns": ["true reward", "win_rate"]}
    return {
        "recipe": {**recipe(world), "schedule": "auto", "iterations": 2},
        "axes": {"loss": losses, "schedule": ["off,off", "off,on", "on,on"]},
        "metrics": {"true reward": "python:prefstage.sandbox:true_reward"},
        "tables": {"full": table},
    }


def align_world(world: Path, out: Path) -> None:
    """The alignment."""
    align(recipe(world), out=out)


def experiment_world(world: Path, out: Path) -> None:
    """The experiment; a cell that fails, fails the attempt."""
    failed = run_experiment(grid(world), out=out).failed
    if failed:
        raise SystemExit(str(failed))


def advise_world(world: Path, out: Path, *, depth: Any = "pilot") -> None:
    """Advice by pilots: two candidates, two heats."""
    section = {"target_prompts": 8, "responses": 2, "pairs": 4, "shares": [0.1, 0.2]}
    asked = {**recipe(world), "schedule": "auto", "off_policy": str(world / "many.jsonl")}
    advise({**asked, "advise": section}, out=out, depth=depth)


WORKS: dict[str, Callable[[Path, Path], None]] = {
    "align": align_world,
    "experiment": experiment_world,
    "advise": advise_world,
    "forecast": partial(advise_world, depth="forecast"),
}


def trained(out: Path) -> set[str]:
    """Names of the training steps that are whole."""
    places = (out / "steps", out / "store" / "steps")
    return {path.name for place in places for path in place.glob("train-*")}


def note_training(out: Path) -> None:
    """Have this process write down which training it begins, and whether it was whole before."""
    whole, train_recipe = trained(out), train.train_recipe

    def noted(recipe: Any, folder: Path) -> Any:
        name = folder.name.removeprefix(".unfinished-")
        with Path(f"{out}.trained").open("a") as stream:
            stream.write(f"{'again' if name in whole else 'begun'} {name}\n")
        return train_recipe(recipe, folder)

    train.train_recipe = noted


def sampled(out: Path) -> set[str]:
    """The answers that are on disk, each as "SAMPLER PROMPT INDEX"."""
    rows: list[tuple[Any, ...]] = []
    for file in (out / LEDGER, out / "store" / LEDGER):
        if file.exists():
            with Ledger(file) as ledger:
                rows += ledger.rows("samples")
    return {f"{sampler} {prompt} {index}" for sampler, prompt, index, *_ in rows}


def note_sampling(out: Path) -> None:
    """Have this process write down each answer as it is finished, and whether it was on disk."""
    sample = TransformersSampler.sample

    def noted(self: TransformersSampler, requests: Sequence[SampleRequest]) -> Iterator[Sample]:
        kept = sampled(out)
        for each in sample(self, requests):
            name = f"{self.fingerprint} {each.prompt_id} {each.index}"
            with Path(f"{out}.sampled").open("a") as stream:
                stream.write(f"{'again' if name in kept else 'begun'} {name}\n")
            yield each

    TransformersSampler.sample = noted  # type: ignore[method-assign]  # of a process that ends


def start(work: Callable[[], None], out: Path, *, die_at: int | None) -> int:
    """Fork a process that works, and may kill itself at its `die_at`-th fsync."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        log = os.open(f"{out}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ["PREFSTAGE_NOTED"] = f"{out}.asked"
        note_training(out)
        note_sampling(out)
        count = 0

        def moment() -> None:
            nonlocal count
            count += 1
            if count == die_at:
                os.kill(os.getpid(), signal.SIGKILL)

        def fsync(handle: int) -> None:
            moment()
            _WHOLE_FSYNC(handle)

        def put(self: Ledger, *record: Any) -> Any:
            moment()
            return _WHOLE_PUT(self, *record)

        os.fsync = fsync
        Ledger.put = put  # type: ignore[method-assign]  # of a process that ends
        work()
        Path(f"{out}.fsyncs").write_text(str(count))
        status = 0
    except BaseException:
        traceback.print_exc()  # into the log; the parent tells that the attempt failed
        sys.stderr.flush()
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


def attempt(
    work: Callable[[], None], out: Path, dice: random.Random, *, fsyncs: int, took_s: float
) -> bool:
    """Work until the kill; False if it ended before."""
    if dice.random() < 0.5:
        return wait(start(work, out, die_at=dice.randint(1, fsyncs))) == signal.SIGKILL
    child = start(work, out, die_at=None)
    if wait(child, dice.uniform(0, took_s)) is not None:
        return False
    os.kill(child, signal.SIGKILL)
    wait(child)
    return True


def main() -> None:
    """Work whole, then under kills, and tell what happened."""
    work, world, folder = WORKS[sys.argv[1]], Path(sys.argv[2]), Path(sys.argv[3])
    kills, dice = int(sys.argv[4]), random.Random(int(sys.argv[5]))
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    whole = folder / "whole"
    wait(start(partial(work, world, whole), whole, die_at=None))
    sizes = {"took_s": time.monotonic() - began}
    sizes["fsyncs"] = int((folder / "whole.fsyncs").read_text())
    left, runs, attempts = kills, 0, 0
    while left:
        out = folder / f"killed-{runs}"
        todo = partial(work, world, out)
        attempts += 1
        if attempt(todo, out, dice, **sizes):
            left -= 1
            if not left:
                wait(start(todo, out, die_at=None))
        else:
            runs += 1
    print(json.dumps({"kills": kills, "attempts": attempts, **sizes}))


if __name__ == "__main__":
    main()
