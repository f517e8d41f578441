"""`prefstage demo`: a world whose truth is known, two policies, two different answers."""

import time
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Annotated

import typer

from prefstage.cli.manners import Outcome, mannered, say

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from prefstage.sandbox.demo_report import (
        DemoPart,
        DemoReport,
        PoliciesTrained,
        PolicyMeasured,
        PoolMade,
    )

_WIDTH = 96  # longer lines are hard to read

_TITLE = "Which preference data does a language model need next?"
_BEGINNING = (
    'A model can learn from pairs of answers that others wrote ("off-policy"), or from pairs '
    'of its own answers, sampled and judged afresh ("on-policy"). As long as its own answers '
    "mostly lose against the others', it learns more from theirs: the injection stage. Once "
    "its own mostly win, it learns more from its own: the fine-tuning stage. prefstage "
    "measures which stage a model is in; here, in a small world whose truth a program knows."
)
_POOL = (
    "{prompts:,} instructions in a small language, two answers each, by scripted writers who "
    "make mistakes. A program grades every answer from 0 to 1: right words in the right order, "
    "right marks, manners if asked for, no chatter. It is also the judge that says which of "
    "two answers is better. For example:"
)
_TRAINING = (
    "A language model (Llama architecture, {parameters:,} parameters) learns from an expert's "
    "answers to other instructions. It is kept twice: after {weak} training steps (weak) and "
    "after {strong} (strong).{reused}"
)
_MEASURING = (
    "A model answers an instruction twice, and the judge compares both answers with the two at "
    "hand. The share of comparisons that the model wins is its boundary score: below 0.5 means "
    "injection, above it fine-tuning. Instructions are taken at random until the interval that "
    "holds the score with 95% confidence leaves 0.5. To the example, the models answer:"
)
_BUDGET = (
    "The usual measurement takes a fixed {prompts:,} prompts and {judgments:,} judgments. The "
    "truth is the boundary score over all {prompts:,} prompts, by the program's grades."
)


@mannered
def demo(
    *,
    seed: Annotated[int, typer.Option(min=0, help="Another seed makes another world.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for everything the demo makes.")] = Path("demo"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
) -> None:
    """Show what prefstage measures, in about a minute, on a small world whose truth is known.

    Trains a tiny language model, keeps it once early and once at the end, and measures which
    preference data each of the two needs next. Nothing is downloaded. The same command again
    uses what is in the folder.
    """
    from rich.console import Console

    from prefstage.sandbox.demo import run_demo
    from prefstage.sandbox.demo_report import DemoConfig

    started = time.monotonic()
    console = Console(quiet=as_json, highlight=False)
    console.width = min(console.width, _WIDTH)
    console.print(_TITLE, style="bold")
    _paragraph(console, _BEGINNING)
    report = run_demo(out, config=DemoConfig(seed=seed), tell=lambda part: _tell(part, console))
    _conclude(report, console)
    seconds = time.monotonic() - started
    files = [
        report.pool.path,
        *report.training.folders.values(),
        *(each.folder / "stage.json" for each in report.policies),
        report.folder / "demo.json",
    ]
    result = {**report.as_dict(), "seconds": round(seconds, 1)}
    say(Outcome(f"\nDone in {seconds:.0f} seconds.", result, files), as_json=as_json)


def _section(console: "Console", title: str, text: str) -> None:
    console.print(f"\n{title}", style="bold", markup=False)
    _paragraph(console, text)


def _paragraph(console: "Console", text: str, *, indent: int = 3, hang: int = 0) -> None:
    """Print wrapped text; lines after the first stand `hang` columns further right."""
    first, later = " " * indent, " " * (indent + hang)
    lines = wrap(text, console.width - 1, initial_indent=first, subsequent_indent=later)
    console.print("\n".join(lines), markup=False, soft_wrap=True)


def _tell(part: "DemoPart", console: "Console") -> None:
    from prefstage.sandbox.demo_report import PoliciesTrained, PoolMade

    if isinstance(part, PoolMade):
        _tell_pool(part, console)
    elif isinstance(part, PoliciesTrained):
        _tell_training(part, console)
    else:
        _tell_measured(part, console)


def _tell_pool(pool: "PoolMade", console: "Console") -> None:
    row = pool.example
    _section(console, "1. The preference data at hand", _POOL.format(prompts=pool.prompts))
    _example(console, "instruction", row.prompt[-1]["content"])
    for text, source, score in zip(row.responses, row.sources, row.scores, strict=True):
        _example(console, str(source), f"{text} (grade {score or 0:.2f})")
    ranked = ", ".join(f"{name} {reward:.2f}" for name, reward in pool.rewards.items())
    _paragraph(console, f"Mean grades of the writers: {ranked}.")


def _example(console: "Console", who: str, text: str) -> None:
    _paragraph(console, f"{who + ':':<12} {text}", indent=6, hang=13)


def _tell_training(training: "PoliciesTrained", console: "Console") -> None:
    text = _TRAINING.format(
        parameters=training.parameters,
        reused=" Both were here from an earlier run." if training.reused else "",
        **training.steps,
    )
    _section(console, "2. Two models to be measured", text)
    _section(console, "3. Measuring", _MEASURING)


def _tell_measured(measured: "PolicyMeasured", console: "Console") -> None:
    response = measured.response or "(nothing)"
    _example(console, measured.name, f"{response} (grade {measured.grade:.2f})")


def _conclude(report: "DemoReport", console: "Console") -> None:
    from prefstage.sandbox.demo_report import JUDGE

    console.print("\n4. The stages", style="bold")
    console.print(_table(report))
    budget = report.fixed_budget
    _paragraph(console, _BUDGET.format(**budget))
    for each in report.policies:
        found, so = each.stage.stage, each.truth.stage
        right = f"{found} is right" if found == so else f"{found}, but in truth it is {so}"
        share = each.stage.judgments / budget["judgments"]
        _example(console, each.name, f"{right}, at {share:.1%} of those judgments")
    console.print("\n5. What to do next", style="bold")
    for each in report.policies:
        _example(console, each.name, each.stage.recommendation)
    _paragraph(console, "To measure one of them yourself, in as many ways as you like:")
    command = (
        f"prefstage measure --policy {report.training.folders['weak']}",
        f"--off {report.pool.path}",
        f"--judge {JUDGE}",
    )
    console.print("      " + " \\\n        ".join(command), markup=False, soft_wrap=True)


def _table(report: "DemoReport") -> "Table":
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for title in ("model", "stage"):
        table.add_column(title, no_wrap=True)
    for title in ("score", "95% interval", "truth", "prompts", "judgments"):
        table.add_column(title, justify="right", no_wrap=True)
    for each in report.policies:
        stage = each.stage
        low, high = stage.interval
        table.add_row(
            each.name,
            stage.stage,
            f"{stage.boundary_score:.2f}",
            f"{low:.2f} to {high:.2f}",
            f"{each.truth.boundary_score:.2f}",
            f"{stage.prompts_used:,}",
            f"{stage.judgments:,}",
        )
    return table
