"""The commands that read a recipe: train, build, align and experiment."""

import sys
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from prefstage.cli.align_view import bought, shown_steps
from prefstage.cli.options import Command
from prefstage.core.errors import InputError
from prefstage.core.outcome import Outcome

if TYPE_CHECKING:
    from prefstage.aligning import Aligned
    from prefstage.aligning.experiment import CellRecord, Experiment
    from prefstage.building import BuildResult
    from prefstage.training.recipe_run import Trained

RUN_FOLDER = "Run folder. The same command goes on in it after a stop."
DRY_RUN = "Show the steps and their estimated costs; do nothing."

Overrides = Mapping[str, Any]


@partial(
    Command,
    recipe="The recipe, YAML: policy, data, loss, training arguments and so on.",
    out=RUN_FOLDER,
    out_required=True,
)
def train(recipe: Path | None, overrides: Overrides, *, out: Path) -> Outcome | None:
    """Train a policy by a recipe, and export it with its card and resolved settings.

    Checkpoints, logs and the trained model go into the run folder. Stopped at any moment, the
    same command goes on from the last checkpoint. On several processes: accelerate launch
    $(which prefstage) train recipe.yaml --out run.
    """
    from prefstage.training.recipe import load_recipe

    # A recipe that is wrong is refused before torch is imported, which takes seconds.
    settings = load_recipe(_named(recipe), overrides)
    from prefstage.training.policy import is_first_process
    from prefstage.training.recipe_run import train_recipe

    trained = train_recipe(settings, out)
    # Under accelerate each process runs the command; one says what came of it.
    if not is_first_process():
        return None
    return Outcome(_trained_text(trained), trained.result, trained.written)


@partial(
    Command,
    recipe="The recipe, YAML: data, judge, method, filters.",
    out="Run folder for pairs, card and counts; the same command goes on in it.",
)
def build(recipe: Path | None, overrides: Overrides, *, out: Path | None) -> Outcome:
    """Build preference pairs by a recipe: which responses meet, which are left out, and why.

    Without --out nothing is written: the counts and score statistics alone are shown.
    """
    from prefstage.building import build_pairs
    from prefstage.building.recipe import Recipe
    from prefstage.core.config import load_config

    built = build_pairs(load_config(Recipe, _named(recipe), overrides), out=out)
    written = []
    if out is not None:
        parts = built.parts.items()
        written = [out / part / f"{name}.parquet" for part, splits in parts for name in splits]
        written += [out / "README.md", out / "build.json", out / "config.yaml"]
    return Outcome(_built_text(built), dict(built.result), written)


@partial(
    Command,
    recipe="The recipe, YAML: policy, off_policy, judge, schedule and so on.",
    out=RUN_FOLDER,
    out_required=True,
    flags={
        "resume": "Take the recipe from the run folder, as it was last.",
        "dry_run": DRY_RUN,
    },
)
def align(
    recipe: Path | None, overrides: Overrides, *, out: Path, resume: bool, dry_run: bool
) -> Outcome:
    """Align a policy, in each iteration with the data that its stage asks for.

    Sample, judge, measure, choose, build, train, evaluate; and again. Stopped at any moment,
    the same command goes on; with a changed setting it does again what depends on it, and
    takes the rest from the run folder.
    """
    from prefstage.aligning import align as run
    from prefstage.aligning import load_recipe

    if (recipe is not None) == resume:
        raise InputError.of(
            saw="a recipe and --resume" if resume else "neither a recipe nor --resume",
            expected="one of them; a recipe that was stopped goes on by itself",
            cure="leave --resume out" if resume else "name the recipe",
        )
    settings = load_recipe(recipe or out / "config.yaml", overrides)
    if dry_run:
        from prefstage.aligning.planning import plan_alignment

        return _planned(plan_alignment(settings, out=out))
    _hide_weight_bars()
    if sys.stderr.isatty():
        with shown_steps() as view:
            aligned = run(settings, out=out, tell=view.tell, begun=view.begun)
    else:
        aligned = run(settings, out=out)
    result = {**aligned.result, "log": [vars(step) for step in aligned.steps]}
    return Outcome(_aligned_text(aligned, out), result, list(aligned.written))


@partial(
    Command,
    recipe="The grid, YAML: recipe, axes, metrics and tables.",
    out=RUN_FOLDER,
    out_required=True,
    flags={"dry_run": DRY_RUN},
)
def experiment(recipe: Path | None, overrides: Overrides, *, out: Path, dry_run: bool) -> Outcome:
    """Align by every combination of a grid, and tabulate what came of it.

    Policies, schedules, losses, judges, seeds or any other settings of `prefstage align`. Equal
    steps are done once, answers and judgments are bought once. Tables as Markdown, LaTeX and
    CSV. A cell that fails is named at the end (exit status 1); the same command tries it again.
    """
    from prefstage.aligning import load_grid, run_experiment
    from prefstage.aligning.experiment import Grid
    from prefstage.core.config import load_config

    grid = load_grid(load_config(Grid, _named(recipe), overrides))
    if dry_run:
        from prefstage.aligning.experiment import plan_experiment

        plan, cells = _planned(plan_experiment(grid, out=out)), len(grid.cells)
        text = f"{cells} cells, which share these steps:\n\n{plan.summary}"
        return Outcome(text, {"cells": cells, **plan.result})
    _hide_weight_bars()
    done = run_experiment(grid, out=out, tell=_show_cell)
    return Outcome(
        _experiment_text(done, out), done.result, list(done.written), failed=bool(done.failed)
    )


def _named(recipe: Path | None) -> Path:
    if recipe is None:
        raise InputError.of(saw="no recipe", expected="a YAML file", cure="name it")
    return recipe


def _hide_weight_bars() -> None:
    from transformers.utils.logging import disable_progress_bar

    # Bars of loading and saving weights, one a step, would hide the line of the step itself.
    disable_progress_bar()


def _planned(steps: Any) -> Outcome:
    from prefstage.aligning.planning import BASIS, plan_text, planned_costs

    result = {
        "steps": [asdict(step) for step in steps],
        "total": asdict(planned_costs(steps)),
        "basis": BASIS,
    }
    return Outcome(plan_text(steps), result)


def _show_cell(record: "CellRecord") -> None:
    """A line for each cell in which something was done; on a terminal the bar tells the rest."""
    if record.error is not None or record.ran:
        did = record.error if record.error is not None else f"{record.ran} steps"
        typer.echo(f"[{record.number}/{record.of}] {record.cell}: {did}", err=True)


def _trained_text(trained: "Trained") -> str:
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
    metrics = {name: value for name, value in result["metrics"].items() if "dynamics/" not in name}
    lines += [f"{name}: {_shown(value)}" for name, value in sorted(metrics.items())]
    cut = {name: count for name, count in result["counts"].items() if count and _is_cut(name)}
    lines += [f"{name.replace('_', ' ')}: {count}" for name, count in cut.items()]
    if "online" in result:
        counted = ", ".join(f"{name} {count}" for name, count in result["online"].items())
        lines.append(f"sampled rejected responses: {counted}")
    return "\n".join([*lines, *(f"note: {note}" for note in result["notes"])])


def _is_cut(name: str) -> bool:
    """Whether a count of encoding is worth a line: what was cut or changed, if no note says it."""
    from prefstage.training.items import LEFT_OUT

    return name not in ("prompts", "responses", *LEFT_OUT)


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return ", ".join(map(_shown, value)) if isinstance(value, list) else str(value)


def _built_text(built: "BuildResult") -> str:
    from prefstage.building.account import describe_reversal
    from prefstage.building.card import has_scores, quality_table

    result = built.result
    judge = f", judged by {result['judge']}" if result["judge"] else ""
    lines = [
        f"{result['pairs_built']} pairs by {result['method']} from {result['prompts_read']} rows"
        f" of {result['source']}{judge}"
    ]
    left_out = sorted(result["left_out"].items(), key=lambda reason: -reason[1])
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


def _aligned_text(aligned: "Aligned", out: Path) -> str:
    from prefstage.aligning.loop import reversal_lines, table

    result = aligned.result
    counts = dict.fromkeys(("ran", "reused", "remade"), 0)
    for record in aligned.steps:
        counts[record.did] += 1
    did = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    lines = [
        f"aligned {result['start']} by {', '.join(result['schedule'])}, judged by"
        f" {result['judge']}",
        "",
        table(result),
        "",
        *reversal_lines(result),
        f"ended: {result['stopped']}",
        f"steps: {did}",
        f"bought: {bought(result['costs'])}",
    ]
    lines += [
        f"put aside as bad: {bad['rows']} of {bad['of']} rows of {name} ({out / bad['file']})"
        for name, bad in result["put_aside"].items()
    ]
    lines += [f"remade {step.step}: {step.why}" for step in aligned.steps if step.did == "remade"]
    return "\n".join(lines)


def _experiment_text(done: "Experiment", out: Path) -> str:
    from prefstage.aligning.experiment import bad_rows_text, cell_reversal_lines

    lines = [*done.tables.values()]
    for name, agreement in done.result["agreement"].items():
        lines.append(_agreement(name, agreement["means"]))
    failed = done.failed
    lines.append(f"cells: {len(done.cells) - len(failed)} done, {len(failed)} failed")
    bad = bad_rows_text(done.result["cells"])
    lines += [f"put aside as bad: {bad}; see {out / 'cells'}/CELL/quarantine"] if bad else []
    lines += cell_reversal_lines(done.result["cells"])
    lines += [f"failed {cell.cell}: {cell.error}" for cell in failed]
    return "\n".join(lines)


def _agreement(name: str, means: dict[str, Any]) -> str:
    lines = [
        f"{name}: boundary score against which data gained more, {len(means['starts'])} starts"
    ]
    for kind, yes in (("ratio", "Δ > 1"), ("gain", "off gained more than on")):
        counts, share = means[kind]["counts"], means[kind]["agreement"]
        shown = "-" if share is None else f"{share:.0%}"
        lines += [
            "",
            f"| | {yes} | not |",
            "|---|---|---|",
            f"| BS < 0.5 | {counts[0][0]} | {counts[0][1]} |",
            f"| BS >= 0.5 | {counts[1][0]} | {counts[1][1]} |",
            "",
            f"agreement {shown}, Fisher's exact test p = {means[kind]['p_value']:.3g}, "
            f"left out {means[kind]['left_out']}",
        ]
    return "\n".join([*lines, ""])
