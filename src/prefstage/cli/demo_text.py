"""What the demo says, part by part, as it goes on."""

from collections.abc import Iterable
from textwrap import wrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from prefstage.sandbox.demo import (
        Answer,
        DemoPart,
        DemoReport,
        IterationDone,
        PolicyTrained,
        PoolMade,
        ScheduleDone,
    )

_WIDTH = 96  # longer lines are hard to read

_TITLE = "Which preference data does a language model need next?"
_BEGINNING = (
    'A model can learn from pairs of answers that others wrote ("off-policy"), or from pairs '
    'of its own answers, sampled and judged afresh ("on-policy"). As long as its own answers '
    "mostly lose against the others', the theory says that it learns more from theirs: the "
    "injection stage. Once its own mostly win, it learns more from its own: the fine-tuning "
    "stage. prefstage measures the stage and trains accordingly; here, in a small world whose "
    "truth a program knows."
)
_POOL = (
    "{pairs:,} instructions in a small language, two answers each, by scripted writers who "
    "make mistakes. A program grades every answer from 0 to 1: right words in the right order, "
    "right marks, manners if asked for, no chatter. It is also the judge that says which of "
    "two answers is better. For example:"
)
_POLICY = (
    "A language model (Llama architecture, {parameters:,} parameters) has learnt from the "
    "answers of two writers to other instructions: {teachers}.{reused} Now it shall be aligned."
)
_LOOP = (
    "prefstage align, schedule auto, two iterations. In each, the model answers instructions "
    "twice, and the judge compares both answers with the two at hand, until the interval that "
    "holds the share of won comparisons (the boundary score) with 95% confidence leaves 0.5. "
    "Below 0.5 the iteration trains on the pairs at hand, above it on pairs of the model's own "
    "answers. The grades are of answers to instructions that nothing trained on."
)
_TRUTH = (
    "The truth is the boundary score over all {pairs:,} instructions, by the program's grades; "
    "the loop was told nothing of it."
)
_FIXED = (
    "The same two iterations by schedules that do not look. Equal steps are shared, so that "
    "what auto did as well is not done again."
)
_ONE = (
    "One world is one draw: docs/demo.md has the mean and standard error over several, and "
    "--seed makes others."
)
_STAGES = {"off": "the pairs at hand (off)", "on": "pairs of its own (on)"}


class Teller:
    """Prints the demo's parts, wrapped to a readable width.

    Args:
        console: Where.
    """

    def __init__(self, console: "Console") -> None:
        console.width = min(console.width, _WIDTH)
        self._console = console
        self._schedules = 0

    def begin(self) -> None:
        """Say what this is about."""
        self._console.print(_TITLE, style="bold")
        self._paragraph(_BEGINNING)

    def tell(self, part: "DemoPart") -> None:
        """Say what a part came to.

        Args:
            part: As soon as it is done.
        """
        from prefstage.sandbox.demo import IterationDone, PolicyTrained, PoolMade

        if isinstance(part, PoolMade):
            self._pool(part)
        elif isinstance(part, PolicyTrained):
            self._policy(part)
        elif isinstance(part, IterationDone):
            self._iteration(part)
        else:
            self._schedule(part)

    def conclude(self, report: "DemoReport") -> None:
        """Say what it all came to, whatever that is.

        Args:
            report: Everything that it came to.
        """
        self._console.print(fixed_table(report))
        self._paragraph(_ranked(report))
        self._paragraph(f"To the example its last model answers: {_answer(report.last)}.")
        self._paragraph(_ONE)
        self._section("5. Going on", "The first iteration of auto by hand, and the whole loop:")
        start = report.policy.folder
        lines = [
            f"prefstage measure --policy {start} --off-policy {report.pool.path} \\",
            "    --judge python:prefstage.sandbox:true_preference",
            f"prefstage align --resume --out {report.schedules[0].folder}",
        ]
        self._lines("      " + line for line in lines)

    def _pool(self, pool: "PoolMade") -> None:
        row = pool.example
        self._section("1. The preference data at hand", _POOL.format(pairs=pool.pairs))
        self._example("instruction", row.prompt[-1]["content"])
        for text, source, score in zip(row.responses, row.sources, row.scores, strict=True):
            self._example(str(source), f"{text} (grade {score or 0:.2f})")
        ranked = ", ".join(f"{name} {reward:.2f}" for name, reward in pool.rewards.items())
        self._paragraph(f"Mean grades of the writers: {ranked}.")
        self._pairs = pool.pairs

    def _policy(self, policy: "PolicyTrained") -> None:
        text = _POLICY.format(
            parameters=policy.parameters,
            teachers=" and ".join(policy.teachers),
            reused=" It was here from an earlier run." if policy.reused else "",
        )
        self._section("2. A model to align", text)
        self._section("3. Aligning it", _LOOP)

    def _iteration(self, done: "IterationDone") -> None:
        stage, (low, high) = done.stage, done.stage.interval
        self._example(
            f"iteration {done.number}", f"to the example it answers: {_answer(done.answer)}"
        )
        self._detail(
            f"boundary score {stage.boundary_score:.2f} ({low:.2f} to {high:.2f}, "
            f"{stage.judgments:,} judgments; in truth {done.truth.boundary_score:.2f}): "
            f"{stage.stage}"
        )
        self._detail(
            f"trained on {_STAGES[done.data]}: mean grade {done.before:.3f} -> {done.after:.3f}, "
            f"{done.win_rate:.0f}% of comparisons with its start won"
        )

    def _schedule(self, done: "ScheduleDone") -> None:
        self._schedules += 1
        if self._schedules == 1:
            self._paragraph(_TRUTH.format(pairs=self._pairs))
            self._section("4. Beside fixed schedules", _FIXED)

    def _section(self, title: str, text: str) -> None:
        self._console.print(f"\n{title}", style="bold", markup=False)
        self._paragraph(text)

    def _example(self, who: str, text: str) -> None:
        self._paragraph(f"{who + ':':<12} {text}", indent=6, hang=13)

    def _detail(self, text: str) -> None:
        self._paragraph(text, indent=19)

    def _paragraph(self, text: str, *, indent: int = 3, hang: int = 0) -> None:
        """Print wrapped text; lines after the first stand `hang` columns further right."""
        first, later = " " * indent, " " * (indent + hang)
        self._lines(
            wrap(text, self._console.width - 1, initial_indent=first, subsequent_indent=later)
        )

    def _lines(self, lines: Iterable[str]) -> None:
        self._console.print("\n".join(lines), markup=False, soft_wrap=True)


def fixed_table(report: "DemoReport") -> "Table":
    """The schedules and the true rewards along them.

    Args:
        report: Everything that it came to.

    Returns:
        A table of rich.
    """
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for title in ("schedule", "iteration 1", "iteration 2"):
        table.add_column(title, no_wrap=True)
    for title in ("start", "after 1", "after 2"):
        table.add_column(title, justify="right", no_wrap=True)
    for number, row in enumerate(report.schedules):
        name = "fixed" if number else row.schedule
        table.add_row(name, *row.data, *(f"{reward:.3f}" for reward in row.rewards))
    return table


def _answer(answer: "Answer") -> str:
    return f"{answer.text or '(nothing)'} (grade {answer.grade:.2f})"


def _ranked(report: "DemoReport") -> str:
    """What auto came to, beside the best and the worst of the fixed schedules."""
    auto, *fixed = report.schedules
    ranked = sorted(fixed, key=lambda row: -row.rewards[-1])
    best, worst = ranked[0], ranked[-1]
    crossing = {
        "crossed": "The boundary was crossed: from injection to fine-tuning.",
        "not crossed": "The boundary was not crossed in this world.",
        "beyond from the start": "The model was in the fine-tuning stage from the start.",
    }[report.crossing]
    better = sum(row.rewards[-1] > auto.rewards[-1] for row in fixed)
    rank = (
        "none of the fixed schedules ended higher"
        if not better
        else (f"{better} of the {len(fixed)} fixed schedules ended higher")
    )
    return (
        f"{crossing} auto went {' -> '.join(auto.data)} and took the mean grade from "
        f"{auto.rewards[0]:.3f} to {auto.rewards[-1]:.3f}; {rank}. The fixed ones ended "
        f"between {worst.rewards[-1]:.3f} ({' -> '.join(worst.data)}) and "
        f"{best.rewards[-1]:.3f} ({' -> '.join(best.data)})."
    )
