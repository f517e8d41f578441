"""Commands that are stopped at any moment and started again: what is lost, and how fast they end.

    python -m tests.cli.stops FOLDER [--kills 100] [--interrupts 50] [--seed 0] [--commands ...]

Every command does its work once undisturbed; then it is killed (SIGKILL) or interrupted (SIGINT to
its process group, as a terminal sends Ctrl-C) at a moment drawn from the seed, from its first
import to its last write, started again, and its results are compared with the undisturbed ones.
Prints a table, and a line for whatever was not as it should be.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from prefstage.core import markdown_table
from tests.aligning.tiny_world import JUDGE, make_world, settings
from tests.killed_command import PREFSTAGE

ENDS_WITHIN_S = 20.0  # of an interrupt, on a machine that does other things too
INTERRUPTED = 130
# What is another in every run: times, what was reused, free memory, and the sizes and hashes of
# files that hold such.
VOLATILE = {
    *("seconds", "created", "date", "written", "train_runtime", "eval_runtime", "files", "key"),
    *(
        "tokens_per_s",
        "tokens_per_second",
        "items_per_second",
        "train_samples_per_second",
        "train_steps_per_second",
    ),
    *("eval_samples_per_second", "eval_steps_per_second", "memory_available_bytes"),
    *("costs", "counts", "judge_counts"),
}


@dataclass(frozen=True)
class Command:
    """A command, and what is the same whenever it was stopped.

    Attributes:
        words: Behind `prefstage`; `OUT` stands for its folder or file.
        results: Files under `OUT` that are compared: JSON without what a clock says, others by
            their bytes.
    """

    words: str
    results: Sequence[str] = ("",)

    def line(self, out: Path) -> list[str]:
        """The words with the folder or file."""
        return [word.replace("OUT", str(out)) for word in self.words.split()]

    def read(self, out: Path) -> dict[str, Any]:
        """Its results, by name."""
        found = {}
        for pattern in self.results:
            for path in sorted(out.glob(pattern)) if pattern else [out]:
                raw = path.read_bytes().replace(str(out).encode(), b"OUT")
                value = steady(json.loads(raw)) if path.suffix == ".json" else raw
                found[path.relative_to(out).as_posix()] = value
        assert found, f"{self.words} left nothing"
        return found


COMMANDS = {
    "sample": Command(
        "sample --policy policy --prompts many.jsonl --out OUT.jsonl --max-new-tokens 12"
    ),
    "judge": Command(
        f"judge --judge {JUDGE} --pairs many.jsonl --out OUT.jsonl --store OUT.sqlite"
    ),
    "measure": Command(
        f"measure --off-policy many.jsonl --policy policy --judge {JUDGE} --out OUT"
        " --max-new-tokens 12",
        ["stage.json", "prompts.parquet"],
    ),
    "build": Command("build build.yaml --out OUT", ["build.json", "*.parquet"]),
    "train": Command("train train.yaml --out OUT", ["model/*.safetensors"]),
    "evaluate": Command(
        f"evaluate --answers ours.json --baseline theirs.json --judge {JUDGE} --out OUT",
        ["*.json"],
    ),
    "diagnose": Command(
        "diagnose --pairs many.jsonl --policy policy --out OUT", ["report.json", "report.md"]
    ),
    "align": Command("align align.yaml --out OUT", ["align.json"]),
    "advise": Command("advise advise.yaml --out OUT", ["advise.json"]),
}


def prepare(folder: Path) -> None:
    """Write the world and the recipes."""
    make_world(folder)
    align = settings(folder, schedule=["off", "on"])
    advise = settings(
        folder,
        off_policy=str(folder / "many.jsonl"),
        advise={"target_prompts": 8, "responses": 3, "pairs": 8},
    )
    train = {
        "policy": "policy",
        "data": "many.jsonl",
        "training": {
            **{"max_steps": 12, "per_device_train_batch_size": 4, "use_cpu": True},
            **{"save_steps": 3, "logging_steps": 1},
        },
    }
    build = {"method": "relabel", "pairs": "many.jsonl", "judge": JUDGE, "accept_reversal": True}
    for name, recipe in (("align", align), ("advise", advise), ("train", train), ("build", build)):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(recipe))
    prompts = [json.loads(line) for line in (folder / "many.jsonl").read_text().splitlines()]
    for name in ("ours", "theirs"):
        rows = [
            {
                "instruction": row["prompt"][-1]["content"],
                "output": row["chosen" if name == "ours" else "rejected"][-1]["content"],
                "generator": name,
            }
            for row in prompts
        ]
        (folder / f"{name}.json").write_text(json.dumps(rows))


def steady(value: Any) -> Any:
    """JSON without what is another in every run."""
    if isinstance(value, Mapping):
        return {k: steady(v) for k, v in value.items() if k not in VOLATILE}
    return [steady(inner) for inner in value] if isinstance(value, list) else value


# Where two results begin to differ.
def difference(a: Any, b: Any, where: str = "") -> str:
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        for key in sorted({*a, *b}):
            if a.get(key) != b.get(key):
                return difference(a.get(key), b.get(key), f"{where}/{key}")
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        number = next(n for n, both in enumerate(zip(a, b, strict=True)) if both[0] != both[1])
        return difference(a[number], b[number], f"{where}/{number}")
    return f"{where}: {str(a)[:80]!r}, undisturbed {str(b)[:80]!r}"


@dataclass
class Tally:
    """What became of a command's stops."""

    counts: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    faults: list[str] = field(default_factory=list)


def run(words: Sequence[str], folder: Path) -> subprocess.Popen[str]:
    """Start `prefstage` in a process group of its own."""
    return subprocess.Popen(
        [*PREFSTAGE, *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([os.getcwd(), *_paths()])},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def _paths() -> list[str]:
    return [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]


class Stops:
    """Stops commands of one world.

    Args:
        folder: Where everything is written; made by `prepare`.
        seed: Of the moments.
    """

    def __init__(self, folder: Path, *, seed: int) -> None:
        self._folder, self._random = folder, random.Random(seed)
        self._whole: dict[str, tuple[dict[str, Any], float]] = {}
        self._number = 0

    def undisturbed(self, name: str) -> tuple[dict[str, Any], float]:
        """Results of the whole command, and its seconds."""
        if name not in self._whole:
            began = time.monotonic()
            results = self._finish(name, self._folder / f"whole-{name}")
            self._whole[name] = results, time.monotonic() - began
        return self._whole[name]

    def stop(self, name: str, how: signal.Signals, tally: Tally) -> None:
        """Stop it once, start it again, and compare."""
        expected, seconds = self.undisturbed(name)
        self._number += 1
        out = self._folder / f"stopped-{self._number}"
        moment = self._random.uniform(0.05, 1.0) * seconds
        process = run(COMMANDS[name].line(out), self._folder)
        try:
            process.wait(moment)
            tally.counts["over before"] += 1
        except subprocess.TimeoutExpired:
            began = time.monotonic()
            os.killpg(process.pid, how)
            self._ended(name, process, how, f"{name} at {moment:.2f} s of {seconds:.2f}", tally)
            tally.slowest = max(tally.slowest, time.monotonic() - began)
        process.communicate()
        tally.counts["stopped"] += 1
        found = self._finish(name, out)
        tally.counts["same result"] += found == expected
        if found != expected:
            where = difference(found, expected)
            tally.faults.append(f"{name} at {moment:.2f} s: another result at {where}")
        for path in self._folder.glob(f"{out.name}*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _ended(
        self, name: str, process: Any, how: signal.Signals, where: str, tally: Tally
    ) -> None:
        try:
            _, errors = process.communicate(timeout=ENDS_WITHIN_S)
        except subprocess.TimeoutExpired:
            tally.faults.append(f"{where}: still there after {ENDS_WITHIN_S:g} s")
            os.killpg(process.pid, signal.SIGKILL)
            return
        if how is signal.SIGKILL:
            return
        tally.counts["ended in time"] += 1
        last = (errors.strip().splitlines() or [""])[-1]
        told = process.returncode in (INTERRUPTED, 0)  # 0: it was at its very end
        tally.counts["told so"] += told
        if not told or "Traceback" in errors:
            tally.faults.append(f"{where}: exit {process.returncode}, {last!r}")

    def _finish(self, name: str, out: Path) -> dict[str, Any]:
        process = run(COMMANDS[name].line(out), self._folder)
        _, errors = process.communicate()
        assert process.returncode == 0, f"{name}: {errors}"
        target = out if COMMANDS[name].results != ("",) else out.with_name(f"{out.name}.jsonl")
        return COMMANDS[name].read(target)


def trial(
    folder: Path, names: Sequence[str], *, kills: int, interrupts: int, seed: int
) -> dict[str, Tally]:
    """Stop commands in turn, and tally what became of it, by command and kind of stop."""
    stops, tallies = Stops(folder, seed=seed), dict[str, Tally]()
    for label, how, count in (
        ("killed", signal.SIGKILL, kills),
        ("interrupted", signal.SIGINT, interrupts),
    ):
        for number in range(count):
            name = names[number % len(names)]
            tally = tallies.setdefault(f"{name}, {label}", Tally())
            stops.stop(name, how, tally)
            print(f"{name}, {label}: {tally.faults or 'well'}", file=sys.stderr, flush=True)
    return tallies


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", maxsplit=1)[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--interrupts", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commands", nargs="+", default=list(COMMANDS))
    asked = parser.parse_args()
    folder = asked.folder.absolute()
    folder.mkdir(parents=True)
    prepare(folder)
    tallies = trial(
        folder, asked.commands, kills=asked.kills, interrupts=asked.interrupts, seed=asked.seed
    )
    columns: Sequence[tuple[str, Callable[[Tally], Any]]] = (
        ("stops", lambda t: t.counts["stopped"]),
        ("over before", lambda t: t.counts["over before"]),
        ("told so", lambda t: t.counts["told so"]),
        ("slowest end", lambda t: f"{t.slowest:.1f} s"),
        ("same result", lambda t: t.counts["same result"]),
    )
    rows = [(name, *(read(tally) for _, read in columns)) for name, tally in tallies.items()]
    print(markdown_table(("command", *(head for head, _ in columns)), rows))
    for tally in tallies.values():
        print(*tally.faults, sep="\n", end="\n" if tally.faults else "")


if __name__ == "__main__":
    main()
