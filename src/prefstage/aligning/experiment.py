"""`run_experiment`: every combination of a grid as an alignment, with tables of the results."""

import re
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from prefstage.aligning.cells import RUNTIME, Cell, check_columns, needs_dynamics, read_cell
from prefstage.aligning.loop import PlannedStep
from prefstage.aligning.recipe import load_recipe
from prefstage.aligning.runs import (
    CONFIG,
    Tell,
    align,
    plan_alignment,
)
from prefstage.aligning.steps import Begun
from prefstage.aligning.tables import (
    SCHEDULE,
    TRAINING,
    Rows,
    TableSettings,
    agreement,
    build_table,
    comma_separated,
    latex,
    markdown,
    starts_of,
)
from prefstage.core import (
    Config,
    Outcome,
    PrefstageError,
    digest,
    load_config,
    markdown_table,
    progress,
    redacted,
    refuse,
    run_folder,
    write_config,
    write_json,
    write_result,
    write_text,
)
from prefstage.data.rendering import with_date
from prefstage.judging.loading import as_judge, import_function

CELLS, STORE, TABLES, ERRORS = "cells", "store", "tables", "errors"
RESULT = "experiment.json"
FORMATS = {"md": markdown, "tex": latex, "csv": comma_separated}
_WHY_EMPTY = {
    **dict.fromkeys(
        ("avg_chosen", "avg_gap"), ": not all of its pairs have scores, all by one judge"
    ),
    "length_controlled_win_rate": ": too few verdicts to control for length",
}
_LONGEST = 48
_UNSAFE = re.compile(r"[^A-Za-z0-9.]+")


class Grid(Config):
    """An experiment: every combination of the axes' values, each an alignment."""

    recipe: dict[str, Any] = Field(description="As for prefstage align; what all cells share.")
    axes: dict[str, list[Any] | dict[str, dict[str, Any]]] = Field(
        min_length=1,
        description="Values of the setting of that name, or names of values and their settings.",
    )
    metrics: dict[str, str] = Field(
        default={}, description="Names of figures and python:module:function(prompt, response)."
    )
    tables: dict[str, TableSettings] = Field(default={}, description="By name of file.")

    @model_validator(mode="after")
    def _names_are_known(self) -> Self:
        for axis, values in self.axes.items():
            labels = [_safe(label) for label, _ in _values(axis, values)]
            refuse(
                (not values, f"axis {axis} is empty; expected values; add some, or remove it"),
                (
                    len({*labels}) < len(labels),
                    f"axis {axis} has a value twice; expected different ones; rename",
                ),
            )
        for name, table in self.tables.items():
            refuse(
                *(
                    (
                        axis not in self.axes,
                        f"tables.{name} names axis {axis!r}; expected one of "
                        f"{', '.join(self.axes)}; change it",
                    )
                    for axis in (*table.by, *table.rows)
                ),
            )
        return self

    @property
    def cells(self) -> "tuple[Cell, ...]":
        """Every combination, the last axis fastest.

        Raises:
            ConfigError: If one is no recipe.
        """
        cells = []
        for chosen in product(*(_values(axis, values) for axis, values in self.axes.items())):
            values = {axis: label for axis, (label, _) in zip(self.axes, chosen, strict=True)}
            overrides = {key: value for _, settings in chosen for key, value in settings.items()}
            name = ",".join(f"{_safe(axis)}={_safe(label)}" for axis, label in values.items())
            recipe = load_recipe(self.recipe, overrides)
            if any(map(needs_dynamics, self.columns)) and not recipe.train.get("dynamics"):
                recipe = load_recipe(self.recipe, {**overrides, "train.dynamics": {}})
            cells.append(Cell(name, values, recipe))
        return tuple(cells)

    @property
    def columns(self) -> tuple[str, ...]:
        """Those of all tables."""
        return tuple(column for table in self.tables.values() for column in table.columns)


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


@dataclass(frozen=True, kw_only=True)
class Experiment(Outcome):
    """What an experiment came to.

    Its `result` has the figures of every cell and the agreement of BS with Δ, as in
    experiment.json.

    Attributes:
        cells: What became of each cell in this call.
        failed: Those of them that failed.
        tables: Each table as Markdown, by name.
    """

    cells: tuple[CellRecord, ...]
    failed: tuple[CellRecord, ...]
    tables: dict[str, str]


def load_grid(source: Grid | Mapping[str, Any] | Path | str) -> Grid:
    """Read and check an experiment; every cell's recipe is checked too.

    Args:
        source: A grid, its settings, or its YAML file.

    Returns:
        The grid.

    Raises:
        ConfigError: One line that names what is wrong.
    """
    grid = source if isinstance(source, Grid) else load_config(Grid, source)
    check_columns(grid.columns, grid.cells, grid.metrics)
    return grid


def run_experiment(
    source: Grid | Mapping[str, Any] | Path | str,
    *,
    out: Path | str,
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
    grid, out = load_grid(source), Path(out)
    timed = TRAINING + RUNTIME in grid.columns
    takes, cells = "(prompt, response) -> number", grid.cells
    metrics = {
        name: import_function(
            location.removeprefix("python:"), what="metric", takes=takes, example="politeness"
        )
        for name, location in grid.metrics.items()
    }
    judge, records, rows = cache(as_judge), list[CellRecord](), list[dict[str, Any]]()
    with (
        run_folder(out, command="experiment", inputs={}),
        progress("cells", len(cells)) as tick,
    ):
        write_config(grid, out / CONFIG)
        for number, cell in enumerate(cells, start=1):
            ran, error, folder = 0, None, out / CELLS / cell.name
            try:
                aligned = align(
                    with_date(cell.recipe, cell.recipe.policy, out),
                    out=folder,
                    judge=judge(cell.recipe.judge),
                    tell=step,
                    begun=begun,
                    store=out / STORE,
                )
                ran = sum(record.did != "reused" for record in aligned.steps)
                rows.append(read_cell(cell, folder, metrics, timed=timed))
            except Exception as fault:  # one cell's fault, whatever it is, is not the others'
                # In one line; a fault that is no user's leaves its traceback on file.
                error, file = " ".join(str(fault).split()), out / ERRORS / f"{cell.name}.txt"
                if not isinstance(fault, PrefstageError):
                    write_text(file, redacted("".join(traceback.format_exception(fault))))
                    error = f"{type(fault).__name__}: {error} (see {file})"
            records.append(CellRecord(cell.name, number, len(cells), ran, error))
            if tell is not None:
                tell(records[-1])
            tick(note=cell.name)
        return _conclude(grid, out, rows, records)


def plan_experiment(
    source: Grid | Mapping[str, Any] | Path | str, *, out: Path | str
) -> tuple[PlannedStep, ...]:
    """Tell what `run_experiment` would do, without doing any of it.

    Args:
        source: As for `run_experiment`.
        out: As for `run_experiment`; need not exist.

    Returns:
        Every step once, in order; for how costs are estimated see `runs.BASIS`.

    Raises:
        ConfigError: If the grid, or a cell's recipe, is wrong.
        InputError: If data, policies or judges cannot be used.
    """
    judge, out = cache(as_judge), Path(out)
    steps: dict[object, PlannedStep] = {}
    for cell in load_grid(source).cells:
        planned = plan_alignment(
            with_date(cell.recipe, cell.recipe.policy, out),
            out=out / STORE,
            judge=judge(cell.recipe.judge),
        )
        for position, step in enumerate(planned):
            # What follows from an unmeasured stage has no name yet, and is no other cell's step.
            steps.setdefault(step.step or (cell.name, position), step)
    return tuple(steps.values())


def _counted(texts: Iterable[str], cells: int) -> list[str]:
    return [f"{text} (in {count} of {cells} cells)" for text, count in Counter(texts).items()]


def _conclude(grid: Grid, out: Path, rows: Rows, records: list[CellRecord]) -> Experiment:
    tables, written, agreements = dict[str, str](), [out / RESULT], dict[str, Any]()
    for name, settings in grid.tables.items():
        table = build_table(settings, rows)
        tables[name] = markdown(table)
        for ending, render in FORMATS.items():
            written.append(out / TABLES / f"{name}.{ending}")
            write_text(written[-1], render(table))
        if settings.kind == "stages":
            agreements[name] = {
                kind: agreement(starts_of(settings, rows, by_repeat=by_repeat))
                for kind, by_repeat in (("means", False), ("repeats", True))
            }
    failed = tuple(record for record in records if record.error is not None)
    errors = {record.cell: record.error for record in failed}
    result = {"cells": list(rows), "failed": errors, "agreement": agreements}
    write_json(out / RESULT, result)
    put_aside = (
        f"{count['rows']:,} of {count['of']:,} rows of {name}"
        for row in rows
        for name, count in row["put_aside"].items()
    )
    bad = ", ".join(_counted(put_aside, len(rows)))
    reversals = _counted((text for row in rows for text in row["reversals"]), len(rows))
    write_result(
        out,
        "experiment",
        headline=f"{len(rows)} cells done{f', {len(failed)} failed' if failed else ''}",
        facts={
            "start": grid.recipe.get("policy", "by an axis"),
            "judge": grid.recipe.get("judge", "by an axis"),
            "axes": ", ".join(f"{len(values)} x {axis}" for axis, values in grid.axes.items()),
            "put aside as bad": bad,
            "labels replaced": "; ".join(reversals),
        },
    )
    lines = [
        *tables.values(),
        *_empty_columns(grid, rows),
        *(_agreement_text(name, kinds["means"]) for name, kinds in agreements.items()),
        f"cells: {len(records) - len(failed)} done, {len(failed)} failed",
        *([f"put aside as bad: {bad}; see {out / CELLS}/CELL/quarantine"] if bad else []),
        *reversals,
        *_counted((text for row in rows for text in row["in_sample"]), len(rows)),
        *(f"failed {cell}: {error}" for cell, error in errors.items()),
    ]
    return Experiment(
        summary="\n".join(lines),
        result=result,
        written=written,
        cells=tuple(records),
        failed=failed,
        tables=tables,
    )


# Of columns that could have had figures: what no finished cell has.
def _empty_columns(grid: Grid, rows: Rows) -> list[str]:
    known = {name for row in rows for policy in row["policies"] for name in policy["figures"]}
    return [
        f"{name}: no cell has {column}" + _WHY_EMPTY.get(column, "")
        for name, table in grid.tables.items()
        for column in table.columns
        if rows and column not in known
    ]


def _agreement_text(name: str, means: Mapping[str, Any]) -> str:
    count = len(means["starts"])
    lines = [f"{name}: boundary score against which data gained more, {count} starts"]
    for kind, yes in (("ratio", "Δ > 1"), ("gain", "off gained more than on")):
        counted = means[kind]
        share = "-" if counted["agreement"] is None else f"{counted['agreement']:.0%}"
        below, above = counted["counts"]
        lines += [
            "",
            markdown_table(("", yes, "not"), [("BS < 0.5", *below), ("BS >= 0.5", *above)]),
            "",
            f"agreement {share}, Fisher's exact test p = {counted['p_value']:.3g}, "
            f"left out {counted['left_out']}",
        ]
    return "\n".join([*lines, ""])


# Label and settings of each value of an axis.
def _values(
    axis: str, values: list[Any] | dict[str, dict[str, Any]]
) -> list[tuple[str, Mapping[str, Any]]]:
    if isinstance(values, Mapping):
        return [*values.items()]
    return [(_label(axis, value), {axis: value}) for value in values]


# As in YAML: "mix: 0.1" and not a Python mapping, and a schedule's off and on, which YAML 1.1 takes
# for truth values.
def _label(axis: str, value: Any) -> str:
    if isinstance(value, list):
        return " ".join(_label(axis, entry) for entry in value)
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {entry}" for name, entry in value.items())
    if axis == SCHEDULE and isinstance(value, bool):
        return "on" if value else "off"
    return str(value)


# Part of a folder's name: long ones, such as paths, end in a hash.
def _safe(text: str) -> str:
    safe = _UNSAFE.sub("-", text).strip("-")
    return safe if len(safe) <= _LONGEST else f"{safe[:_LONGEST]}-{digest(text)[:8]}"
