"""`prefstage align`: the whole loop by a recipe."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prefstage.cli.align_view import bought, shown_steps
from prefstage.cli.manners import Outcome, mannered, say
from prefstage.core.errors import InputError

if TYPE_CHECKING:
    from prefstage.aligning import Aligned, Recipe

RecipeFile = Annotated[
    Path | None,
    typer.Argument(help="The recipe, YAML: policy, off_policy, judge, schedule and so on."),
]
OutOption = Annotated[
    Path, typer.Option(help="Run folder. The same command goes on in it after a stop.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="Setting that wins over the recipe, e.g. train.loss.beta=0.05."),
]
ResumeOption = Annotated[
    bool, typer.Option("--resume", help="Take the recipe from the run folder, as it was last.")
]
DryOption = Annotated[
    bool, typer.Option("--dry-run", help="Show each step and its estimated costs; do nothing.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]


@mannered
def align(
    recipe: RecipeFile = None,
    *,
    out: OutOption,
    settings: SetOption = None,
    resume: ResumeOption = False,
    dry_run: DryOption = False,
    as_json: JsonOption = False,
) -> None:
    """Align a policy, in each iteration with the data that its stage asks for.

    Sample, judge, measure, choose, build, train, evaluate; and again. Stopped at any moment,
    the same command goes on; with a changed setting it does again what depends on it, and
    takes the rest from the run folder.
    """
    from prefstage.training.recipe import parse_overrides

    overrides = parse_overrides(settings or [])
    from prefstage.aligning import align as run
    from prefstage.aligning import load_recipe

    asked = load_recipe(_recipe_file(recipe, out, resume=resume), overrides)
    if dry_run:
        say(_planned(asked, out), as_json=as_json)
        return
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # of loading and saving weights
    if sys.stderr.isatty():
        with shown_steps() as view:
            aligned = run(asked, out=out, tell=view.tell, begun=view.begun)
    else:
        aligned = run(asked, out=out)
    steps = [vars(each) for each in aligned.steps]
    say(
        Outcome(_told(aligned, out), {**aligned.result, "log": steps}, list(aligned.written)),
        as_json=as_json,
    )


def _recipe_file(recipe: Path | None, out: Path, *, resume: bool) -> Path:
    if (recipe is not None) == resume:
        raise InputError.of(
            saw="a recipe and --resume" if resume else "neither a recipe nor --resume",
            expected="one of them; a recipe that was stopped goes on by itself",
            cure="leave --resume out" if resume else "name the recipe",
        )
    return recipe if recipe is not None else out / "config.yaml"


def _planned(recipe: "Recipe", out: Path) -> Outcome:
    from dataclasses import asdict

    from prefstage.aligning.planning import BASIS, plan_alignment, plan_told, planned_costs

    planned = plan_alignment(recipe, out=out)
    result = {
        "steps": [asdict(each) for each in planned],
        "total": asdict(planned_costs(planned)),
        "basis": BASIS,
    }
    return Outcome(plan_told(planned), result)


def _told(aligned: "Aligned", out: Path) -> str:
    from prefstage.aligning.results import reversals_told, table

    result = aligned.result
    counts = dict.fromkeys(("ran", "reused", "remade"), 0)
    for record in aligned.steps:
        counts[record.did] += 1
    told = ", ".join(f"{count} {did}" for did, count in counts.items() if count)
    lines = [
        f"aligned {result['start']} by {', '.join(result['schedule'])}, judged by"
        f" {result['judge']}",
        "",
        table(result),
        "",
        *reversals_told(result),
        f"ended: {result['stopped']}",
        f"steps: {told}",
        f"bought: {bought(result['costs'])}",
    ]
    lines += [
        f"put aside as bad: {each['rows']} of {each['of']} rows of {name} ({out / each['file']})"
        for name, each in result["put_aside"].items()
    ]
    lines += [f"remade {each.step}: {each.why}" for each in aligned.steps if each.did == "remade"]
    return "\n".join(lines)
