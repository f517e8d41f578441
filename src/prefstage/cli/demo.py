"""`prefstage demo`: a world whose truth is known, and an alignment in it by stages."""

import os
import sys
import time
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prefstage.cli.demo_text import Teller
from prefstage.cli.manners import Outcome, mannered, say

if TYPE_CHECKING:
    from prefstage.sandbox.demo_report import DemoReport


@mannered
def demo(
    *,
    seed: Annotated[int, typer.Option(min=0, help="Another seed makes another world.")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for everything the demo makes.")] = Path("demo"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
) -> None:
    """Align a tiny model in a small world whose truth is known, in two to three minutes.

    Two iterations of sampling, judging, measuring, choosing, building, training and evaluating,
    each with the data that the measured stage asks for; and the same by four fixed schedules.
    Nothing is downloaded. The same command again uses what is in the folder.
    """
    from rich.console import Console
    from transformers.utils.logging import disable_progress_bar

    from prefstage.sandbox.demo import run_demo
    from prefstage.sandbox.demo_report import DemoConfig

    disable_progress_bar()  # of loading and saving weights
    started = time.monotonic()
    teller = Teller(Console(quiet=as_json, highlight=False))
    teller.begin()
    report = run_demo(out, config=DemoConfig(seed=seed), tell=teller.tell)
    page = _page(report)
    seconds = time.monotonic() - started
    teller.conclude(report)
    result = {**report.as_dict(), "seconds": round(seconds, 1)}
    result["report"] = None if isinstance(page, str) else str(page)
    files = _files(report) + ([] if isinstance(page, str) else [page])
    said = f"\nDone in {seconds:.0f} seconds. The report: {page}"
    say(Outcome(said, result, files), as_json=as_json)
    if isinstance(page, Path) and not as_json and _on_desktop():
        webbrowser.open(page.absolute().as_uri())


def _page(report: "DemoReport") -> Path | str:
    """One page about all schedules, `auto` first; or why there is none."""
    from prefstage.core.errors import MissingDependencyError
    from prefstage.reporting import write_report

    try:
        return write_report(
            [each.folder for each in report.schedules],
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


def _files(report: "DemoReport") -> list[Path]:
    return [
        report.pool.path,
        report.policy.folder,
        *(each.folder / "align.json" for each in report.schedules),
        report.folder / "demo.json",
    ]
