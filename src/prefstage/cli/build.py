"""`prefstage build`: preference pairs by a recipe."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prefstage.cli.manners import Outcome, mannered, say

if TYPE_CHECKING:
    from prefstage.building import BuildResult

RecipeFile = Annotated[Path, typer.Argument(help="The recipe, YAML: data, judge, method, filters.")]
OutOption = Annotated[
    Path | None,
    typer.Option(help="Run folder for pairs, card and counts; the same command goes on in it."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]


@mannered
def build(recipe: RecipeFile, *, out: OutOption = None, as_json: JsonOption = False) -> None:
    """Build preference pairs by a recipe: which responses meet, which are left out, and why.

    Without --out nothing is written: the counts and score statistics alone are shown.
    """
    from prefstage.building import build_pairs

    built = build_pairs(recipe, out=out)
    written = []
    if out is not None:
        parts = built.parts.items()
        written = [out / part / f"{name}.parquet" for part, splits in parts for name in splits]
        written += [out / "README.md", out / "build.json", out / "config.yaml"]
    say(Outcome(_told(built), dict(built.result), written), as_json=as_json)


def _told(built: "BuildResult") -> str:
    from prefstage.building.account import describe_reversal
    from prefstage.building.card import has_scores, quality_table

    result = built.result
    judge = f", judged by {result['judge']}" if result["judge"] else ""
    lines = [
        f"{result['pairs_built']} pairs by {result['method']} from {result['prompts_read']} rows"
        f" of {result['source']}{judge}"
    ]
    left_out = sorted(result["left_out"].items(), key=lambda each: -each[1])
    lines += [f"left out: {count} x {why}" for why, count in left_out]
    if result["reversal"] is not None:
        lines.append(describe_reversal(result["reversal"]))
    figures = result["figures"].items()
    lines += [f"{name.replace('_', ' ')}: {_shown(value)}" for name, value in figures]
    for part, splits in result["parts"].items():
        counts = ", ".join(f"{name} {count}" for name, count in splits.items())
        lines.append(f"{part}: {counts}")
    if has_scores(built.statistics):
        lines += ["", quality_table(built.statistics)]
    return "\n".join([*lines, *(f"note: {note}" for note in result["notes"])])


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return ", ".join(map(_shown, value)) if isinstance(value, list) else str(value)
