"""Tables of an experiment in the papers' form, and whether the boundary score foretells them."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from statistics import mean, stdev
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from prefstage.core import Config, csv_text, markdown_table, refuse

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
_EVEN = 0.5
_LATEX = str.maketrans(
    {
        **{mark: f"\\{mark}" for mark in "&%$#_{}"},
        **{"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}"},
        **{"±": r"$\pm$", "∞": r"$\infty$", "Δ": r"$\Delta$", "×": r"$\times$", "≤": r"$\leq$"},
        **{"→": r"$\rightarrow$", "γ": r"$\gamma$", "β": r"$\beta$", "ρ": r"$\rho$"},
    }
)

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
        refuse(
            (
                (self.kind == "stages") == bool(self.rows),
                f"rows is {self.rows} in a table of {self.kind}; expected none in stages, whose "
                "rows are the iterations, and axes elsewhere; change it",
            ),
            (
                (self.kind != "contrasts") == bool(self.parts),
                f"parts has {len(self.parts)} headings in a table of {self.kind}; expected pairs "
                "of rows in contrasts alone; change it",
            ),
        )
        return self


# --- Tables of figures --------------------------------------------------------------------------


@dataclass(frozen=True)
class Figure:
    """A mean over repeats.

    Attributes:
        mean: The mean.
        error: Its standard error (standard deviation, ddof 1, by √n); None of a single repeat.
        gain: What it is above the row that it is compared with.
        digits: Shown behind the point.
    """

    mean: float
    error: float | None = None
    gain: float | None = None
    digits: int = 2

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
    blocks: Sequence[tuple[str, Sequence[Sequence[Entry]]]]


def markdown(table: Table) -> str:
    """The table as Markdown.

    Args:
        table: The table.

    Returns:
        Text that ends in a newline.
    """
    rows = [
        row
        for heading, block in table.blocks
        for row in (
            *([(f"**{heading}**", *[""] * (len(table.head) - 1))] if heading else []),
            *(tuple(map(_text, entries)) for entries in block),
        )
    ]
    title = f"**{table.title}**\n\n" if table.title else ""
    return f"{title}{markdown_table(table.head, rows)}\n"


def latex(table: Table) -> str:
    """The table as LaTeX, with the rules of the package booktabs.

    Args:
        table: The table.

    Returns:
        A table environment, text that ends in a newline.
    """
    count = len(table.head)
    lines = [
        *(r"\begin{table}", r"\centering", rf"\begin{{tabular}}{{{'l' * count}}}", r"\toprule"),
        _latex_row(table.head),
    ]
    for heading, rows in table.blocks:
        wide = rf"\multicolumn{{{count}}}{{c}}{{\textbf{{{heading.translate(_LATEX)}}}}} \\"
        lines += [r"\midrule", *([wide] if heading else []), *map(_latex_row, rows)]
    caption = [rf"\caption{{{table.title.translate(_LATEX)}}}"] if table.title else []
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", *caption, r"\end{table}", ""])


def comma_separated(table: Table) -> str:
    """The table as CSV: of each figure the mean, its standard error and its gain.

    Args:
        table: The table.

    Returns:
        CSV text, numbers unrounded.
    """
    rows = [(heading, *row) for heading, block in table.blocks for row in block]
    columns: list[Sequence[object]] = []
    for name, *entries in zip(("block", *table.head), *rows, strict=True):
        # A column with figures becomes three.
        if any(isinstance(entry, Figure) for entry in entries):
            heads = (name, f"{name} s.e.", f"{name} gain")
            figures = [
                astuple(e)[:3] if isinstance(e, Figure) else (e or "", "", "") for e in entries
            ]
            columns += zip(heads, *figures, strict=True)
        else:
            columns.append([name, *map(_text, entries)])
    return csv_text(zip(*columns, strict=True))


def _text(entry: Entry) -> str:
    return "-" if entry is None else str(entry)


def _latex_row(row: Sequence[Entry]) -> str:
    return " & ".join(_text(entry).translate(_LATEX) for entry in row) + r" \\"


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
    kinds = {"stages": _stage_table, "results": _result_table, "contrasts": _contrast_table}
    return kinds[settings.kind](settings, rows)


def _stage_table(settings: TableSettings, rows: Rows) -> Table:
    blocks, first, parts = _blocks(settings.by, rows), settings.columns[0], []
    deepest = max([1, *(len(path) for policies in blocks.values() for path in policies)])
    for heading, policies in blocks.items():
        lines = list[tuple[Entry, ...]]()
        paths = sorted(policies, key=lambda path: (len(path), path))
        # A start stands in the first row that leads on from it.
        first_rows = {path[:-1]: path for path in reversed(paths) if path}
        for path in paths:
            gains = [*_gains(policies, path, first).values()] if path else []
            values = {name: [*_values(policies, path, name).values()] for name in settings.columns}
            leads = path and path == first_rows[path[:-1]]
            starts = _means("", _starts("", policies, path[:-1], first)) if leads else []
            lasting = [
                (None if s.boundary_score is None else Figure(s.boundary_score), s.ratio_text)
                for s in starts
            ]
            lines.append(
                (
                    *(f"PC_{data}" for data in path),
                    *["-"] * (deepest - len(path)),
                    *(_entry(v, n, gains if n == first else ()) for n, v in values.items()),
                    *(lasting[0] if lasting else (None, None)),
                )
            )
        parts.append((heading, lines))
    names = (f"Iter-{number + 1}" for number in range(deepest))
    head = (*names, *map(_title, settings.columns), "BS (initial)", "Δ(×)")
    return Table(settings.title, head, parts)


def _result_table(settings: TableSettings, rows: Rows) -> Table:
    named, parts = (*settings.by, *settings.rows), []
    for heading, group in _grouped(settings.by, rows).items():
        # All rows of a repeat start from one policy, which counts once; what differs between its
        # cells (as on other held-out prompts) is no figure of the start.
        starts = dict[Repeat, dict[str, float]]()
        for cell in group:
            figures = cell["policies"][0]["figures"]
            before = starts.setdefault(_repeat(cell, named), figures)
            starts[_repeat(cell, named)] = {
                n: v for n, v in before.items() if math.isclose(v, figures.get(n, math.nan))
            }
        figures = [(START, [*starts.values()]), *_last_figures(settings.rows, group).items()]
        parts.append((heading, [(label, *_cells(settings, known)) for label, known in figures]))
    return Table(settings.title, (", ".join(settings.rows), *map(_title, settings.columns)), parts)


def _contrast_table(settings: TableSettings, rows: Rows) -> Table:
    figures, first, parts = _last_figures(settings.rows, rows), settings.columns[0], []
    for heading, pairs in settings.parts.items():
        lines = list[tuple[Entry, ...]]()
        for pair in pairs:
            values = [[f[first] for f in figures.get(label, []) if first in f] for label in pair]
            difference = None
            if len(pair) == 2 and all(values):  # noqa: PLR2004 - two rows are compared
                difference = f"{mean(values[0]) - mean(values[1]):+.{_digits(first)}f}"
            lines += [
                (label, *_cells(settings, figures.get(label, [])), shown)
                for label, shown in zip(pair, (difference, *[None] * len(pair)), strict=False)
            ]
        parts.append((heading, lines))
    head = (", ".join(settings.rows), *map(_title, settings.columns), f"Δ {_title(first)}")
    return Table(settings.title, head, parts)


def _blocks(by: Sequence[str], rows: Rows) -> dict[str, Policies]:
    blocks: dict[str, Policies] = {}
    for row in rows:
        policies = blocks.setdefault(", ".join(row["values"][axis] for axis in by), {})
        for policy in row["policies"]:
            # Cells that begin with the same data share policies; each may know other figures.
            repeats = policies.setdefault(tuple(policy["path"]), {})
            repeats.setdefault(_repeat(row, (*by, SCHEDULE)), {}).update(policy["figures"])
    return blocks


def _values(policies: Policies, path: Path, name: str) -> dict[Repeat, float]:
    return {r: known[name] for r, known in policies.get(path, {}).items() if name in known}


# What the last training of a path gained, in every repeat.
def _gains(policies: Policies, path: Path, name: str) -> dict[Repeat, float]:
    before, after = (_values(policies, part, name) for part in (path[:-1], path))
    return {repeat: after[repeat] - before[repeat] for repeat in after if repeat in before}


def _repeat(row: Mapping[str, Any], named: Sequence[str]) -> Repeat:
    return tuple(label for axis, label in row["values"].items() if axis not in named)


def _grouped(axes: Sequence[str], rows: Rows) -> dict[str, list[Mapping[str, Any]]]:
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(", ".join(row["values"][axis] for axis in axes), []).append(row)
    return groups


def _last_figures(axes: Sequence[str], rows: Rows) -> dict[str, list[Mapping[str, float]]]:
    groups = _grouped(axes, rows)
    return {name: [c["policies"][-1]["figures"] for c in cells] for name, cells in groups.items()}


def _cells(settings: TableSettings, figures: Sequence[Mapping[str, float]]) -> list[Entry]:
    return [_entry([f[name] for f in figures if name in f], name) for name in settings.columns]


def _entry(values: Sequence[float], name: str, gains: Sequence[float] = ()) -> Entry:
    if not values:
        return None
    error = stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return Figure(mean(values), error, mean(gains) if gains else None, _digits(name))


def _digits(name: str) -> int:
    return _DIGITS.get(name, _OTHER_DIGITS)


def _title(name: str) -> str:
    return _TITLES.get(name, name.removeprefix(TRAINING))


# --- Whether the boundary score foretells which data help more ------------------------------------


@dataclass(frozen=True)
class Start:
    """One policy, and what training on either kind of data gained from there.

    Attributes:
        where: Names of the block and of the data that led there.
        boundary_score: Of the policy, in [0, 1]; None where it was not measured.
        off: Gain of training on off-policy data.
        on: Gain of training on on-policy data.
    """

    where: str
    boundary_score: float | None
    off: float
    on: float

    @property
    def ratio(self) -> float | None:
        """Δ = off / on; ∞ where only off gains, at most 0 where only on does, else None."""
        if self.on > 0:
            return self.off / self.on
        return math.inf if self.off > 0 else None

    @property
    def ratio_text(self) -> str | None:
        """Δ as the paper prints it; None where nothing gains."""
        ratio = self.ratio
        if ratio is None or ratio == math.inf:
            return None if ratio is None else "+∞"
        if 0 < ratio < _LEAST_RATIO:
            return f"< {_LEAST_RATIO:g}"
        return f"{ratio:.2f}" if ratio > 0 else "≤ 0"


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
            where = ", ".join(filter(None, (heading, " → ".join(path) or START)))
            repeats = _starts(where, policies, path, settings.columns[0])
            starts += repeats if by_repeat else _means(where, repeats)
    return tuple(starts)


# A policy with the gains from it on, in every repeat that has both.
def _starts(where: str, policies: Policies, path: Path, name: str) -> list[Start]:
    off, on = (_gains(policies, (*path, data), name) for data in ("off", "on"))
    scores = _values(policies, path, "boundary_score")
    return [
        Start(", ".join([where, *repeat]), scores.get(repeat), off[repeat], on[repeat])
        for repeat in off
        if repeat in on
    ]


# One start of the repeats' means; none of no repeats.
def _means(where: str, repeats: Sequence[Start]) -> list[Start]:
    if not repeats:
        return []
    scores = [start.boundary_score for start in repeats if start.boundary_score is not None]
    gains = (mean(start.off for start in repeats), mean(start.on for start in repeats))
    return [Start(where, mean(scores) if scores else None, *gains)]


def agreement(starts: Sequence[Start]) -> dict[str, Any]:
    """Count BS < ½ against Δ > 1, and against a larger gain of off-policy data.

    Args:
        starts: The starts.

    Returns:
        "starts", those of a measured stage; "ratio", without starts from where nothing gains; and
        "gain", also of starts from where both lose, without those of equal gains. Both hold
        "counts", [[BS < ½ and yes, BS < ½ and no], [BS >= ½ and yes, BS >= ½ and no]]; "left_out",
        how many starts answer neither yes nor no; "agreement", the share of starts where BS < ½
        and yes or BS >= ½ and no, None of no start; and "p_value", of Fisher's exact test of
        independence, two-sided, 1 of an empty table.

    Source:
        Sun et al. 2025, arXiv:2508.10530, Table 3: BS < 0.5 should go with Δ > 1. Fisher 1922, "On
        the interpretation of χ² from contingency tables".
    """
    starts = [start for start in starts if start.boundary_score is not None]
    return {
        "starts": [vars(start) for start in starts],
        "ratio": _counted(starts, [None if s.ratio is None else s.ratio > 1 for s in starts]),
        "gain": _counted(starts, [None if s.off == s.on else s.off > s.on for s in starts]),
    }


def _counted(starts: Sequence[Start], answers: Sequence[bool | None]) -> dict[str, Any]:
    from scipy.stats import fisher_exact

    lows = [s.boundary_score is not None and s.boundary_score < _EVEN for s in starts]
    seen = Counter(zip(lows, answers, strict=True))
    low, high = ((seen[is_low, True], seen[is_low, False]) for is_low in (True, False))
    total = sum(low) + sum(high)
    return {
        "counts": (low, high),
        "left_out": answers.count(None),
        "agreement": (low[0] + high[1]) / total if total else None,
        "p_value": float(fisher_exact((low, high)).pvalue),
    }
