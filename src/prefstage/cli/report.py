"""`prefstage report`: one HTML page about one run or several."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prefstage.cli.manners import Outcome, mannered, say

if TYPE_CHECKING:
    from prefstage.reporting.report import Report

RunsArgument = Annotated[
    list[Path],
    typer.Argument(
        help="Run folders of align, experiment, train, measure, build, evaluate or diagnose."
    ),
]
OutOption = Annotated[Path, typer.Option(help="The page.")]
TitleOption = Annotated[str | None, typer.Option(help="Its heading [the runs' names].")]
FiguresOption = Annotated[
    Path | None, typer.Option(help="Folder for every chart as PNG and SVG, for papers.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]


@mannered
def report(
    runs: RunsArgument,
    *,
    out: OutOption = Path("report.html"),
    title: TitleOption = None,
    figures: FiguresOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what runs found on one page that needs no network; several runs are compared.

    What a run does not hold is left out, and said.
    """
    from prefstage.reporting.report import make_report

    made = make_report(runs, out=out, title=title, figures=figures)
    result = {
        "page": str(made.path),
        "bytes": made.path.stat().st_size,
        "charts": [each.name for each in made.charts],
        "pairs": made.pairs,
        "not_shown": [{"run": run, "what": what, "why": why} for run, what, why in made.lacks],
    }
    say(Outcome(_told(made), result, [made.path, *made.figures]), as_json=as_json)


def _told(made: "Report") -> str:
    lines = [f"{len(made.charts)} charts, {made.pairs:,} pairs to read"]
    lines += [f"not shown of {run}: {what} ({why})" for run, what, why in made.lacks]
    return "\n".join(lines)
