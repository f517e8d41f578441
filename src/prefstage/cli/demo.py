"""What `prefstage demo` shows, part by part, as it goes on; and the page at its end."""

import os
import sys
import time
import webbrowser
from pathlib import Path
from textwrap import wrap

from rich import box
from rich.console import Console
from rich.table import Column, Table

from prefstage.core import MissingDependencyError, Outcome
from prefstage.reporting import write_report
from prefstage.sandbox import demo

_WIDTH = 96  # longer lines are hard to read

_STAGES = {"off": "the pairs at hand (off)", "on": "pairs of its own (on)"}
_CROSSINGS: dict[demo.Crossing, str] = {
    "crossed": "The boundary was crossed: from injection to fine-tuning.",
    "not crossed": "The boundary was not crossed in this world.",
    "beyond from the start": "The model was in the fine-tuning stage from the start.",
}


def show_demo(out: Path, *, seed: int, quiet: bool) -> Outcome:
    """Run the demo, and tell its parts on standard output.

    Args:
        out: Folder for everything that it makes.
        seed: Which world.
        quiet: Tell nothing, and open no browser.

    Returns:
        What it came to.
    """
    started = time.monotonic()
    teller = Teller(Console(quiet=quiet, highlight=False))
    teller.begin()
    report = demo.run_demo(out, config=demo.DemoConfig(seed=seed), tell=teller.tell)
    page = _page(report)
    seconds = time.monotonic() - started
    teller.conclude(report)
    result = {**report.as_dict(), "seconds": round(seconds, 1), "report": None}
    files = [
        report.pool.path,
        report.policy.folder,
        *(schedule.folder / "align.json" for schedule in report.schedules),
        report.folder / "demo.json",
    ]
    if isinstance(page, Path):
        result["report"] = str(page)
        files.append(page)
        # Only for who sits before the machine: a job of CI or a login from afar has no browser.
        if not quiet and _on_desktop():
            webbrowser.open(page.absolute().as_uri())
    return Outcome(f"\nDone in {seconds:.0f} seconds. The report: {page}", result, files)


# One page about all schedules, `auto` first; or why there is none.
def _page(report: demo.DemoReport) -> Path | str:
    try:
        return write_report(
            [done.folder for done in report.schedules],
            out=report.folder / "report.html",
            title=f"prefstage demo, seed {report.config.seed}",
        )
    except MissingDependencyError as error:
        return f"none; {' '.join(str(error).split())}"


# Whether a person sits before a display: a terminal, and no job of CI or of another host.
def _on_desktop() -> bool:
    if not sys.stdout.isatty() or any(os.environ.get(name) for name in ("CI", "SSH_CONNECTION")):
        return False
    return sys.platform in ("darwin", "win32") or any(
        os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY")
    )


class Teller:
    """Prints the demo's parts, wrapped to a readable width.

    Args:
        console: Where.
    """

    def __init__(self, console: Console) -> None:
        console.width = min(console.width, _WIDTH)
        self._console, self._pairs = console, 0

    def begin(self) -> None:
        """Say what this is about."""
        self._console.print("Which preference data does a language model need next?", style="bold")
        self._paragraph(
            'A model can learn from pairs of answers that others wrote ("off-policy"), or from '
            'pairs of its own answers, sampled and judged afresh ("on-policy"). As long as its own '
            "answers mostly lose against the others', the theory says that it learns more from "
            "theirs: the injection stage. Once its own mostly win, it learns more from its own: "
            "the fine-tuning stage. prefstage measures the stage and trains accordingly; here, in "
            "a small world whose truth a program knows."
        )

    def tell(self, part: demo.DemoPart) -> None:
        """Say what a part came to.

        Args:
            part: As soon as it is done.
        """
        match part:
            case demo.PoolMade():
                self._pool(part)
            case demo.PolicyTrained():
                self._section(
                    "2. A model to align",
                    f"A language model (Llama architecture, {part.parameters:,} parameters) has "
                    "learnt from the answers of two writers to other instructions: "
                    f"{' and '.join(teacher.name for teacher in demo.TEACHERS)}."
                    f"{' It was here from an earlier run.' if part.reused else ''} "
                    "Now it shall be aligned.",
                )
                self._section(
                    "3. Aligning it",
                    "prefstage align, schedule auto, two iterations. In each, the model answers "
                    "instructions twice, and the judge compares both answers with the two at hand, "
                    "until the interval that holds the share of won comparisons (the boundary "
                    "score) with 95% confidence leaves 0.5. Below 0.5 the iteration trains on the "
                    "pairs at hand, above it on pairs of the model's own answers. The grades are "
                    "of answers to instructions that nothing trained on.",
                )
            case demo.IterationDone():
                self._iteration(part)
            case demo.ScheduleDone(schedule=demo.AUTO):
                self._paragraph(
                    f"The truth is the boundary score over all {self._pairs:,} instructions, by "
                    "the program's grades; the loop was told nothing of it."
                )
                self._section(
                    "4. Beside fixed schedules",
                    "The same two iterations by schedules that do not look. Equal steps are "
                    "shared, so that what auto did as well is not done again.",
                )

    def conclude(self, report: demo.DemoReport) -> None:
        """Say what it all came to, whatever that is.

        Args:
            report: Everything that it came to.
        """
        table = Table(
            *(Column(t, no_wrap=True) for t in ("schedule", "iteration 1", "iteration 2")),
            *(Column(t, justify="right", no_wrap=True) for t in ("start", "after 1", "after 2")),
            box=box.SIMPLE_HEAD,
        )
        for done in report.schedules:
            table.add_row(
                done.schedule if done.schedule == demo.AUTO else "fixed",
                *done.data,
                *(f"{reward:.3f}" for reward in done.rewards),
            )
        self._console.print(table)
        self._paragraph(_ranked(report))
        self._paragraph(f"To the example its last model answers: {_answer(report.last)}.")
        self._paragraph(
            "One world is one draw: docs/demo.md has the mean and standard error over several, and "
            "--seed makes others."
        )
        self._section("5. Going on", "The first iteration of auto by hand, and the whole loop:")
        self._lines(
            f"      prefstage measure --policy {report.policy.folder} "
            f"--off-policy {report.pool.path} \\",
            f"          --judge {demo.JUDGE}",
            f"      prefstage align --resume --out {report.schedules[0].folder}",
        )

    def _pool(self, pool: demo.PoolMade) -> None:
        row, self._pairs = pool.example, pool.pairs
        self._section(
            "1. The preference data at hand",
            f"{pool.pairs:,} instructions in a small language, two answers each, by scripted "
            "writers who make mistakes. A program grades every answer from 0 to 1: right words in "
            "the right order, right marks, manners if asked for, no chatter. It is also the judge "
            "that says which of two answers is better. For example:",
        )
        self._example("instruction", row.prompt[-1]["content"])
        for text, source, score in zip(row.responses, row.sources, row.scores, strict=True):
            self._example(str(source), f"{text} (grade {score or 0:.2f})")
        grades = ", ".join(f"{name} {reward:.2f}" for name, reward in pool.rewards.items())
        self._paragraph(f"Mean grades of the writers: {grades}.")

    def _iteration(self, done: demo.IterationDone) -> None:
        stage, (low, high) = done.stage, done.stage.interval
        self._example(
            f"iteration {done.number}", f"to the example it answers: {_answer(done.truth)}"
        )
        for text in (
            f"boundary score {stage.boundary_score:.2f} ({low:.2f} to {high:.2f}, "
            f"{stage.judgments:,} judgments; in truth {done.truth.boundary_score:.2f}): "
            f"{stage.stage}",
            f"trained on {_STAGES[done.data]}: mean grade {done.before:.3f} -> {done.after:.3f}, "
            f"{done.win_rate:.0f}% of comparisons with its start won",
        ):
            self._paragraph(text, indent=19)

    def _section(self, title: str, text: str) -> None:
        self._console.print(f"\n{title}", style="bold", markup=False)
        self._paragraph(text)

    def _example(self, who: str, text: str) -> None:
        self._paragraph(f"{who + ':':<12} {text}", indent=6, hang=13)

    # Lines after the first stand `hang` columns further right.
    def _paragraph(self, text: str, *, indent: int = 3, hang: int = 0) -> None:
        first, later = " " * indent, " " * (indent + hang)
        self._lines(
            *wrap(text, self._console.width - 1, initial_indent=first, subsequent_indent=later)
        )

    def _lines(self, *lines: str) -> None:
        self._console.print("\n".join(lines), markup=False, soft_wrap=True)


def _answer(truth: demo.Truth) -> str:
    return f"{truth.answer or '(nothing)'} (grade {truth.grade:.2f})"


# What auto came to, beside the best and the worst of the fixed schedules.
def _ranked(report: demo.DemoReport) -> str:
    auto, *fixed = report.schedules
    best, *_, worst = sorted(fixed, key=lambda done: -done.rewards[-1])
    higher = sum(done.rewards[-1] > auto.rewards[-1] for done in fixed)
    which = f"{higher} of the {len(fixed)}" if higher else "none of the"
    return (
        f"{_CROSSINGS[report.crossing]} auto went {' -> '.join(auto.data)} and took the mean "
        f"grade from {auto.rewards[0]:.3f} to {auto.rewards[-1]:.3f}; {which} fixed schedules "
        f"ended higher. The fixed ones ended "
        f"between {worst.rewards[-1]:.3f} ({' -> '.join(worst.data)}) and "
        f"{best.rewards[-1]:.3f} ({' -> '.join(best.data)})."
    )
