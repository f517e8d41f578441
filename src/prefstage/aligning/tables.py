"""Tables of figures as Markdown, LaTeX and CSV."""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev

_ABSENT = "-"
_LATEX = {
    **{mark: f"\\{mark}" for mark in "&%$#_{}"},
    **{"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}"},
    **{"±": r"$\pm$", "∞": r"$\infty$", "Δ": r"$\Delta$", "×": r"$\times$", "≤": r"$\leq$"},
    **{"→": r"$\rightarrow$", "γ": r"$\gamma$", "β": r"$\beta$", "ρ": r"$\rho$"},
}


@dataclass(frozen=True)
class Figure:
    """A mean over repeats.

    Attributes:
        mean: The mean.
        error: Its standard error; None of a single repeat.
        gain: What it is above the row that it is compared with.
        digits: Shown behind the point.
    """

    mean: float
    error: float | None = None
    gain: float | None = None
    digits: int = 2

    def __str__(self) -> str:
        """As in a table: mean ± s.e. (gain)."""
        text = f"{self.mean:.{self.digits}f}"
        if self.error is not None:
            text += f" ± {self.error:.{self.digits}f}"
        return text if self.gain is None else f"{text} ({self.gain:+.{self.digits}f})"


Entry = str | Figure | None


@dataclass(frozen=True)
class Table:
    """A table, in blocks.

    Attributes:
        title: Its caption.
        head: Of the columns.
        blocks: Heading of each block (empty: none) and its rows.
    """

    title: str
    head: tuple[str, ...]
    blocks: tuple[tuple[str, tuple[tuple[Entry, ...], ...]], ...]


def figure(values: Sequence[float], *, gain: float | None = None, digits: int = 2) -> Figure:
    """Summarise repeats.

    Args:
        values: One of each repeat, at least one.
        gain: As of `Figure`.
        digits: As of `Figure`.

    Returns:
        Mean and standard error (standard deviation, ddof 1, by √n).
    """
    error = stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return Figure(mean(values), error, gain, digits)


def markdown(table: Table) -> str:
    """The table as Markdown.

    Args:
        table: The table.

    Returns:
        Text that ends in a newline.
    """
    lines = [f"**{table.title}**", ""] if table.title else []
    lines += [_row(table.head), "|" + "---|" * len(table.head)]
    for heading, rows in table.blocks:
        if heading:
            lines.append(_row([f"**{_pipe(heading)}**", *[""] * (len(table.head) - 1)]))
        lines += [_row([_pipe(_text(entry)) for entry in row]) for row in rows]
    return "\n".join(lines) + "\n"


def latex(table: Table) -> str:
    """The table as LaTeX, with the rules of the package booktabs.

    Args:
        table: The table.

    Returns:
        A table environment, text that ends in a newline.
    """
    count = len(table.head)
    body = [_latex_row(table.head), r"\midrule"]
    for place, (heading, rows) in enumerate(table.blocks):
        if place:
            body.append(r"\midrule")
        if heading:
            body.append(rf"\multicolumn{{{count}}}{{c}}{{\textbf{{{_escape(heading)}}}}} \\")
        body += [_latex_row([_text(entry) for entry in row]) for row in rows]
    lines = [r"\begin{table}", r"\centering", rf"\begin{{tabular}}{{{'l' * count}}}", r"\toprule"]
    lines += [*body, r"\bottomrule", r"\end{tabular}"]
    lines += [rf"\caption{{{_escape(table.title)}}}"] if table.title else []
    return "\n".join([*lines, r"\end{table}"]) + "\n"


def comma_separated(table: Table) -> str:
    """The table as CSV: of each figure the mean, its standard error and its gain.

    Args:
        table: The table.

    Returns:
        CSV text, numbers unrounded.
    """
    rows = [(heading, row) for heading, rows in table.blocks for row in rows]
    numbers = [
        any(isinstance(row[place], Figure) for _, row in rows) for place in range(len(table.head))
    ]
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    head = ["block"]
    for name, number in zip(table.head, numbers, strict=True):
        head += [name, f"{name} s.e.", f"{name} gain"] if number else [name]
    writer.writerow(head)
    for heading, row in rows:
        line: list[object] = [heading]
        for entry, number in zip(row, numbers, strict=True):
            line += _parts(entry) if number else [_text(entry)]
        writer.writerow(line)
    return stream.getvalue()


def _parts(entry: Entry) -> list[object]:
    if isinstance(entry, Figure):
        return [entry.mean, entry.error, entry.gain]
    return [entry or "", "", ""]


def _text(entry: Entry) -> str:
    return _ABSENT if entry is None else str(entry)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _pipe(text: str) -> str:
    return text.replace("|", "\\|")


def _latex_row(cells: Sequence[str]) -> str:
    return " & ".join(map(_escape, cells)) + r" \\"


def _escape(text: str) -> str:
    return "".join(_LATEX.get(mark, mark) for mark in text)
