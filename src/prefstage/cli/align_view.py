"""What `prefstage align` shows on a terminal: its steps as they end, and the one under way."""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import Progress
from rich.spinner import Spinner
from rich.text import Text

from prefstage.aligning import Step, StepRecord
from prefstage.aligning.runs import bought
from prefstage.core import bars, gathered, printable

_MINUTE_S = 60
_HEAD = (
    f"{'iteration':<11}{'step':<24}{'':<8}{'time':>10}{'judgments':>12}{'answers':>10}"
    f"{'tokens':>12}"
)


class StepsView:
    """The steps of one call: a line for each that has ended, and the one under way below.

    Args:
        display: The bars of what the step under way does.
        console: Where lines go.
    """

    def __init__(self, display: Progress, console: Console) -> None:
        self._display, self._console = display, console
        self._began, self._costs = time.monotonic(), Counter[str]()
        self._under_way: tuple[str, int, float] | None = None
        self._spinner, self._has_head = Spinner("dots"), False

    def begun(self, step: Step, iteration: int) -> None:
        """A step begins.

        Args:
            step: The step.
            iteration: Its iteration.
        """
        self._under_way = (step.name, iteration, time.monotonic())

    def tell(self, record: StepRecord) -> None:
        """A step has ended, or is reused.

        Args:
            record: What became of it.
        """
        if not self._has_head:
            self._console.print(_HEAD, style="bold", highlight=False)
        self._has_head, self._under_way = True, None
        self._costs.update(record.costs)
        line = f"{record.iteration:<11}{record.step:<24}{record.did:<8}"
        if record.did != "reused":
            costs = Counter(record.costs)
            counts = (
                costs["judgments"] + costs["judge_replies"],
                costs["answers"],
                costs["response_tokens"],
            )
            first, second, third = (f"{count:,}" if count else "-" for count in counts)
            line += f"{clock(record.seconds):>10}{first:>12}{second:>10}{third:>12}"
        self._line(line, style="dim" if record.did == "reused" else "")
        if record.why:
            self._line(f"{'':<11}remade: {record.why}", style="yellow")

    def _line(self, text: str, *, style: str) -> None:
        self._console.print(printable(text), style=style, markup=False, highlight=False)

    def __rich__(self) -> RenderableType:
        """The lower part: the step under way, its bar, and what the steps above have cost."""
        lines: list[RenderableType] = []
        if self._under_way is not None:
            name, iteration, began = self._under_way
            took = clock(time.monotonic() - began)
            self._spinner.update(text=Text(f"{name} (iteration {iteration}), {took}"))
            lines.append(self._spinner)
        if self._display.tasks:
            lines.append(self._display.get_renderable())
        took = clock(time.monotonic() - self._began)
        return Group(*lines, Text(f"so far {took}; these steps have cost {bought(self._costs)}"))


@contextmanager
def shown_steps(console: Console | None = None) -> Iterator[StepsView]:
    """Show an alignment's steps while the block runs.

    Args:
        console: Where; None: standard error.

    Yields:
        Takes the steps.
    """
    console = console or Console(stderr=True)
    display = bars(console)
    view = StepsView(display, console)
    with (
        gathered(display),
        Live(get_renderable=lambda: view, console=console, transient=True, refresh_per_second=4),
    ):
        yield view


def clock(seconds: float) -> str:
    """A time as people read it.

    Args:
        seconds: >= 0.

    Returns:
        "4.2 s" below a minute, then "12:03", then "1:02:03".
    """
    if round(seconds, 1) < _MINUTE_S:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), _MINUTE_S)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
