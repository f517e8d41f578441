"""A run that a report shows, and its parts."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar


@dataclass(frozen=True, kw_only=True)
class Part:
    """What one command, or one step of the loop, left in its folder.

    Attributes:
        kind: Which command writes such a folder: "measure", "train" and so on.
        iteration: From 1; 0 before the loop.
        folder: Where it lies.
        result: The JSON file of that kind, such as stage.json; empty where a page shows nothing
            of the kind but its costs.
        seconds: What a step took when it was done; None where that is not on file, or counted
            with an earlier iteration.
        costs: Judgments, answers and tokens that it bought then.
    """

    kind: str
    iteration: int
    folder: Path
    result: Mapping[str, Any] = field(default_factory=dict)
    seconds: float | None = None
    costs: Mapping[str, int] = field(default_factory=dict)


P = TypeVar("P", bound=Part)


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
    manifest: Mapping[str, Any]

    def of(self, kind: type[P]) -> list[P]:
        """The parts of one type, in order."""
        return [part for part in self.parts if isinstance(part, kind)]

    def results(self, kind: str) -> list[Mapping[str, Any]]:
        """The results of the parts of a kind, in order."""
        return [part.result for part in self.parts if part.kind == kind and part.result]

    @property
    def iterations(self) -> list[Mapping[str, Any]]:
        """The rows of align.json; nothing of other commands."""
        return [row for result in self.results("align") for row in result["iterations"]]


def label(run: Run, part: Part, runs: Sequence[Run]) -> str:
    """What a part is called: its iteration, with the run where there are several.

    Args:
        run: The run.
        part: Its part.
        runs: All runs of the page.

    Returns:
        Such as "iteration 2", "run: iteration 2", or the run's name alone.
    """
    what = f"iteration {part.iteration}" if part.iteration else "before the loop"
    if run.command != "align":
        return run.name
    return f"{run.name}: {what}" if len(runs) > 1 else what


def labelled(runs: Sequence[Run], kind: type[P]) -> list[tuple[str, P]]:
    """All parts of a type, with their labels."""
    return [(label(run, part, runs), part) for run in runs for part in run.of(kind)]


def read_json(path: Path) -> Any:
    """Read a JSON file; an empty object if it is not there."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
