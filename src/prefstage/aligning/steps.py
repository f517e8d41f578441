"""Steps known by what they depend on: each is done once, and kept in a folder of its own."""

import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any, Literal

from prefstage.core.errors import RunFolderError
from prefstage.core.files import append_json_line, sync_folder, write_json
from prefstage.core.hashing import digest, digest_file

MANIFEST = "step.json"
FOLDER, LOG, LOCK = "steps", "steps.jsonl", "lock"
_STAGING = ".unfinished-"
_BEGUN = "-begun.json"
_SHOWN = 12

State = Literal["done", "absent", "begun", "damaged"]


@dataclass(frozen=True)
class Step:
    """One step, named by everything that its result depends on.

    Attributes:
        kind: What it does: "sft", "sample", "measure", "build", "train" or "evaluate".
        settings: How it does that, resolved; JSON-serialisable.
        reads: Keys of the steps whose results it reads, by role.
        inputs: Fingerprints of what it reads from elsewhere, by role.
    """

    kind: str
    settings: Mapping[str, Any]
    reads: Mapping[str, str] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def key(self) -> str:
        """Hash of the above and of the version of prefstage: 32 hex digits."""
        return digest({**asdict(self), "prefstage": version("prefstage")}, length=32)

    @property
    def name(self) -> str:
        """Its folder's name."""
        return f"{self.kind}-{self.key[:_SHOWN]}"


@dataclass(frozen=True)
class StepRecord:
    """What became of a step in one run of the command.

    Attributes:
        step: Its name.
        kind: What it does.
        iteration: In which iteration, from 1; 0 before the first.
        did: "ran", "reused", or "remade" where its result was there and damaged.
        why: What was wrong with a result that was remade.
        seconds: What it took, 0 if reused.
        costs: What its result has cost in all: judgments, answers, tokens, also those bought
            before a stop, or before it was damaged; nothing if reused.
    """

    step: str
    kind: str
    iteration: int
    did: Literal["ran", "reused", "remade"]
    why: str | None
    seconds: float
    costs: Mapping[str, int] = field(default_factory=dict)


Begun = Callable[[Step, int], None]
"""Told of a step, and of its iteration, before it is done; not of one that is reused."""
Work = Callable[[Path], None]
"""Fills a folder; begun again after a kill, it finds there what it left."""
Costs = Callable[[], Mapping[str, int]]
"""What was bought so far."""


class Steps:
    """The steps of a run folder.

    A step's result stands in ``steps/KIND-KEY``, written aside and renamed when it is whole,
    with a manifest of its inputs and of its files' sizes and hashes. It is used again if the
    manifest holds; otherwise it is made anew, and that is said.

    Args:
        folder: The run folder.
        tell: Told of each step when it is done.
        begun: Told of each step that is done anew, as it begins.
    """

    def __init__(
        self, folder: Path, tell: Callable[[StepRecord], None], *, begun: Begun | None = None
    ) -> None:
        self.folder = folder / FOLDER
        self.records: list[StepRecord] = []
        self._log = folder / LOG
        self._tell = tell
        self._begin = begun or (lambda step, iteration: None)
        self._checked: dict[str, tuple[State, str | None]] = {}

    def path(self, step: Step) -> Path:
        """Where a step's result stands when it is whole."""
        return self.folder / step.name

    def manifest(self, step: Step) -> dict[str, Any]:
        """What is on file of a step that is done."""
        found: dict[str, Any] = json.loads((self.path(step) / MANIFEST).read_text("utf-8"))
        return found

    def state(self, step: Step) -> tuple[State, str | None]:
        """Whether a step's result is there and whole.

        Args:
            step: The step.

        Returns:
            Its state, and what is wrong with a damaged one.
        """
        if step.key not in self._checked:
            self._checked[step.key] = self._state(step)
        return self._checked[step.key]

    def do(self, step: Step, work: Work, *, iteration: int, costs: Costs) -> Path:
        """Do a step, or take its result from where it stands.

        Args:
            step: The step.
            work: Does it.
            iteration: For the log.
            costs: Of everything bought so far, before and after.

        Returns:
            The folder of the result.
        """
        state, why = self.state(step)
        began = time.monotonic()
        cost: Mapping[str, int] = {}
        if state != "done":
            self._begin(step, iteration)
            cost = self._make(step, work, costs)
            self._checked[step.key] = ("done", None)
        self._drop_unlisted(step)
        did: Literal["ran", "reused", "remade"] = (
            "reused" if state == "done" else "remade" if state == "damaged" else "ran"
        )
        seconds = 0.0 if did == "reused" else round(time.monotonic() - began, 3)
        record = StepRecord(step.name, step.kind, iteration, did, why, seconds, cost)
        self.records.append(record)
        append_json_line(self._log, asdict(record))
        self._tell(record)
        return self.path(step)

    def _state(self, step: Step) -> tuple[State, str | None]:
        path = self.path(step)
        if not path.exists():
            return ("begun" if self._staging(step).exists() else "absent"), None
        try:
            manifest = self.manifest(step)
            files = dict(manifest["files"])
        except (OSError, ValueError, KeyError, TypeError):
            return "damaged", f"{MANIFEST} is missing or unreadable"
        if manifest.get("key") != step.key:
            return "damaged", f"{MANIFEST} is of another step"
        for name, listed in files.items():
            fault = _fault(path / name, listed)
            if fault is not None:
                return "damaged", f"{name} {fault}"
        return "done", None

    def _make(self, step: Step, work: Work, costs: Costs) -> Mapping[str, int]:
        path, staging = self.path(step), self._staging(step)
        staging.mkdir(parents=True, exist_ok=True)
        begun = self._begun(step)
        if not begun.exists():
            spent = self._spent(step)  # on a result that is made anew
            write_json(begun, {name: count - spent.get(name, 0) for name, count in costs().items()})
        if path.exists():
            shutil.rmtree(path)
        before = json.loads(begun.read_text("utf-8"))
        began = time.monotonic()
        work(staging)
        seconds = round(time.monotonic() - began, 3)
        cost = {name: count - before.get(name, 0) for name, count in costs().items()}
        files = {
            each.relative_to(staging).as_posix(): _listed(each)
            for each in sorted(staging.rglob("*"))
            if each.is_file() and _is_result(each.relative_to(staging))
        }
        record = {**asdict(step), "key": step.key, "costs": cost, "seconds": seconds}
        record["files"] = files
        write_json(staging / MANIFEST, record)
        staging.rename(path)
        sync_folder(self.folder)
        return cost

    def _spent(self, step: Step) -> Mapping[str, int]:
        """What the result that stands there has cost, as far as its manifest tells."""
        try:
            spent = self.manifest(step)["costs"]
        except (OSError, ValueError, KeyError, TypeError):
            return {}
        return spent if isinstance(spent, dict) else {}

    def _drop_unlisted(self, step: Step) -> None:
        """What a step needed only while it ran: checkpoints, caches."""
        path = self.path(step)
        self._begun(step).unlink(missing_ok=True)
        for name in _WHILE_IT_RUNS:
            shutil.rmtree(path / name, ignore_errors=True)

    def _staging(self, step: Step) -> Path:
        return self.folder / f"{_STAGING}{step.name}"

    def _begun(self, step: Step) -> Path:
        """What was bought before the step was first begun."""
        return self.folder / f"{_STAGING}{step.name}{_BEGUN}"


_WHILE_IT_RUNS = ("checkpoints", "references")


def _is_result(name: Path) -> bool:
    """A manifest is none: one that a kill left in an unfinished step is written again."""
    kept = name.parts[0] not in _WHILE_IT_RUNS and not name.name.startswith(".")
    return kept and name.as_posix() != MANIFEST


def _listed(path: Path) -> dict[str, Any]:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
    return {"bytes": path.stat().st_size, "sha256": digest_file(path, length=64)}


def _fault(path: Path, listed: Mapping[str, Any]) -> str | None:
    if not path.is_file():
        return "is missing"
    if path.stat().st_size != listed["bytes"]:
        return f"has {path.stat().st_size} bytes instead of {listed['bytes']}"
    if digest_file(path, length=64) != listed["sha256"]:
        return "was altered"
    return None


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep a run folder to one process while the block runs.

    Args:
        folder: The run folder.

    Raises:
        RunFolderError: If another process works in it.
    """
    with (folder / LOCK).open("a+") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunFolderError.of(
                saw=f"{folder} is in use by another process{_who(stream)}",
                expected="one process a run folder",
                cure="wait for the other run to end, or name another folder with --out",
            ) from None
        stream.truncate(0)
        stream.write(str(os.getpid()))
        stream.flush()
        yield


def _who(stream: IO[str]) -> str:
    stream.seek(0)
    number = stream.read().strip()
    return f" (process {number})" if number else ""
