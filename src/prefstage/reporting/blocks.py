"""What a page is made of: sections with tables, charts and notes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Cell = str | float | int | None
_LARGE, _SMALL = 1000.0, 0.001


@dataclass(frozen=True)
class Table:
    """A table of figures.

    Attributes:
        caption: What it holds.
        head: Column headings.
        rows: Cells as text; numbers are aligned to the right.
    """

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Chart:
    """A chart, and its figures as a table.

    Attributes:
        name: Of its file, and its anchor.
        title: Heading.
        alt: What it shows, in words.
        spec: Vega-Lite, without size of the page and colours: those begin with "@".
        table: The figures.
    """

    name: str
    title: str
    alt: str
    spec: Mapping[str, Any]
    table: Table


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        name: Its anchor.
        title: Heading.
        text: What to read from it, a sentence or two.
        charts: Its charts.
        tables: Its tables.
        notes: Statements under them.
    """

    name: str
    title: str
    text: str = ""
    charts: tuple[Chart, ...] = ()
    tables: tuple[Table, ...] = ()
    notes: tuple[str, ...] = field(default=())


def table_of(caption: str, head: Sequence[str], rows: Sequence[Sequence[Cell]]) -> Table:
    """Make a table.

    Args:
        caption: What it holds.
        head: Column headings.
        rows: Cells; None shows a dash.

    Returns:
        The table, its cells as text.
    """
    return Table(caption, tuple(head), tuple(tuple(map(shown, row)) for row in rows))


def shown(value: Cell) -> str:
    """A cell as text: counts with separators, other numbers to four digits."""
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return f"{value:,}"
    if value and not _SMALL <= abs(value) < _LARGE:
        return f"{value:,.0f}" if abs(value) >= _LARGE else f"{value:.2e}"
    return f"{value:.4g}"


def percent(value: float | None, digits: int = 1) -> str:
    """A share in [0, 1] in percent."""
    return "–" if value is None else f"{100 * value:.{digits}f} %"


def between(interval: Sequence[float] | None, digits: int = 2) -> str:
    """An interval."""
    return "–" if interval is None else f"[{interval[0]:.{digits}f}, {interval[1]:.{digits}f}]"


def chart_values(table: Sequence[Mapping[str, Any]], head: Mapping[str, str]) -> Table:
    """The values of a chart as a table.

    Args:
        table: A row a mark.
        head: Heading of each field that is shown.

    Returns:
        The table.
    """
    rows = [[row.get(name) for name in head] for row in table]
    return table_of("The chart's figures", list(head.values()), rows)
