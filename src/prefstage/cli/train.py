"""`prefstage train`: train a policy by a recipe."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prefstage.cli.manners import Outcome, mannered, say

if TYPE_CHECKING:
    from prefstage.training.recipe_run import Trained

RecipeFile = Annotated[
    Path,
    typer.Argument(help="The recipe, YAML: policy, data, loss, training arguments and so on."),
]
OutOption = Annotated[
    Path, typer.Option(help="Run folder. The same command goes on in it after a stop.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="Setting that wins over the recipe, e.g. training.max_steps=5."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]


@mannered
def train(
    recipe: RecipeFile,
    *,
    out: OutOption,
    settings: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train a policy by a recipe, and export it with its card and resolved settings.

    Checkpoints, logs and the trained model go into the run folder. Stopped at any moment, the
    same command goes on from the last checkpoint. On several processes: accelerate launch
    $(which prefstage) train recipe.yaml --out run.
    """
    from prefstage.training.recipe import load_recipe, parse_overrides

    asked = load_recipe(recipe, parse_overrides(settings or []))
    from prefstage.training.policy import is_first_process
    from prefstage.training.recipe_run import train_recipe

    trained = train_recipe(asked, out)
    if is_first_process():
        say(Outcome(_told(trained), trained.result, trained.written), as_json=as_json)


def _told(trained: "Trained") -> str:
    from prefstage.training.export import describe_exported

    result = trained.result
    loss = " + ".join(
        term["name"] if term["weight"] == 1 else f"{term['weight']:g}*{term['name']}"
        for term in result["loss"]
    )
    lines = [
        f"trained {result['policy']} by {loss} on {result['items']} {result['kind']}: "
        f"{result['steps']} steps, {_shown(result['epochs'])} epochs"
    ]
    exported = describe_exported(result)
    lines += [] if exported is None else [f"exported: {exported}"]
    if result["first_loss"] is not None:
        lines.append(f"loss: {_shown(result['first_loss'])} to {_shown(result['last_loss'])}")
    told = {name: value for name, value in result["metrics"].items() if "dynamics/" not in name}
    lines += [f"{name}: {_shown(value)}" for name, value in sorted(told.items())]
    cut = {name: count for name, count in result["counts"].items() if count and _tells(name)}
    lines += [f"{name.replace('_', ' ')}: {count}" for name, count in cut.items()]
    if "online" in result:
        counted = ", ".join(f"{name} {count}" for name, count in result["online"].items())
        lines.append(f"sampled rejected responses: {counted}")
    return "\n".join([*lines, *(f"note: {note}" for note in result["notes"])])


def _tells(name: str) -> bool:
    """Whether a count of encoding is worth a line: what was cut or changed, if no note says it."""
    from prefstage.training.items import LEFT_OUT

    return name not in ("prompts", "responses", *LEFT_OUT)


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
