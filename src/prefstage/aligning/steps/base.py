"""Steps known by what they depend on: each is done once, and kept in a folder of its own."""

import math
import shutil
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch

from prefstage.aligning.steps.workspace import STEPS, Workspace
from prefstage.core import (
    LOCK,
    append_json_line,
    digest,
    fault_in,
    list_files,
    put_in_place,
    read_json,
    redacted_values,
    write_json,
)
from prefstage.sampling.transformers_sampler import DEFAULT_BATCH_TOKENS
from prefstage.scoring.memory import (
    Job,
    JobSize,
    ModelShape,
    estimate_memory,
    free_bytes,
    training_budget,
)

MANIFEST, LOG = "step.json", "steps.jsonl"
_STAGING, _BEGUN = ".unfinished-", "-begun.json"
_WHILE_IT_RUNS = ("checkpoints", "references", LOCK)
_SHOWN = 12
_FORWARD = 2  # FLOP a parameter and token

State = Literal["done", "absent", "begun", "damaged"]
Did = Literal["ran", "reused", "remade"]
_DID: dict[State, Did] = {"absent": "ran", "begun": "ran", "done": "reused", "damaged": "remade"}


@dataclass(frozen=True)
class Estimate:
    """What a step costs, about; answers and judgments at most.

    Attributes:
        answers: Sampled.
        judgments: Asked for: comparisons, or rewards of a pointwise judge.
        tokens: Processed by the policy: prompts and responses.
        memory_bytes: At its peak, without that of the libraries.
        seconds: Of arithmetic.
    """

    answers: int = 0
    judgments: int = 0
    tokens: int = 0
    memory_bytes: int = 0
    seconds: float = 0.0

    def __add__(self, other: "Estimate") -> "Estimate":
        """Both, one after the other: counts and times add up, of memory it is the larger."""
        sums = {name: value + getattr(other, name) for name, value in vars(self).items()}
        return Estimate(**sums | {"memory_bytes": max(self.memory_bytes, other.memory_bytes)})


@dataclass(frozen=True)
class Sizes:
    """What estimates go by, besides the data of the workspace.

    Attributes:
        responses: Off-policy responses a prompt, mean.
        prompt_tokens: A prompt's, mean.
        response_tokens: A response's, mean.
        policy: The policy's shape, in float32.
        device: Where it answers and is trained.
        flop_a_second: Rate of the machine.
    """

    responses: float
    prompt_tokens: float
    response_tokens: float
    policy: ModelShape
    device: torch.device
    flop_a_second: float

    def sampling(self, prompts: int, responses: int, *, longest: int) -> Estimate:
        """Of responses to prompts, each of at most `longest` tokens."""
        answers = prompts * responses
        tokens = round(prompts * self.prompt_tokens + answers * min(self.response_tokens, longest))
        # As many prompts at once as the sampler takes, with full-grown answers.
        batch = DEFAULT_BATCH_TOKENS // (responses * (math.ceil(self.prompt_tokens) + longest))
        memory = self.memory("sample", (min(batch, prompts), responses, longest))
        return Estimate(answers, 0, tokens, memory, self.seconds(tokens, _FORWARD))

    def memory(
        self,
        job: Job,
        size: tuple[int, int, float],
        *,
        has_adapter: bool = False,
        token_budget: int | None = None,
    ) -> int:
        """Bytes of a job, by the one memory model.

        Args:
            job: What is done.
            size: Prompts at once, responses of each, tokens of a response.
            has_adapter: Whether an adapter is trained in place of the weights.
            token_budget: Tokens of a training's micro-batch; None: as the trainer chooses.
        """
        (batch, responses, tokens), on_cpu = size, self.device.type == "cpu"
        policy = replace(self.policy, trained=0, trained_bytes=0) if has_adapter else self.policy
        counts = (batch, responses, math.ceil(self.prompt_tokens), math.ceil(tokens))
        whole = JobSize(job, *(max(1, count) for count in counts))
        budget = token_budget or training_budget(
            policy, free_bytes(self.device), on_cpu=on_cpu, loaded=False
        )
        return estimate_memory(policy, whole, pass_tokens=budget, on_cpu=on_cpu).total

    def seconds(self, tokens: int, flop: int) -> float:
        """Of `flop` operations a parameter and token."""
        return round(flop * self.policy.parameters * tokens / self.flop_a_second, 2)


class Step(ABC):
    """A step of an alignment, named by everything that its result depends on.

    Args:
        space: Recipe, judge, data and stores.
        settings: How it does its work, resolved; JSON-serialisable.
        reads: Keys of the steps and policies whose results it reads, by role; a key is None
            where it depends on a stage that is not measured yet.
        inputs: Fingerprints of what it reads from elsewhere, by role.

    Attributes:
        kind: What it does.
        role: What it is in an iteration: its kind, or "answer" for held-out answers.
    """

    kind: ClassVar[str]

    def __init__(
        self,
        space: Workspace,
        settings: Mapping[str, Any],
        *,
        reads: Mapping[str, str | None] | None = None,
        inputs: Mapping[str, str] | None = None,
    ) -> None:
        self.space, self.role = space, self.kind
        self.depends: dict[str, Any] = {
            "kind": self.kind,
            "settings": dict(settings),
            "reads": dict(reads or {}),
            "inputs": dict(inputs or {}),
        }

    @cached_property
    def key(self) -> str | None:
        """Hash of all that it depends on and of the version of prefstage: 32 hex digits.

        None as long as something that it reads is not known.
        """
        if None in self.depends["reads"].values():
            return None
        return digest({**self.depends, "prefstage": version("prefstage")}, length=32)

    @property
    def name(self) -> str:
        """Its folder's name."""
        return f"{self.kind}-{(self.key or 'unknown')[:_SHOWN]}"

    @property
    def path(self) -> Path:
        """The folder of its result."""
        return self.space.folder / STEPS / self.name

    @property
    def staging(self) -> Path:
        """Where the result is made; it is renamed to `path` when it is whole."""
        return self.path.with_name(f"{_STAGING}{self.name}")

    @cached_property
    def state(self) -> tuple[State, str | None]:
        """Whether its result is there and whole, and what is wrong with a damaged one.

        Looked at once: hashing gigabytes of weights takes seconds.
        """
        if self.key is None or not self.path.exists():
            return ("begun" if self.staging.exists() else "absent"), None
        manifest = self.manifest()
        if not manifest:
            return "damaged", f"{MANIFEST} is missing or unreadable"
        if manifest["key"] != self.key:
            return "damaged", f"{MANIFEST} is of another step"
        fault = fault_in(self.path, manifest["files"])
        return ("done" if fault is None else "damaged"), fault

    @abstractmethod
    def run(self, folder: Path) -> None:
        """Do it; begun again after a kill, it finds in the folder what it left there.

        Args:
            folder: Gets the result.
        """

    @abstractmethod
    def estimate(self, sizes: Sizes) -> Estimate:
        """What it would cost.

        Args:
            sizes: Of data, policy and machine.

        Returns:
            The estimate.
        """

    def report(self) -> dict[str, Any]:
        """What its result says in the row of its iteration in align.json, by name."""
        return {}

    def check(self) -> None:  # noqa: B027 - most results may be used as they are
        """Raise an InputError if the result may not be used."""

    def read(self, name: str) -> dict[str, Any]:
        """A JSON file of its result."""
        content: dict[str, Any] = read_json(self.path / name)
        return content

    def manifest(self) -> dict[str, Any]:
        """What it was made of; nothing where that is missing, unreadable or not as written."""
        try:
            manifest = self.read(MANIFEST)
            costs = {name: int(count) for name, count in manifest["costs"].items()}
            seconds, files = float(manifest["seconds"]), dict(manifest["files"])
            return {"key": manifest["key"], "files": files, "costs": costs, "seconds": seconds}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError):
            return {}


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
    did: Did
    why: str | None
    seconds: float
    costs: Mapping[str, int] = field(default_factory=dict)


Begun = Callable[[Step, int], None]
"""Called with a step, and its iteration, before it is done; not with one that is reused."""


class Steps:
    """The steps of a run folder.

    A step's result stands in ``steps/KIND-KEY``, written aside and renamed when it is whole,
    with a manifest of what it depends on and of its files' sizes and hashes. It is used again
    if the manifest holds; otherwise it is made anew, and the record says why.

    Args:
        space: The run's.
        tell: Called with the record of each step when it is done.
        begun: Called with each step that is done anew, as it begins.
    """

    def __init__(
        self,
        space: Workspace,
        tell: Callable[[StepRecord], None] | None = None,
        *,
        begun: Begun | None = None,
    ) -> None:
        self.records: list[StepRecord] = []
        # For ``result.json``: a part for each step in each iteration.
        self.parts: list[dict[str, Any]] = []
        self._space, self._tell, self._begin = space, tell, begun

    def do(self, step: Step, *, iteration: int = 0) -> Path:
        """Do a step, or take its result from where it stands.

        Args:
            step: The step; what it reads is known.
            iteration: For the log.

        Returns:
            The folder of the result.
        """
        (state, why), costs, seconds = step.state, dict[str, int](), 0.0
        if state != "done":
            if self._begin is not None:
                self._begin(step, iteration)
            began = time.monotonic()
            costs = self._make(step)
            step.state, seconds = ("done", None), round(time.monotonic() - began, 3)
        # Only now, when the result has its name: a kill before leaves checkpoints to go on from.
        _begun_file(step).unlink(missing_ok=True)
        for name in _WHILE_IT_RUNS:
            shutil.rmtree(step.path / name, ignore_errors=True)
        (step.path / LOCK).unlink(missing_ok=True)
        folder = f"{STEPS}/{step.name}"
        part: dict[str, Any] = {"kind": step.kind, "iteration": iteration, "folder": folder}
        # What it took stands at its first use, and is the manifest's, so that neither kills nor
        # reuse change what a step has cost.
        if folder not in [earlier["folder"] for earlier in self.parts]:
            manifest = step.manifest()
            part |= {name: manifest[name] for name in ("seconds", "costs")}
        self.parts.append(part)
        record = StepRecord(step.name, step.kind, iteration, _DID[state], why, seconds, costs)
        self.records.append(record)
        append_json_line(self._space.folder / LOG, redacted_values(asdict(record)))
        if self._tell is not None:
            self._tell(record)
        return step.path

    def spent(self) -> tuple[dict[str, int], float]:
        """What the steps of this call bought when they were done, and how long they took.

        Returns:
            Judgments, answers and their tokens; seconds.
        """
        costs = Counter[str]()
        for part in self.parts:
            costs.update(part.get("costs", {}))
        return dict(costs), sum(float(part.get("seconds", 0.0)) for part in self.parts)

    def _make(self, step: Step) -> dict[str, int]:
        staging, begun = step.staging, _begun_file(step)
        staging.mkdir(parents=True, exist_ok=True)
        # Costs are counted from what was bought before the step was first begun, on disk before
        # it buys anything: so a step that was killed ten times has cost what it bought, once.
        # What a damaged result had cost is not bought again, and stays on the bill.
        if not begun.exists():
            write_json(begun, self._bought_since(step.manifest().get("costs", {})))
        before, began = read_json(begun), time.monotonic()
        step.run(staging)
        costs = self._bought_since(before)
        manifest = {
            **step.depends,
            "key": step.key,
            "costs": costs,
            "seconds": round(time.monotonic() - began, 3),
            "files": list_files(staging, include=_is_result),
        }
        write_json(staging / MANIFEST, manifest)
        put_in_place(staging, step.path)
        return costs

    def _bought_since(self, before: Mapping[str, int]) -> dict[str, int]:
        return {name: count - before.get(name, 0) for name, count in self._space.counts().items()}


def _begun_file(step: Step) -> Path:
    return step.staging.with_name(f"{step.staging.name}{_BEGUN}")


def _is_result(name: Path) -> bool:
    # A manifest is none: a kill between writing and renaming leaves one, which is written anew.
    return not (name.parts[0] in (*_WHILE_IT_RUNS, MANIFEST) or name.name.startswith("."))
