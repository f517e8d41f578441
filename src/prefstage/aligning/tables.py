"""Tables of an experiment in the papers' form: Markdown, LaTeX and CSV."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from prefstage.aligning.agreement import Start
from prefstage.core.config import Config

BUILT_IN = (
    "win_rate",
    "length_controlled_win_rate",
    "avg_length",
    "boundary_score",
    "pairs",
    "avg_chosen",
    "avg_gap",
)
"""Figures of a policy that every alignment has; besides metrics, and ``training.NAME``."""
TRAINING = "training."
SCHEDULE, START = "schedule", "start"

_TITLES = {
    "win_rate": "Win Rate",
    "length_controlled_win_rate": "LC Win Rate",
    "avg_length": "Avg. Len",
    "boundary_score": "BS",
    "avg_chosen": "Avg.Chs",
    "avg_gap": "Avg.Diff",
}
_DIGITS = {"win_rate": 2, "length_controlled_win_rate": 2, "avg_length": 0, "pairs": 0}
_OTHER_DIGITS = 3
_LEAST_RATIO = 0.01
_LATEX = {
    **{mark: f"\\{mark}" for mark in "&%$#_{}"},
    **{"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}"},
    **{"±": r"$\pm$", "∞": r"$\infty$", "Δ": r"$\Delta$", "×": r"$\times$", "≤": r"$\leq$"},
    **{"→": r"$\rightarrow$", "γ": r"$\gamma$", "β": r"$\beta$", "ρ": r"$\rho$"},
}

Path = tuple[str, ...]
"""The data trained on, iteration by iteration."""
Repeat = tuple[str, ...]
Rows = Sequence[Mapping[str, Any]]
"""Finished cells, as in experiment.json."""
Policies = dict[Path, dict[Repeat, dict[str, float]]]
"""Figures of cells that differ in schedule and repeat alone, by path, repeat and name."""


class TableSettings(Config):
    """One table of results; means are over all axes that it does not name."""

    kind: Literal["stages", "results", "contrasts"] = Field(
        description="Full combination with Δ and BS; a row each; or pairs of rows compared."
    )
    title: str = Field(default="", description="Its caption.")
    by: list[str] = Field(default=[], description="Axes: a block for each of their values.")
    rows: list[str] = Field(default=[], description="Axes: a row for each of their values.")
    columns: list[str] = Field(min_length=1, description="Figures; gains are of the first.")
    parts: dict[str, list[list[str]]] = Field(
        default={}, description="Of contrasts: pairs of rows under each heading."
    )

    @model_validator(mode="after")
    def _fits_its_kind(self) -> Self:
        if (self.kind == "stages") == bool(self.rows):
            raise ValueError(
                f"rows is {self.rows} in a table of {self.kind}; expected none in stages, whose "
                "rows are the iterations, and axes elsewhere; change it"
            )
        if (self.kind == "contrasts") != bool(self.parts):
            raise ValueError(
                f"parts has {len(self.parts)} headings in a table of {self.kind}; expected pairs "
                "of rows in contrasts alone; change it"
            )
        return self


# --- Tables of figures --------------------------------------------------------------------------


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

    @classmethod
    def of(cls, values: Sequence[float], *, gain: float | None = None, digits: int = 2) -> Self:
        """Summarise repeats.

        Args:
            values: One of each repeat, at least one.
            gain: As of `Figure`.
            digits: As of `Figure`.

        Returns:
            Mean and standard error (standard deviation, ddof 1, by √n).
        """
        error = stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
        return cls(mean(values), error, gain, digits)

    def __str__(self) -> str:
        """As in a table: mean ± s.e. (gain)."""
        error = "" if self.error is None else f" ± {self.error:.{self.digits}f}"
        gain = "" if self.gain is None else f" ({self.gain:+.{self.digits}f})"
        return f"{self.mean:.{self.digits}f}{error}{gain}"


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


def markdown(table: Table) -> str:
    """The table as Markdown.

    Args:
        table: The table.

    Returns:
        Text that ends in a newline.
    """
    lines = [f"**{table.title}**", ""] if table.title else []
    lines += [f"| {' | '.join(table.head)} |", "|" + "---|" * len(table.head)]
    for heading, rows in table.blocks:
        headings = [(f"**{heading}**", *[""] * (len(table.head) - 1))] if heading else []
        for row in (*headings, *rows):
            cells = [_text(entry).replace("|", "\\|") for entry in row]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def latex(table: Table) -> str:
    """The table as LaTeX, with the rules of the package booktabs.

    Args:
        table: The table.

    Returns:
        A table environment, text that ends in a newline.
    """
    count = len(table.head)
    lines = [r"\begin{table}", r"\centering", rf"\begin{{tabular}}{{{'l' * count}}}", r"\toprule"]
    lines.append(_latex_row(table.head))
    for heading, rows in table.blocks:
        lines.append(r"\midrule")
        if heading:
            lines.append(rf"\multicolumn{{{count}}}{{c}}{{\textbf{{{_escape(heading)}}}}} \\")
        lines += map(_latex_row, rows)
    caption = [rf"\caption{{{_escape(table.title)}}}"] if table.title else []
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", *caption, r"\end{table}"]) + "\n"


def comma_separated(table: Table) -> str:
    """The table as CSV: of each figure the mean, its standard error and its gain.

    Args:
        table: The table.

    Returns:
        CSV text, numbers unrounded.
    """
    rows = [(heading, row) for heading, block in table.blocks for row in block]
    numeric = [
        any(isinstance(entry, Figure) for entry in column)
        for column in zip(*(row for _, row in rows), strict=True)
    ]
    numeric = numeric or [False] * len(table.head)
    head = ["block"]
    for name, is_numeric in zip(table.head, numeric, strict=True):
        head += [name, f"{name} s.e.", f"{name} gain"] if is_numeric else [name]
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(head)
    for heading, row in rows:
        line: list[object] = [heading]
        for entry, is_numeric in zip(row, numeric, strict=True):
            if isinstance(entry, Figure):
                line += [entry.mean, entry.error, entry.gain]
            else:
                line += [entry or "", "", ""] if is_numeric else [_text(entry)]
        writer.writerow(line)
    return stream.getvalue()


def _text(entry: Entry) -> str:
    return "-" if entry is None else str(entry)


def _latex_row(row: Sequence[Entry]) -> str:
    return " & ".join(_escape(_text(entry)) for entry in row) + r" \\"


def _escape(text: str) -> str:
    return "".join(_LATEX.get(mark, mark) for mark in text)


# --- The papers' tables -------------------------------------------------------------------------


def build_table(settings: TableSettings, rows: Rows) -> Table:
    """Build a table.

    Args:
        settings: Its kind and columns.
        rows: The finished cells.

    Returns:
        The table; what no cell has is absent from it.

    Source:
        Sun et al. 2025, arXiv:2508.10530, Tables 1, 3, 4, 8 (stages); Pan et al. 2025,
        arXiv:2508.18312, Tables 1, 2, 4 (results) and 3 (contrasts).
    """
    build = {"stages": _stage_table, "results": _result_table, "contrasts": _contrast_table}
    head, parts = build[settings.kind](settings, rows)
    return Table(settings.title, tuple(head), tuple((h, tuple(lines)) for h, lines in parts))


Parts = tuple[Sequence[str], list[tuple[str, list[tuple[Entry, ...]]]]]


def _stage_table(settings: TableSettings, rows: Rows) -> Parts:
    blocks, first = _blocks(settings.by, rows), settings.columns[0]
    deepest = max([1, *(len(path) for policies in blocks.values() for path in policies)])
    parts = []
    for heading, policies in blocks.items():
        lines, shown = list[tuple[Entry, ...]](), set[Path]()
        for path in sorted(policies, key=lambda path: (len(path), path)):
            gains = [*_gains(policies, path, first).values()] if path else []
            cells: list[Entry] = [f"PC_{data}" for data in path]
            cells += ["-"] * (deepest - len(path))
            for name in settings.columns:
                gain = mean(gains) if gains and name == first else None
                cells.append(_entry([*_values(policies, path, name).values()], name, gain))
            # A start stands in the first row that leads on from it.
            start = None
            if path and path[:-1] not in shown:
                shown.add(path[:-1])
                start = _mean_start("", policies, path[:-1], first)
            score = None if start is None else Figure(start.boundary_score)
            lines.append((*cells, score, _ratio_text(start)))
        parts.append((heading, lines))
    return [
        *[f"Iter-{number + 1}" for number in range(deepest)],
        *map(_title, settings.columns),
        "BS (initial)",
        "Δ(×)",
    ], parts


def _result_table(settings: TableSettings, rows: Rows) -> Parts:
    parts = []
    named = (*settings.by, *settings.rows)
    for heading, group in _grouped(settings.by, rows).items():
        # All rows of a repeat start from one policy, which counts once.
        starts = {_repeat(cell, named): cell["policies"][0]["figures"] for cell in group}
        lines = [(START, *_cells(settings, [*starts.values()]))]
        for label, cells in _grouped(settings.rows, group).items():
            lines.append((label, *_cells(settings, _last_figures(cells))))
        parts.append((heading, lines))
    return [", ".join(settings.rows), *map(_title, settings.columns)], parts


def _contrast_table(settings: TableSettings, rows: Rows) -> Parts:
    figures = {
        label: _last_figures(cells) for label, cells in _grouped(settings.rows, rows).items()
    }
    first, parts = settings.columns[0], []
    for heading, pairs in settings.parts.items():
        lines: list[tuple[Entry, ...]] = []
        for pair in pairs:
            values = [[f[first] for f in figures.get(label, []) if first in f] for label in pair]
            difference = None
            if len(pair) == 2 and all(values):  # noqa: PLR2004 - two rows are compared
                difference = f"{mean(values[0]) - mean(values[1]):+.{_digits(first)}f}"
            for label, shown in zip(pair, (difference, *[None] * len(pair)), strict=False):
                lines.append((label, *_cells(settings, figures.get(label, [])), shown))
        parts.append((heading, lines))
    return [", ".join(settings.rows), *map(_title, settings.columns), f"Δ {_title(first)}"], parts


def _blocks(by: Sequence[str], rows: Rows) -> dict[str, Policies]:
    """Policies by the values of some axes, in the cells' order."""
    blocks: dict[str, Policies] = {}
    for row in rows:
        policies = blocks.setdefault(", ".join(row["values"][axis] for axis in by), {})
        repeat = _repeat(row, (*by, SCHEDULE))
        for policy in row["policies"]:
            # Cells that begin with the same data share policies; each may know other figures.
            policies.setdefault(tuple(policy["path"]), {}).setdefault(repeat, {}).update(
                policy["figures"]
            )
    return blocks


def _values(policies: Policies, path: Path, name: str) -> dict[Repeat, float]:
    return {
        repeat: figures[name]
        for repeat, figures in policies.get(path, {}).items()
        if name in figures
    }


def _gains(policies: Policies, path: Path, name: str) -> dict[Repeat, float]:
    """What the last training of a path gained, in every repeat."""
    before, after = (_values(policies, part, name) for part in (path[:-1], path))
    return {repeat: after[repeat] - before[repeat] for repeat in after if repeat in before}


def _repeat(row: Mapping[str, Any], named: Sequence[str]) -> Repeat:
    return tuple(label for axis, label in row["values"].items() if axis not in named)


def _grouped(axes: Sequence[str], rows: Rows) -> dict[str, list[Mapping[str, Any]]]:
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(", ".join(row["values"][axis] for axis in axes), []).append(row)
    return groups


def _last_figures(cells: Rows) -> list[Mapping[str, float]]:
    return [cell["policies"][-1]["figures"] for cell in cells]


def _cells(settings: TableSettings, figures: Sequence[Mapping[str, float]]) -> list[Entry]:
    return [_entry([f[name] for f in figures if name in f], name) for name in settings.columns]


def _entry(values: Sequence[float], name: str, gain: float | None = None) -> Entry:
    return Figure.of(values, gain=gain, digits=_digits(name)) if values else None


def _digits(name: str) -> int:
    return _DIGITS.get(name, _OTHER_DIGITS)


def _title(name: str) -> str:
    return _TITLES.get(name, name.removeprefix(TRAINING))


# --- Policies from which both kinds of data were trained on -------------------------------------


def starts_of(settings: TableSettings, rows: Rows, *, by_repeat: bool = False) -> tuple[Start, ...]:
    """Every policy from which both kinds of data were trained on.

    Args:
        settings: A table of stages; gains are of its first column.
        rows: The finished cells.
        by_repeat: One for each repeat, instead of one with means over them.

    Returns:
        Their boundary scores and gains.
    """
    starts = list[Start]()
    for heading, policies in _blocks(settings.by, rows).items():
        for path in policies:
            where = ", ".join(part for part in (heading, " → ".join(path) or START) if part)
            if by_repeat:
                for repeat, figures in _start_figures(policies, path, settings.columns[0]).items():
                    starts.append(Start(", ".join([where, *repeat]), *figures))
            elif start := _mean_start(where, policies, path, settings.columns[0]):
                starts.append(start)
    return tuple(starts)


def _mean_start(where: str, policies: Policies, path: Path, name: str) -> Start | None:
    repeats = [*_start_figures(policies, path, name).values()]
    return Start(where, *map(mean, zip(*repeats, strict=True))) if repeats else None


def _start_figures(
    policies: Policies, path: Path, name: str
) -> dict[Repeat, tuple[float, float, float]]:
    """Boundary score and gains from a policy on, in every repeat that has all three."""
    scores = _values(policies, path, "boundary_score")
    off, on = (_gains(policies, (*path, data), name) for data in ("off", "on"))
    return {
        repeat: (score, off[repeat], on[repeat])
        for repeat, score in scores.items()
        if repeat in off and repeat in on
    }


def _ratio_text(start: Start | None) -> str | None:
    """Δ as the paper prints it; a dash where nothing gains."""
    if start is None or start.ratio is None:
        return None
    if start.on <= 0:
        return "+∞"
    if start.off <= 0:
        return "≤ 0"
    return f"{start.ratio:.2f}" if start.ratio >= _LEAST_RATIO else f"< {_LEAST_RATIO:g}"
