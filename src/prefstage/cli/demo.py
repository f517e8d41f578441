"""`prefstage demo`: a world whose truth is known, and an alignment in it by stages."""

import os
import sys
import time
import webbrowser
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from prefstage.cli.options import Command
from prefstage.core.outcome import Outcome

if TYPE_CHECKING:
    from prefstage.cli.settings import DemoSettings
    from prefstage.sandbox.demo import DemoReport


@partial(
    Command,
    settings="cli.settings:DemoSettings",
    out="Folder for everything the demo makes.",
    out_default=Path("demo"),
    talks=True,
)
def demo(settings: "DemoSettings", *, out: Path, quiet: bool) -> Outcome:
    """Align a tiny model in a small world whose truth is known, in a few minutes.

    Two iterations of sampling, judging, measuring, choosing, building, training and evaluating,
    each with the data that the measured stage asks for; and the same by four fixed schedules.
    Nothing is downloaded. The same command again uses what is in the folder.
    """
    from rich.console import Console
    from transformers.utils.logging import disable_progress_bar

    from prefstage.cli.demo_text import Teller
    from prefstage.sandbox.demo import DemoConfig, run_demo

    # Bars of loading and saving weights, dozens in one demo, would tear the text apart.
    disable_progress_bar()
    started = time.monotonic()
    teller = Teller(Console(quiet=quiet, highlight=False))
    teller.begin()
    report = run_demo(out, config=DemoConfig(seed=settings.seed), tell=teller.tell)
    page = _page(report)
    seconds = time.monotonic() - started
    teller.conclude(report)
    result = {**report.as_dict(), "seconds": round(seconds, 1)}
    result["report"] = str(page) if isinstance(page, Path) else None
    files = [
        report.pool.path,
        report.policy.folder,
        *(schedule.folder / "align.json" for schedule in report.schedules),
        report.folder / "demo.json",
    ]
    # Only for who sits before the machine: a job of CI or a login from afar has no browser.
    if isinstance(page, Path):
        files.append(page)
        if not quiet and _on_desktop():
            webbrowser.open(page.absolute().as_uri())
    return Outcome(f"\nDone in {seconds:.0f} seconds. The report: {page}", result, files)


def _page(report: "DemoReport") -> Path | str:
    """One page about all schedules, `auto` first; or why there is none."""
    from prefstage.core.errors import MissingDependencyError
    from prefstage.reporting import write_report

    try:
        return write_report(
            [schedule.folder for schedule in report.schedules],
            out=report.folder / "report.html",
            title=f"prefstage demo, seed {report.config.seed}",
        )
    except MissingDependencyError as error:
        return f"none; {' '.join(str(error).split())}"


def _on_desktop() -> bool:
    """Whether a person sits before a display: a terminal, and no job of CI or of another host."""
    if not sys.stdout.isatty() or any(os.environ.get(name) for name in ("CI", "SSH_CONNECTION")):
        return False
    if sys.platform in ("darwin", "win32"):
        return True
    return any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))
