"""`prefstage experiment`: every combination of a grid, and tables of the results."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prefstage.cli.manners import Outcome, mannered, say

if TYPE_CHECKING:
    from prefstage.aligning.experiment import CellRecord, Experiment

GridFile = Annotated[Path, typer.Argument(help="The grid, YAML: recipe, axes, metrics and tables.")]
OutOption = Annotated[
    Path, typer.Option(help="Folder. The same command goes on in it after a stop.")
]
DryOption = Annotated[
    bool, typer.Option("--dry-run", help="Show the steps and their estimated costs; do nothing.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]

EXIT_CELLS_FAILED = 1


@mannered
def experiment(
    grid: GridFile, *, out: OutOption, dry_run: DryOption = False, as_json: JsonOption = False
) -> None:
    """Align by every combination of a grid, and tabulate what came of it.

    Policies, schedules, losses, judges, seeds or any other settings of `prefstage align`. Equal
    steps are done once, answers and judgments are bought once. Tables as Markdown, LaTeX and
    CSV. A cell that fails is named at the end (exit status 1); the same command tries it again.
    """
    from prefstage.aligning import load_grid, run_experiment

    asked = load_grid(grid)
    if dry_run:
        say(_planned(asked, out), as_json=as_json)
        return
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # of loading and saving weights
    found = run_experiment(asked, out=out, tell=_tell)
    say(Outcome(_told(found, out), found.result, list(found.written)), as_json=as_json)
    if found.failed:
        raise typer.Exit(EXIT_CELLS_FAILED)


def _tell(record: "CellRecord") -> None:
    """A line for each cell in which something was done; on a terminal the bar tells the rest."""
    if record.error is not None or record.ran:
        did = record.error if record.error is not None else f"{record.ran} steps"
        typer.echo(f"[{record.number}/{record.of}] {record.cell}: {did}", err=True)


def _planned(grid: Any, out: Path) -> Outcome:
    from dataclasses import asdict

    from prefstage.aligning.experiment import plan_experiment
    from prefstage.aligning.planning import BASIS, plan_told, planned_costs

    planned = plan_experiment(grid, out=out)
    result = {
        "cells": len(grid.cells),
        "steps": [asdict(each) for each in planned],
        "total": asdict(planned_costs(planned)),
        "basis": BASIS,
    }
    told = f"{len(grid.cells)} cells, which share these steps:\n\n{plan_told(planned)}"
    return Outcome(told, result)


def _told(found: "Experiment", out: Path) -> str:
    from prefstage.aligning.cells import bad_rows_told, reversals_in_cells

    lines = [*found.tables.values()]
    for name, each in found.result["agreement"].items():
        lines.append(_agreement(name, each["means"]))
    failed = found.failed
    lines.append(f"cells: {len(found.cells) - len(failed)} done, {len(failed)} failed")
    bad = bad_rows_told(found.result["cells"])
    lines += [f"put aside as bad: {bad}; see {out / 'cells'}/CELL/quarantine"] if bad else []
    lines += reversals_in_cells(found.result["cells"])
    lines += [f"failed {each.cell}: {each.error}" for each in failed]
    return "\n".join(lines)


def _agreement(name: str, found: "dict[str, Any]") -> str:
    lines = [
        f"{name}: boundary score against which data gained more, {len(found['starts'])} starts"
    ]
    for kind, yes in (("ratio", "Δ > 1"), ("gain", "off gained more than on")):
        counts, share = found[kind]["counts"], found[kind]["agreement"]
        told = "-" if share is None else f"{share:.0%}"
        lines += [
            "",
            f"| | {yes} | not |",
            "|---|---|---|",
            f"| BS < 0.5 | {counts[0][0]} | {counts[0][1]} |",
            f"| BS >= 0.5 | {counts[1][0]} | {counts[1][1]} |",
            "",
            f"agreement {told}, Fisher's exact test p = {found[kind]['p_value']:.3g}, "
            f"left out {found[kind]['left_out']}",
        ]
    return "\n".join([*lines, ""])
