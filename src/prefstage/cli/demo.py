"""What `prefstage demo` shows, part by part, as it goes on; and the page at its end."""

import os
import sys
import time
import webbrowser
from pathlib import Path
from textwrap import fill, wrap

from rich import box
from rich.console import Console
from rich.table import Column, Table

from prefstage.aligning import Advised
from prefstage.aligning.advice import advice_rows
from prefstage.core import MissingDependencyError, Outcome, printable
from prefstage.reporting import write_report
from prefstage.sandbox import demo, true_reward

_WIDTH, _CELL = 96, 18  # longer lines are hard to read; wider heads would break the cells
_LEFT_OUT = slice(2, 4)  # columns of advice's table: cosine and agreement
_DATA = {"off": "the pairs at hand (off)", "on": "pairs of its own (on)"}


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
        report.folder / "runs" / "advise" / "advise.json",
        report.folder / "runs" / "align" / "align.json",
        report.folder / "demo.json",
    ]
    if isinstance(page, Path):
        result["report"] = str(page)
        files.append(page)
        # Only for who sits before the machine: a job of CI or a login from afar has no browser.
        if not quiet and _on_desktop():
            webbrowser.open(page.absolute().as_uri())
    return Outcome(f"\nDone in {seconds:.0f} seconds. The report: {page}", result, files)


# One page about advice, the alignment and the full trainings; or why there is none.
def _page(report: demo.DemoReport) -> Path | str:
    runs = report.folder / "runs"
    try:
        return write_report(
            [runs / name.replace(": ", "-") for name in ("advise", "align", *demo.CANDIDATES)],
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
            'A model can learn from pairs of answers that others wrote ("off-policy"), from pairs '
            'of its own answers, sampled and judged afresh ("on-policy"), or from a mixture. '
            "prefstage advise says which, at three depths: by who wins now (stage), by gradients "
            "(forecast), by short trainings (pilot). Here it does so in a small world whose truth "
            "a program knows, so that you see whether the advice was right."
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
                    "3. Advice: which data next?",
                    "prefstage advise, three times in one folder, deeper each time. To choose "
                    "from: the pairs at hand (off); pairs of the model's own answers, the best and "
                    "the worst of four (on); the pairs at hand, half of them with the best of the "
                    "model's own answers in (mix: 0.5).",
                )
            case Advised():
                self._lines("")
                first, *notes = (x for x in part.summary.splitlines() if x and x[0] != "|")
                self._example(part.result["depth"], first)
                for note in notes:
                    self._paragraph(note, indent=19)
            case demo.AdviceChecked():
                self._checked(part)
            case demo.IterationDone():
                self._iteration(part)

    def conclude(self, report: demo.DemoReport) -> None:
        """Say what it all came to, whatever that is.

        Args:
            report: Everything that it came to.
        """
        prompt = report.pool.example.prompt
        before, after = (
            f"{text or '(nothing)'} (grade {true_reward(prompt, text):.2f})"
            for text in report.answers
        )
        self._paragraph("To the example above it answers")
        self._example("at first", before)
        self._example("at the end", after)
        self._paragraph("One world is one draw: docs/demo.md has several, and --seed makes others.")
        self._section("6. Going on", "The advice, the boundary score, and the alignment again:")
        runs = report.folder / "runs"
        self._lines(
            f"      prefstage advise {runs / 'advise' / 'config.yaml'} --out {runs / 'advise'}",
            f"      prefstage measure --policy {report.policy.folder} "
            f"--off-policy {report.pool.path} \\",
            f"          --judge {demo.JUDGE}",
            f"      prefstage align --resume --out {runs / 'align'}",
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

    def _checked(self, part: demo.AdviceChecked) -> None:
        truth = part.truth
        best = next(iter(truth))
        self._section(
            "4. Was it right?",
            "Now the model is trained in full on all of them, and the program grades its answers "
            f"to {len(part.gains[best]):,} instructions that nothing trained on, before and after. "
            "Advice knew none of this.",
        )
        head, rows = advice_rows(part.advice[-1].result)
        del head[_LEFT_OUT]
        columns = (
            Column(fill(title, _CELL), justify="right") for title in ("true gain", *head[1:])
        )
        table = Table(head[0], *columns, box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
        by_name = {name: cells for name, *cells in rows}
        for name, gain in truth.items():
            del by_name[name][_LEFT_OUT.start - 1 : _LEFT_OUT.stop - 1]
            table.add_row(name, str(gain), *by_name[name])
        self._console.print(table)
        for advised in part.advice:
            behind = str(part.behind[advised.result["depth"]]).removeprefix("+")
            how = "the best" if advised.choice == best else f"{behind} behind {best}"
            self._example(advised.result["depth"], f"named {advised.choice}, {how}")
        self._paragraph(
            "The stage chooses between off and on alone. Intervals are of 95 % over instructions. "
            "One training each: another seed would give other gains, and candidates that are "
            "close may change places."
        )
        self._section(
            "5. Aligning it, by stages",
            "The paper's own rule looks at the stage alone, again and again: prefstage align, "
            "schedule auto, two iterations. In each, the model answers instructions twice, and the "
            "judge compares both answers with the two at hand, until the interval that holds the "
            "share of won comparisons (the boundary score) with 95% confidence leaves 0.5. Below "
            "0.5 the iteration trains on the pairs at hand, above it on pairs of its own. In truth "
            f"is that share over all {self._pairs:,} instructions, by the program's grades.",
        )

    def _iteration(self, done: demo.IterationDone) -> None:
        row, stage = done.row, done.row["stage"]
        low, high = stage["interval"]
        self._example(
            f"iteration {row['iteration']}",
            f"boundary score {stage['boundary_score']:.2f} ({low:.2f} to {high:.2f}, "
            f"{stage['judgments']:,} judgments; in truth {done.boundary:.2f}): "
            f"{stage['stage']}",
        )
        self._paragraph(
            f"trained on {_DATA[row['data']]}: mean grade {done.before:.3f} -> {done.after:.3f}, "
            f"{row['evaluation']['win_rate']:.0f}% of comparisons with its start won",
            indent=19,
        )

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
        self._console.print(printable("\n".join(lines)), markup=False, soft_wrap=True)
