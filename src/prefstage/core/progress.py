"""Progress on a terminal, silence in a pipe."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from prefstage.core.foreign import printable


class Ticker(Protocol):
    """Advances one progress bar."""

    def __call__(self, steps: int = 1, *, note: str = "") -> None:
        """Advance by `steps`; `note` replaces the text after the bar."""


_DISPLAY: ContextVar[Progress | None] = ContextVar("display", default=None)


def bars(console: Console, *, disable: bool = False) -> Progress:
    """Bars as all commands show them; they vanish when they are done.

    Args:
        console: Where.
        disable: Show nothing.

    Returns:
        The display, not yet shown.
    """
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        disable=disable,
        transient=True,
    )


@contextmanager
def gathered(display: Progress | None) -> Iterator[None]:
    """Put every bar that opens while the block runs into one display, which its owner shows.

    Args:
        display: From `bars`; None: each bar by itself.

    Yields:
        Nothing.
    """
    token = _DISPLAY.set(display)
    try:
        yield
    finally:
        _DISPLAY.reset(token)


@contextmanager
def progress(label: str, total: int | None, *, enabled: bool | None = None) -> Iterator[Ticker]:
    """Show one progress bar on standard error, or in a gathering display, while the block runs.

    Args:
        label: What is going on, a few words.
        total: Number of steps, or None if unknown.
        enabled: None shows the bar only if standard error is a terminal.

    Yields:
        A function that advances the bar.
    """
    gathering = display = _DISPLAY.get()
    with ExitStack() as stack:
        if display is None or enabled is False:
            shown = sys.stderr.isatty() if enabled is None else enabled
            display = stack.enter_context(
                bars(Console(stderr=True, force_terminal=shown or None), disable=not shown)
            )
            stack.enter_context(gathered(display if shown else None))
        task = display.add_task(escape(printable(label)), total=total, note="")
        if display is gathering:
            stack.callback(display.remove_task, task)

        def tick(steps: int = 1, *, note: str = "") -> None:
            display.update(task, advance=steps, note=escape(printable(note)))

        yield tick
