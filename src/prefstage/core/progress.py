"""Progress on a terminal, silence in a pipe."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


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
    shown = sys.stderr.isatty() if enabled is None else enabled
    display = _DISPLAY.get()
    if display is not None and enabled is not False:
        task = display.add_task(label, total=total, note="")
        try:
            yield _ticker(display, task)
        finally:
            display.remove_task(task)
        return
    console = Console(stderr=True, force_terminal=shown or None)
    with bars(console, disable=not shown) as display, gathered(display if shown else None):
        yield _ticker(display, display.add_task(label, total=total, note=""))


def _ticker(display: Progress, task: TaskID) -> Ticker:
    def tick(steps: int = 1, *, note: str = "") -> None:
        display.update(task, advance=steps, note=note)

    return tick
