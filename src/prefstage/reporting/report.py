"""`write_report`: runs in, one HTML page out."""

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from prefstage.core.files import atomic_path
from prefstage.reporting.figures import draw
from prefstage.reporting.page import Page, page_of
from prefstage.reporting.reading import read_runs

Paths = str | PathLike[str] | Sequence[str | PathLike[str]]


@dataclass(frozen=True)
class Report:
    """A page that was written.

    Attributes:
        page: What it holds.
        path: Where it stands.
        figures: The charts as files, if they were asked for.
    """

    page: Page
    path: Path
    figures: tuple[Path, ...]


def write_report(runs: Paths, *, out: str | PathLike[str], title: str | None = None) -> Path:
    """Write one self-contained HTML page about one run or several.

    The page needs no network and executes nothing that stands in data.

    Args:
        runs: Run folders of align, experiment, train, measure, build, evaluate or diagnose, or
            the file with the results in one.
        out: The page; made or replaced as a whole.
        title: Its heading; None for one from the runs' names.

    Returns:
        Where the page stands.

    Raises:
        InputError: If a run is missing or not done.
        DataError: If a file of a run cannot be read.
        MissingDependencyError: If the extra `report` is not installed.
    """
    return make_report(runs, out=Path(out), title=title).path


def make_report(
    runs: Paths, *, out: Path, title: str | None = None, figures: Path | None = None
) -> Report:
    """Write a page and, if asked for, its charts as files.

    Args:
        runs: As for `write_report`.
        out: The page.
        title: Its heading.
        figures: Folder for PNG and SVG of every chart; None: none.

    Returns:
        What was written.
    """
    paths = [runs] if isinstance(runs, str | PathLike) else list(runs)
    page = page_of(read_runs([Path(each) for each in paths]), title=title)
    with atomic_path(out) as temporary:
        temporary.write_text(page.html, encoding="utf-8")
    drawn = draw(page.charts, figures) if figures is not None else []
    return Report(page, out, tuple(drawn))
