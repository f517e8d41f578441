"""The commands: each calls the function of its name, whose result says what came of it."""

import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import typer

from prefstage.cli.options import Command
from prefstage.core import InputError, Outcome

# `former` are names that options had once: scripts may still hold them.
RUN_FOLDER = "Run folder. The same command goes on in it after a stop."
DRY_RUN = "Show the steps and their estimated costs; do nothing."

Overrides = Mapping[str, Any]
OutcomeT = TypeVar("OutcomeT", bound=Outcome)


@partial(
    Command,
    settings="measuring.settings:MeasureSettings",
    out=RUN_FOLDER,
    former={"off": "off_policy", "on": "on_policy", "responses": "on_responses"},
)
def measure(settings: Any, *, out: Path | None) -> Outcome:
    """Tell which preference data a policy needs next: the pairs at hand, or its own.

    The policy answers the prompts of the off-policy data, the judge compares its answers with
    the answers there, and both stop as soon as the 95 % interval of the boundary score leaves
    1/2: below, the policy is in the injection stage (train on the off-policy pairs); above, in
    the fine-tuning stage (train on pairs of its own answers).
    """
    from prefstage.measuring.measure import run_measurement

    return run_measurement(settings, out=out)


@partial(
    Command,
    settings="sampling.answering:SampleSettings",
    out="Where the candidates go: .jsonl or .parquet.",
    out_required=True,
    former={"limit": "max_prompts"},
)
def sample(settings: Any, *, out: Path) -> Outcome:
    """Sample a policy's answers to the prompts of a dataset.

    Each answer is on disk, in OUT.samples.sqlite, as soon as it arrives; the same command goes
    on from there after a stop. At the end OUT holds each prompt with its answers.
    """
    from prefstage.sampling.answering import sample

    return sample(settings.policy, settings.prompts, out=out, config=settings)


@partial(
    Command,
    settings="judging.judged:JudgeSettings",
    out="Judged rows (.parquet, .jsonl) or the summary (.json).",
)
def judge(settings: Any, *, out: Path | None) -> Outcome:
    """Judge pairs (does the judge agree with the labels?), or score candidates.

    With --pairs: P(chosen better than rejected) of each pair, and how often the judge agrees
    with the dataset. With --candidates: a score for each response, the reward of a reward
    model, or the mean probability of beating the prompt's other responses.
    """
    from prefstage.judging.judged import judge

    return judge(
        settings.judge,
        pairs=settings.pairs,
        candidates=settings.candidates,
        out=out,
        config=settings,
    )


@partial(
    Command,
    settings="diagnosing.config:DiagnoseSettings",
    out="Folder for report.md and report.json (figures' data in it).",
    former={"on": "on_policy"},
)
def diagnose(settings: Any, *, out: Path | None) -> Outcome:
    """Say what is in a dataset of pairs, and what training a policy on it could do.

    Rankings, learnability and distinctness need --policy; agreement, position bias and answer
    quality need --judge. Several datasets and policies are compared in one table.
    """
    from prefstage.diagnosing.diagnosis import run_diagnosis

    return run_diagnosis(settings, out=out)


@partial(
    Command,
    settings="evaluating.settings:EvaluateSettings",
    out="Folder of results. The same command goes on in it after a stop.",
)
def evaluate(settings: Any, *, out: Path | None) -> Outcome:
    """Win rate of answers, or of a policy, over a baseline by any judge.

    Raw and length-controlled, with intervals; several models are also compared with each
    other. With --annotations the win rates of verdicts that exist already; with --mt-bench
    ratings of two-turn answers; with --task benchmarks. Answers and verdicts are on disk as
    soon as they arrive: the same command goes on after a stop.
    """
    from prefstage.evaluating.evaluation import evaluate

    return evaluate(out=out, config=settings)


@partial(
    Command,
    settings="cli.settings:ReportSettings",
    argument="runs",
    out="The page.",
    out_default=Path("report.html"),
)
def report(settings: Any, *, out: Path) -> Outcome:
    """Show what runs found on one page that needs no network; several runs are compared.

    What a run does not hold is left out, and said.
    """
    from prefstage.reporting.report import make_report

    return make_report(settings.runs, out=out, title=settings.title, figures=settings.figures)


@partial(
    Command,
    settings="cli.settings:DemoSettings",
    out="Folder for everything the demo makes.",
    out_default=Path("demo"),
    talks=True,
)
def demo(settings: Any, *, out: Path, quiet: bool) -> Outcome:
    """Align a tiny model in a small world whose truth is known, in a few minutes.

    Two iterations of sampling, judging, measuring, choosing, building, training and evaluating,
    each with the data that the measured stage asks for; and the same by four fixed schedules.
    Nothing is downloaded. The same command again uses what is in the folder.
    """
    from prefstage.cli.demo import show_demo

    return show_demo(out, seed=settings.seed, quiet=quiet)


@partial(
    Command,
    settings="cli.settings:TheorySettings",
    argument="checks",
    out="Folder for theory.json and the figures.",
)
def theory(settings: Any, *, out: Path | None) -> Outcome:
    """Check the papers' theorems, exactly, on random worlds.

    Prompts and responses are few, policies and preferences explicit, and every expectation is
    a sum. An equality must hold to 1e-10, an inequality without exception, an approximation
    with its order; where a statement is false as printed, its counterexamples are counted.
    """
    from prefstage.sandbox.theory import Setting, choose_checks, outcome_of, run_checks

    setting = Setting(settings.worlds, settings.seed)
    done = run_checks(choose_checks(settings.checks), setting, out=out, figures=settings.figures)
    return outcome_of(done, setting, out=out)


@partial(
    Command,
    settings="reporting.checkup:DoctorSettings",
    out="Write the findings as JSON.",
)
def doctor(settings: Any, *, out: Path | None) -> Outcome:
    """Say what is here: versions, devices, memory; and whether a model and a job fit.

    With --model: its size, how its responses will be scored and why, and whether its chat
    template is known. With --job: what the job needs in memory, estimated from the model's
    configuration. With --judge and --server: whether they can be used.
    """
    from prefstage.reporting.checkup import doctor

    return doctor(
        settings.model, judge=settings.judge, server=settings.server, out=out, config=settings
    )


@partial(
    Command,
    recipe="The recipe, YAML: policy, data, loss, training arguments and so on.",
    out=RUN_FOLDER,
    out_required=True,
)
def train(recipe: Path, overrides: Overrides, *, out: Path) -> Outcome | None:
    """Train a policy by a recipe, and export it with its card and resolved settings.

    Checkpoints, logs and the trained model go into the run folder. Stopped at any moment, the
    same command goes on from the last checkpoint. On several processes: accelerate launch
    $(which prefstage) train recipe.yaml --out run.
    """
    from prefstage.training.recipe import load_recipe

    # A recipe that is wrong is refused before torch is imported, which takes seconds.
    settings = load_recipe(recipe, overrides)
    from prefstage.training.compat import is_first_process
    from prefstage.training.recipe_run import train_recipe

    trained = train_recipe(settings, out)
    # Under accelerate each process runs the command; one says what came of it.
    return trained if is_first_process() else None


@partial(
    Command,
    recipe="The recipe, YAML: data, judge, method, filters.",
    out="Run folder for pairs, card and counts; the same command goes on in it.",
)
def build(recipe: Path, overrides: Overrides, *, out: Path | None) -> Outcome:
    """Build preference pairs by a recipe: which responses meet, which are left out, and why.

    Without --out nothing is written: the counts and score statistics alone are shown.
    """
    from prefstage.building import Recipe, build_pairs
    from prefstage.core import load_config

    return build_pairs(load_config(Recipe, recipe, overrides), out=out)


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
    from prefstage.aligning import align as run, load_recipe, plan_alignment
    from prefstage.aligning.runs import plan_outcome

    InputError.unless(
        (recipe is None) == resume,
        saw="a recipe and --resume" if resume else "neither a recipe nor --resume",
        expected="one of them; a recipe that was stopped goes on by itself",
        cure="leave --resume out" if resume else "name the recipe",
    )
    settings = load_recipe(recipe or out / "config.yaml", overrides)
    if dry_run:
        return plan_outcome(plan_alignment(settings, out=out))
    aligned = _with_steps_shown(partial(run, settings, out=out))
    return replace(aligned, result={**aligned.result, "log": [vars(s) for s in aligned.steps]})


@partial(
    Command,
    recipe="As of align, YAML: policy, off_policy, judge, train, and advise.",
    out=RUN_FOLDER,
    out_required=True,
    flags={"dry_run": DRY_RUN},
    words={"depth": "Where to stop: stage, forecast or pilot [as the recipe says]."},
)
def advise(
    recipe: Path, overrides: Overrides, *, out: Path, dry_run: bool, depth: str | None
) -> Outcome:
    """Tell which data to train on next: the pairs at hand, own answers, a mixture, others.

    Three depths, each with the ones before. stage: the boundary score, which compares answers
    alone. forecast: gradients, which see the loss and the optimiser too, without any training.
    pilot: short trainings, valued by judged answers, and raced. The same command
    with another --depth goes on where it stopped.
    """
    from prefstage.aligning import advise as run, load_recipe, plan_advice
    from prefstage.aligning.runs import plan_outcome

    chosen = {} if depth is None else {"advise.depth": depth}
    settings = load_recipe(recipe, {**overrides, **chosen})
    if dry_run:
        return plan_outcome(plan_advice(settings, out=out))
    return _with_steps_shown(partial(run, settings, out=out))


@partial(
    Command,
    recipe="The grid, YAML: recipe, axes, metrics and tables.",
    out=RUN_FOLDER,
    out_required=True,
    flags={"dry_run": DRY_RUN},
)
def experiment(recipe: Path, overrides: Overrides, *, out: Path, dry_run: bool) -> Outcome:
    """Align by every combination of a grid, and tabulate what came of it.

    Policies, schedules, losses, judges, seeds or any other settings of `prefstage align`. Equal
    steps are done once, answers and judgments are bought once. Tables as Markdown, LaTeX and
    CSV. A cell that fails is named at the end (exit status 1); the same command tries it again.
    """
    from prefstage.aligning import Grid, load_grid, plan_experiment, run_experiment
    from prefstage.aligning.runs import plan_outcome
    from prefstage.core import load_config

    grid = load_grid(load_config(Grid, recipe, overrides))
    if dry_run:
        plan, cells = plan_outcome(plan_experiment(grid, out=out)), len(grid.cells)
        return Outcome(
            f"{cells} cells, which share these steps:\n\n{plan.summary}",
            {"cells": cells, **plan.result},
        )
    return run_experiment(grid, out=out, tell=_show_cell)


# On a terminal the steps as they end, and the one under way.
def _with_steps_shown(run: Callable[..., OutcomeT]) -> OutcomeT:
    from prefstage.cli.align_view import shown_steps

    with shown_steps() if sys.stderr.isatty() else nullcontext() as view:
        return run(**({} if view is None else {"tell": view.tell, "begun": view.begun}))


# A line for each cell in which something was done; on a terminal the bar tells the rest.
def _show_cell(record: Any) -> None:
    if record.error is not None or record.ran:
        typer.echo(
            f"[{record.number}/{record.of}] {record.cell}: "
            + (f"{record.ran} steps" if record.error is None else record.error),
            err=True,
        )
