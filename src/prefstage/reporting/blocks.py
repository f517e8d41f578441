"""What a page is made of: sections with tables, charts and notes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
    notes: tuple[str, ...] = ()


def tables(caption: str, head: Sequence[str], rows: Sequence[Sequence[Cell]]) -> tuple[Table, ...]:
    """Make a table, if there is anything to put into it.

    Args:
        caption: What it holds.
        head: Column headings.
        rows: Cells; None shows a dash.

    Returns:
        The table, its cells as text; nothing if there are no rows.
    """
    return (Table(caption, tuple(head), tuple(tuple(map(shown, r)) for r in rows)),) if rows else ()


def markdown_table(text: str, caption: str) -> tuple[tuple[Table, ...], list[str]]:
    """Part a Markdown text into its table and the lines around it.

    Args:
        text: One table, and other lines.
        caption: The table's.

    Returns:
        The table, if there is one, and the other lines that are not empty.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    cells = [[c.strip() for c in line.strip("|").split(" | ")] for line in lines if line[0] == "|"]
    rows = [row for row in cells if not set("".join(row)) <= {"-", "|"}]
    return tables(caption, rows[0] if rows else (), rows[1:]), [x for x in lines if x[0] != "|"]


def shown(value: Cell) -> str:
    """A cell as text: counts with separators, other numbers to four digits."""
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    if isinstance(value, int) or abs(value) >= _LARGE:
        return f"{value:,.0f}"
    return f"{value:.2e}" if value and abs(value) < _SMALL else f"{value:.4g}"


def percent(value: float | None, digits: int = 1) -> str:
    """A share in [0, 1] in percent."""
    return "–" if value is None else f"{100 * value:.{digits}f} %"


def between(interval: Sequence[float] | None, digits: int = 2) -> str:
    """An interval."""
    return "–" if interval is None else f"[{interval[0]:.{digits}f}, {interval[1]:.{digits}f}]"
