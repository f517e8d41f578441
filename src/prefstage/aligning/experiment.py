"""`run_experiment`: every combination of a grid as an alignment, with tables of the results."""

import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from prefstage.aligning.agreement import Contingency, by_gain, by_ratio
from prefstage.aligning.cells import Metric, bad_rows_told, read_cell, reversals_in_cells
from prefstage.aligning.grid import Grid, load_grid
from prefstage.aligning.loop import Tell, align
from prefstage.aligning.paper_tables import Rows, build_table, starts_of
from prefstage.aligning.planning import PlannedStep, plan_alignment
from prefstage.aligning.steps import Begun, locked
from prefstage.aligning.tables import comma_separated, latex, markdown
from prefstage.core.config import write_config
from prefstage.core.errors import PrefstageError
from prefstage.core.files import write_json, write_text
from prefstage.core.progress import progress
from prefstage.core.results import write_result
from prefstage.core.runs import RunFolder
from prefstage.data.tokenizer_files import with_date
from prefstage.judging.loading import import_function, load_judge

CELLS, STORE, TABLES, ERRORS = "cells", "store", "tables", "errors"
RESULT, CONFIG = "experiment.json", "config.yaml"
FORMATS = {"md": markdown, "tex": latex, "csv": comma_separated}


@dataclass(frozen=True)
class CellRecord:
    """What became of a cell.

    Attributes:
        cell: Its name.
        number: From 1.
        of: How many cells there are.
        ran: Steps that ran or were made anew; 0: all were there.
        error: Why it failed, in one line; None if it did not.
    """

    cell: str
    number: int
    of: int
    ran: int
    error: str | None


@dataclass(frozen=True)
class Experiment:
    """What an experiment came to.

    Attributes:
        result: Figures of every cell and the agreement of BS with Δ, as in experiment.json.
        cells: What became of each cell in this call.
        tables: Each table as Markdown, by name.
        written: Files that hold results.
    """

    result: dict[str, Any]
    cells: tuple[CellRecord, ...]
    tables: dict[str, str]
    written: tuple[Path, ...]

    @property
    def failed(self) -> tuple[CellRecord, ...]:
        """The cells that failed."""
        return tuple(each for each in self.cells if each.error is not None)


def run_experiment(
    source: Grid | Mapping[str, Any] | Path | str,
    *,
    out: Path,
    tell: Callable[[CellRecord], None] | None = None,
    step: Tell | None = None,
    begun: Begun | None = None,
) -> Experiment:
    """Run every combination of a grid, and tabulate what came of it.

    The cells share one store: equal steps are done once, and answers and judgments are bought
    once. The same call goes on after a kill. A cell that fails is reported, the others are
    kept, and the next call tries it again.

    Args:
        source: A grid, its settings, or its YAML file; see docs/experiments.md.
        out: Folder: ``cells`` (a run folder of `align` each), ``store``, ``tables``,
            ``experiment.json`` and ``config.yaml``.
        tell: Called with each cell when it is done.
        step: As `align`'s `tell`.
        begun: As `align`'s.

    Returns:
        What came of it.

    Raises:
        ConfigError: If the grid, or a cell's recipe, is wrong.
        InputError: If a metric is no function.
        RunFolderError: If `out` holds something else, or another process works in it.

    Source:
        Sun et al. 2025, arXiv:2508.10530, Section 4: the full-combination experiment.
    """
    grid = load_grid(source)
    metrics, cells = _load_metrics(grid), grid.cells
    RunFolder.open(out, command="experiment", inputs={})
    judge, records, rows = cache(load_judge), list[CellRecord](), list[dict[str, Any]]()
    with locked(out), progress("cells", len(cells)) as tick:
        write_config(grid, out / CONFIG)
        for number, cell in enumerate(cells, start=1):
            ran, error = 0, None
            folder = out / CELLS / cell.name
            try:
                aligned = align(
                    with_date(cell.recipe, cell.recipe.policy, out),
                    out=folder,
                    judge=judge(cell.recipe.judge),
                    tell=step,
                    begun=begun,
                    store=out / STORE,
                )
                ran = sum(each.did != "reused" for each in aligned.steps)
                rows.append(read_cell(cell, folder, metrics))
            except Exception as fault:  # a cell's fault is its own, whatever it is
                error = _told(fault, out / ERRORS / f"{cell.name}.txt")
            records.append(CellRecord(cell.name, number, len(cells), ran, error))
            (tell or (lambda record: None))(records[-1])
            tick(note=cell.name)
        return _conclude(grid, out, rows, records)


def plan_experiment(
    source: Grid | Mapping[str, Any] | Path | str, *, out: Path
) -> tuple[PlannedStep, ...]:
    """Tell what `run_experiment` would do, without doing any of it.

    Args:
        source: As for `run_experiment`.
        out: As for `run_experiment`; need not exist.

    Returns:
        Every step once, in order; for how costs are estimated see `planning.BASIS`.

    Raises:
        ConfigError: If the grid, or a cell's recipe, is wrong.
        InputError: If data, policies or judges cannot be used.
    """
    judge = cache(load_judge)
    found: dict[object, PlannedStep] = {}
    for cell in load_grid(source).cells:
        for place, each in enumerate(
            plan_alignment(
                with_date(cell.recipe, cell.recipe.policy, out),
                out=out / STORE,
                judge=judge(cell.recipe.judge),
            )
        ):
            name = each.step or (cell.name, place)  # what follows from a stage has no name yet
            if name not in found:
                found[name] = each
    return tuple(found.values())


def _conclude(grid: Grid, out: Path, rows: Rows, records: list[CellRecord]) -> Experiment:
    tables, written, agreement = dict[str, str](), list[Path](), dict[str, Any]()
    for name, settings in grid.tables.items():
        table = build_table(settings, rows)
        for ending, render in FORMATS.items():
            written.append(out / TABLES / f"{name}.{ending}")
            written[-1].parent.mkdir(exist_ok=True)
            write_text(written[-1], render(table))
        tables[name] = markdown(table)
        if settings.kind == "stages":
            agreement[name] = {
                kind: _agreement(starts_of(settings, rows, each_repeat=each))
                for kind, each in (("means", False), ("repeats", True))
            }
    failed = {each.cell: each.error for each in records if each.error is not None}
    result = {"cells": list(rows), "failed": failed, "agreement": agreement}
    write_json(out / RESULT, result)
    write_result(
        out,
        "experiment",
        headline=f"{len(rows)} cells done{f', {len(failed)} failed' if failed else ''}",
        facts={
            "start": grid.recipe.get("policy", "by an axis"),
            "judge": grid.recipe.get("judge", "by an axis"),
            "axes": ", ".join(f"{len(values)} x {axis}" for axis, values in grid.axes.items()),
            "put aside as bad": bad_rows_told(rows),
            "labels replaced": "; ".join(reversals_in_cells(rows)),
        },
    )
    return Experiment(result, tuple(records), tables, (out / RESULT, *written))


def _agreement(starts: Any) -> dict[str, Any]:
    kinds: dict[str, Contingency] = {"ratio": by_ratio(starts), "gain": by_gain(starts)}
    return {
        "starts": [vars(each) for each in starts],
        **{kind: each.as_dict() for kind, each in kinds.items()},
    }


def _load_metrics(grid: Grid) -> dict[str, Metric]:
    return {
        name: import_function(
            place.removeprefix("python:"),
            what="metric",
            takes="(prompt, response) -> number",
            example="politeness",
        )
        for name, place in grid.metrics.items()
    }


def _told(fault: Exception, place: Path) -> str:
    """The fault in one line; one that is no user's leaves its traceback on file."""
    if isinstance(fault, PrefstageError):
        return " ".join(str(fault).split())
    place.parent.mkdir(parents=True, exist_ok=True)
    write_text(place, "".join(traceback.format_exception(fault)))
    return f"{type(fault).__name__}: {' '.join(str(fault).split())} (see {place})"
