"""A run that a report shows, and its parts."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from prefstage.reporting.blocks import Row
from prefstage.reporting.explorer import PairRows


@dataclass(frozen=True)
class Dynamics:
    """What a training did to the rankings of fixed pairs.

    Attributes:
        beta: β of losses and thresholds, 1/nats.
        sets: Names of the sets of pairs.
        metrics: The aggregates of each recorded step, up to the model that was exported.
        last: A row a pair, at the last of these steps.
    """

    beta: float
    sets: Sequence[str]
    metrics: Sequence[Mapping[str, float]]
    last: pa.Table

    def of(self, name: str) -> pa.Table:
        """The rows of one set at the last step."""
        return self.last.filter(pc.equal(self.last["set"], name))


@dataclass(frozen=True, kw_only=True)
class Part:
    """What one command, or one step of the loop, left in its folder.

    Attributes:
        kind: Which command writes such a folder: "measure", "train" and so on.
        iteration: From 1; 0 before the loop.
        folder: Where it lies.
        result: The JSON file of that kind, such as stage.json; empty where a page shows nothing
            of the kind but its costs.
        looks: Of a measurement, how the interval narrowed: "prompts", "score", "low" and
            "high"; empty where the prompts' scores are not on file.
        history: Of a training, what the trainer logged.
        dynamics: Of a training's pairs, if they were recorded.
        pairs: Of a build, by its parts ("" for the one part of a step of the loop); of an
            evaluation, the answers that were compared. What is not on file is not there.
        distinct: Of an evaluation, share of different 1-grams and 2-grams in all answers, by
            model.
        seconds: What a step took when it was done; None where that is not on file, or counted
            with an earlier iteration.
        costs: Judgments, answers and tokens that it bought then.
    """

    kind: str
    iteration: int
    folder: Path
    result: Row = field(default_factory=dict)
    looks: Sequence[Row] = ()
    history: Sequence[Row] = ()
    dynamics: Dynamics | None = None
    pairs: Sequence[tuple[str, PairRows]] = ()
    distinct: Mapping[str, Sequence[float]] = field(default_factory=dict)
    seconds: float | None = None
    costs: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """All that a report shows of one run.

    Attributes:
        name: What it is called on the page; different from the other runs'.
        command: Which command made it.
        folder: Where it lies.
        facts: Short statements, by what they are about.
        parts: Its parts, in the order of their making.
        config: The resolved configuration, YAML; "" if there is none on file.
        manifest: Versions and so on.
    """

    name: str
    command: str
    folder: Path
    facts: Mapping[str, str]
    parts: Sequence[Part]
    config: str
    manifest: Row

    def of(self, kind: str) -> list[Part]:
        """The parts of one kind that have a result, in order."""
        return [part for part in self.parts if part.kind == kind and part.result]

    @property
    def iterations(self) -> list[Row]:
        """The rows of align.json; nothing of other commands."""
        return [row for part in self.of("align") for row in part.result["iterations"]]


def label(run: Run, part: Part, runs: Sequence[Run]) -> str:
    """What a part is called: its iteration, with the run where there are several.

    Args:
        run: The run.
        part: Its part.
        runs: All runs of the page.

    Returns:
        Such as "iteration 2", "run: iteration 2", or the run's name alone.
    """
    if run.command != "align":
        return run.name
    what = f"iteration {part.iteration}" if part.iteration else "before the loop"
    return f"{run.name}: {what}" if len(runs) > 1 else what


def labelled(runs: Sequence[Run], kind: str) -> list[tuple[str, Part]]:
    """All parts of a kind that have a result, with their labels."""
    return [(label(run, part, runs), part) for run in runs for part in run.of(kind)]


def read_json(path: Path) -> Any:
    """Read a JSON file; an empty object if it is not there."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
