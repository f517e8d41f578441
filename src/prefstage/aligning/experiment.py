"""`run_experiment`: every combination of a grid as an alignment, with tables of the results."""

import re
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any, Self

from pydantic import Field, model_validator

from prefstage.aligning.loop import EVEN, PlannedStep
from prefstage.aligning.recipe import Recipe, load_recipe
from prefstage.aligning.runs import (
    ALIGNED,
    CONFIG,
    Tell,
    align,
    in_sample_lines,
    plan_alignment,
    reversal_lines,
)
from prefstage.aligning.steps import PAIRS, STEPS, Begun, read_answers
from prefstage.aligning.tables import (
    BUILT_IN,
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
    load_config,
    markdown_table,
    progress,
    read_json,
    redacted,
    refuse,
    run_folder,
    write_config,
    write_json,
    write_result,
    write_text,
)
from prefstage.data import Prompt, load_pairs
from prefstage.data.rendering import with_date
from prefstage.judging.loading import as_judge, import_function

CELLS, STORE, TABLES, ERRORS = "cells", "store", "tables", "errors"
RESULT = "experiment.json"
FORMATS = {"md": markdown, "tex": latex, "csv": comma_separated}
_RATES = ("win_rate", "length_controlled_win_rate", "avg_length")
_UNSAFE = re.compile(r"[^A-Za-z0-9.]+")

Metric = Callable[[Prompt, str], float]
"""(prompt, response) -> figure."""


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
        figures = (*BUILT_IN, *self.metrics)
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
                *(
                    (
                        column not in figures and not column.startswith(TRAINING),
                        f"tables.{name} has column {column!r}; expected one of "
                        f"{', '.join(figures)} or {TRAINING}NAME; change it",
                    )
                    for column in table.columns
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
            cells.append(Cell(name, values, load_recipe(self.recipe, overrides)))
        return tuple(cells)


@dataclass(frozen=True)
class Cell:
    """One combination.

    Attributes:
        name: Of its folder.
        values: The label of each axis's value.
        recipe: What it does.
    """

    name: str
    values: Mapping[str, str]
    recipe: Recipe


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
    if isinstance(source, Grid):
        return source
    grid = load_config(Grid, source)
    _ = grid.cells
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
                rows.append(read_cell(cell, folder, metrics))
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


def read_cell(cell: Cell, folder: Path, metrics: Mapping[str, Metric]) -> dict[str, Any]:
    """The figures of a finished cell.

    Args:
        cell: The cell.
        folder: Its run folder.
        metrics: What else is computed of each answer to a held-out prompt, and averaged.

    Returns:
        The cell's name and values, the bad rows that it put aside, how often its judge reversed
        labels that it replaced, and its policies in order: the start, and after each iteration;
        each with the data trained on so far and its figures.
    """
    result = read_json(folder / ALIGNED)
    steps, rows = folder / STEPS, result["iterations"]
    done = [row for row in rows if row["stopped"] is None]
    policies: list[dict[str, float | None]] = [{}]
    if rows and (rates := rows[0]["evaluation"]) is not None:
        controlled = rates["length_controlled_win_rate"]
        policies[0] |= {
            "win_rate": EVEN,
            "length_controlled_win_rate": None if controlled is None else EVEN,
            "avg_length": rates["avg_length_start"],
            **_averages(steps / result["start_answers"], metrics),
        }
    for row in done:
        figures = {"pairs": row["pairs"]}
        if (rates := row["evaluation"]) is not None:
            figures |= {name: rates[name] for name in _RATES}
            figures |= _averages(steps / row["steps"]["answer"], metrics)
        trained = {TRAINING + name: v for name, v in row["training"]["metrics"].items()}
        policies.append(figures | trained | _quality(steps / row["steps"]["build"] / PAIRS))
    # A policy's boundary score is measured in the iteration that it goes into.
    for figures, row in zip(policies, rows, strict=False):
        if row["stage"] is not None:
            figures["boundary_score"] = row["stage"]["boundary_score"]
    return {
        "cell": cell.name,
        "values": dict(cell.values),
        "put_aside": result["put_aside"],
        "stopped": result["stopped"],
        "reversals": reversal_lines(result),
        "in_sample": in_sample_lines(result),
        "policies": [
            {
                "path": [row["data"] for row in done[:number]],
                "figures": {name: v for name, v in figures.items() if v is not None},
            }
            for number, figures in enumerate(policies)
        ],
    }


def _counted(texts: Iterable[str], cells: int) -> list[str]:
    return [f"{text} (in {count} of {cells} cells)" for text, count in Counter(texts).items()]


def _averages(answers: Path, metrics: Mapping[str, Metric]) -> dict[str, float]:
    rows = read_answers(answers) if metrics else []
    return {name: mean(metric(*row) for row in rows) for name, metric in metrics.items()}


# Mean score of the chosen responses, and mean gap, where the pairs have scores.
def _quality(pairs: Path) -> dict[str, float]:
    scores = [(pair.score_chosen, pair.score_rejected) for pair in load_pairs(str(pairs))]
    known = [(a, b) for a, b in scores if a is not None and b is not None]
    if not known or len(known) < len(scores):
        return {}
    return {"avg_chosen": mean(a for a, _ in known), "avg_gap": mean(a - b for a, b in known)}


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
    labels = [" ".join(map(str, v)) if isinstance(v, list) else str(v) for v in values]
    return [(label, {axis: value}) for label, value in zip(labels, values, strict=True)]


def _safe(text: str) -> str:
    return _UNSAFE.sub("-", text).strip("-")
