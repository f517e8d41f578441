"""Two starts of every command that writes, in one folder: one is refused, the other loses nothing.

All are real processes. Whoever takes the lock waits behind a gate until others have come and
gone, so that which starts meet does not depend on the machine's speed.
"""

import json
import multiprocessing
import os
import re
import shutil
import sqlite3
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path
from tempfile import gettempdir
from typing import Any, NamedTuple

import pytest
import yaml
from typer.testing import CliRunner

from prefstage.cli.main import COMMANDS as ALL, app
from prefstage.core import ledger, runs
from prefstage.sandbox import demo
from tests.aligning.tiny_world import settings
from tests.cli.stops import COMMANDS as STOPPED, difference, prepare, steady
from tests.cli.test_demo import SMALL
from tests.faulty_server import FaultyServer

WAITS_S = 180.0
COMMANDS = {name: command.words for name, command in STOPPED.items()} | {
    "evaluate --mt-bench": "evaluate --mt-bench questions.jsonl --policy policy"
    " --judge openai:m@SERVER --max-new-tokens 4 --out OUT",
    "experiment": "experiment grid.yaml --out OUT",
    "report": "report whole --out OUT.html",
    "theory": "theory stage-5.4 --worlds 100 --no-figures --out OUT",
    "doctor": "doctor --judge python:prefstage.sandbox:true_preference --out OUT.json",
    "demo": "demo --out OUT",
}
# Locks, and what SQLite keeps beside a file whose rows are compared.
NO_RESULTS = (".lock", "lock", "_lock", "-wal", "-shm")

# Torch and all else is imported once, for all processes.
FORKS = multiprocessing.get_context("forkserver")
PRELOADED = (
    *(__name__, "prefstage.training.recipe_run", "prefstage.aligning.runs", "prefstage.judging"),
    *("prefstage.reporting.report", "prefstage.reporting.checkup", "prefstage.sampling", "peft"),
    *("prefstage.diagnosing", "prefstage.building", "transformers.models.llama.modeling_llama"),
)
FORKS.set_forkserver_preload([*PRELOADED])


class Ended(NamedTuple):
    """How a command ended: its exit code, and what it said on standard error."""

    code: int
    errors: str
    fault: str


class Start:
    """A `prefstage` command in a process of its own.

    Args:
        words: Behind `prefstage`.
        folder: Where it is typed.
        gate: It waits, as soon as it holds its lock, until this file is there; None: it does not.
    """

    def __init__(self, words: list[str], folder: Path, gate: Path | None = None) -> None:
        self.end, theirs = FORKS.Pipe(duplex=False)
        self.process = FORKS.Process(target=_run, args=(words, folder, gate, theirs))
        self.process.start()
        theirs.close()

    def ended(self) -> Ended:
        """Wait until it has ended."""
        assert self.end.poll(WAITS_S)
        self.process.join()
        return Ended(*self.end.recv())


def _run(words: list[str], folder: Path, gate: Path | None, channel: Connection) -> None:
    os.chdir(folder)
    demo.DemoConfig = partial(demo.DemoConfig, **SMALL)
    lock_file = runs.lock_file

    @contextmanager
    def gated(path: Path, **settings: bool) -> Iterator[str | None]:
        with lock_file(path, **settings) as holder:
            scratch = Path(gettempdir()) == path.absolute().parent.parent
            while holder is None and gate and not gate.exists() and not scratch:
                time.sleep(0.01)
            yield holder

    runs.lock_file = ledger.lock_file = gated
    done = CliRunner().invoke(app, words)
    channel.send((done.exit_code, done.stderr, repr(done.exception)))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What the commands read, by relative names; a server that judges."""
    folder = tmp_path_factory.mktemp("world")
    prepare(folder)
    grid = {
        "recipe": settings(folder, iterations=1, schedule="off", measure=False),
        "axes": {"seed": [0, 1]},
    }
    (folder / "grid.yaml").write_text(yaml.safe_dump(grid))
    question = {"question_id": 1, "category": "math", "turns": ["1 + 1?", "again"]}
    (folder / "questions.jsonl").write_text(json.dumps(question) + "\n")
    with FaultyServer(lambda body: "Good. [[8]]") as server, pytest.MonkeyPatch.context() as patch:
        # It learns of no other path than this one.
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
        measured = STOPPED["measure"].words.replace("OUT", "whole").split()
        assert Start(measured, folder).ended().code == 0
        (folder / "server").write_text(server.url)
        yield folder


def results_in(folder: Path) -> dict[str, Any]:
    """All that a command wrote: JSON without what a clock says, rows of SQLite, others' bytes."""
    results = {}
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or path.name.endswith(NO_RESULTS):
            continue
        if path.suffix == ".sqlite":
            with closing(sqlite3.connect(path)) as connection:
                found: Any = sorted(connection.iterdump())
        else:
            found = path.read_bytes()
            if b'data-chart="time"' in found:  # a page that tells how long its steps took
                found = re.sub(rb"[\d.]+( s|min|h)?", b"", found)
            if path.suffix in (".json", ".jsonl"):
                found = [steady(json.loads(line)) for line in lines_of(path.suffix, found)]
        # A cached reference is named by chance, so that two processes can write at once.
        name = re.sub(r"[0-9a-f]{32}\.parquet$", "any.parquet", str(path.relative_to(folder)))
        results[name] = found
    return results


def lines_of(suffix: str, raw: bytes) -> list[bytes]:
    return [raw] if suffix == ".json" else raw.splitlines()


@pytest.mark.parametrize("name", COMMANDS)
def test_the_second_is_refused_and_the_first_loses_nothing(
    name: str, world: Path, tmp_path: Path
) -> None:
    server = (world / "server").read_text()
    words = COMMANDS[name].replace("OUT", "out/run").replace("SERVER", server).split()
    for path in world.iterdir():
        (tmp_path / path.name).symlink_to(path)
    out, gate = tmp_path / "out", tmp_path / "gate"
    out.mkdir()
    whole = Start(words, tmp_path).ended()
    assert whole.code == 0, whole
    expected = results_in(out)
    shutil.rmtree(out)
    out.mkdir()

    both = [Start(words, tmp_path, gate) for _ in range(2)]
    (first_to_end,) = wait([start.end for start in both], timeout=WAITS_S)
    (winner,) = [start for start in both if start.end is not first_to_end]
    (loser,) = [start for start in both if start.end is first_to_end]
    before = results_in(out)
    later = Start(words, tmp_path, gate)
    for refused in (loser.ended(), later.ended()):
        assert refused.code == 2, refused
        *_, line = refused.errors.strip().splitlines()
        assert f" another process (process {winner.process.pid}); expected one " in line
    assert results_in(out) == before
    gate.touch()
    ended = winner.ended()
    assert ended.code == 0, ended
    found = results_in(out)
    assert found == expected, difference(found, expected)


def test_every_command_is_tried() -> None:
    assert {name.split()[0] for name in COMMANDS} == {*ALL}
