"""Progress on a terminal, silence in a pipe."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class Ticker(Protocol):
    """Advances one progress bar."""

    def __call__(self, steps: int = 1, *, note: str = "") -> None:
        """Advance by `steps`; `note` replaces the text after the bar."""


@contextmanager
def progress(label: str, total: int | None, *, enabled: bool | None = None) -> Iterator[Ticker]:
    """Show one progress bar on standard error while the block runs.

    Args:
        label: What is going on, a few words.
        total: Number of steps, or None if unknown.
        enabled: None shows the bar only if standard error is a terminal.

    Yields:
        A function that advances the bar.
    """
    shown = sys.stderr.isatty() if enabled is None else enabled
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    console = Console(stderr=True, force_terminal=shown or None)
    with Progress(*columns, console=console, disable=not shown, transient=True) as bar:
        task = bar.add_task(label, total=total, note="")

        def tick(steps: int = 1, *, note: str = "") -> None:
            bar.update(task, advance=steps, note=note)

        yield tick
