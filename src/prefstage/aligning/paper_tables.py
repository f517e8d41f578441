"""Tables of an experiment in the papers' own form."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from prefstage.aligning.agreement import Start
from prefstage.aligning.grid import TRAINING, TableSettings
from prefstage.aligning.tables import Entry, Table, figure

SCHEDULE = "schedule"
START = "start"

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
_LEAST = 0.01

Path = tuple[str, ...]
"""The data trained on, iteration by iteration."""
Repeat = tuple[str, ...]
Rows = Sequence[Mapping[str, Any]]
"""As `read_cell` gives them."""


@dataclass(frozen=True)
class Block:
    """Cells that differ in schedule and repeat alone.

    Attributes:
        heading: The values that they share.
        policies: Figures by the data trained on, and by repeat.
    """

    heading: str
    policies: Mapping[Path, Mapping[Repeat, Mapping[str, float]]]

    def values(self, path: Path, name: str) -> list[float]:
        """A figure in every repeat that has it."""
        found = self.policies.get(path, {})
        return [figures[name] for figures in found.values() if name in figures]

    def gains(self, path: Path, name: str) -> dict[Repeat, float]:
        """What the last training of a path gained, in every repeat."""
        before, after = self.policies.get(path[:-1], {}), self.policies.get(path, {})
        return {
            repeat: after[repeat][name] - before[repeat][name]
            for repeat in after
            if name in after[repeat] and name in before.get(repeat, {})
        }


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
    if settings.kind == "stages":
        return _stage_table(settings, rows)
    if settings.kind == "results":
        return _result_table(settings, rows)
    return _contrast_table(settings, rows)


def blocks_of(by: Sequence[str], rows: Rows) -> tuple[Block, ...]:
    """Gather cells by the values of some axes.

    Args:
        by: The axes.
        rows: The finished cells.

    Returns:
        A block for each combination, in the cells' order.
    """
    found: dict[str, dict[Path, dict[Repeat, Mapping[str, float]]]] = {}
    for row in rows:
        values = row["values"]
        repeat = _repeat(row, (*by, SCHEDULE))
        block = found.setdefault(", ".join(values[axis] for axis in by), {})
        for policy in row["policies"]:
            known = block.setdefault(tuple(policy["path"]), {}).get(repeat, {})
            block[tuple(policy["path"])][repeat] = {**known, **policy["figures"]}
    return tuple(Block(heading, policies) for heading, policies in found.items())


def starts_of(
    settings: TableSettings, rows: Rows, *, each_repeat: bool = False
) -> tuple[Start, ...]:
    """Every policy from which both kinds of data were trained on.

    Args:
        settings: A table of stages; gains are of its first column.
        rows: The finished cells.
        each_repeat: One for each repeat, instead of one with means over them.

    Returns:
        Their boundary scores and gains.
    """
    found = []
    for block in blocks_of(settings.by, rows):
        for path in block.policies:
            known = _gains(block, path, settings.columns[0])
            where = ", ".join(part for part in (block.heading, " → ".join(path) or START) if part)
            if each_repeat:
                found += [
                    Start(", ".join([where, *repeat]), *each) for repeat, each in known.items()
                ]
            elif known:
                scores, off, on = zip(*known.values(), strict=True)
                found.append(Start(where, mean(scores), mean(off), mean(on)))
    return tuple(found)


def _gains(block: Block, path: Path, name: str) -> dict[Repeat, tuple[float, float, float]]:
    """Boundary score of a policy and gains from there, in every repeat that has them all."""
    off, on = (block.gains((*path, data), name) for data in ("off", "on"))
    return {
        repeat: (figures["boundary_score"], off[repeat], on[repeat])
        for repeat, figures in block.policies[path].items()
        if "boundary_score" in figures and repeat in off and repeat in on
    }


def _stage_table(settings: TableSettings, rows: Rows) -> Table:
    starts = {each.where: each for each in starts_of(settings, rows)}
    blocks, deepest = blocks_of(settings.by, rows), 1
    for block in blocks:
        deepest = max(deepest, *map(len, block.policies))
    parts = []
    for block in blocks:
        lines, told = [], set[str]()
        for path in sorted(block.policies, key=lambda path: (len(path), path)):
            words = [block.heading, " → ".join(path[:-1]) or START]
            where = ", ".join(word for word in words if word) if path else ""
            start = starts.get(where) if where not in told else None
            told.add(where)
            lines.append(_stage_row(settings, block, path, deepest, start))
        parts.append((block.heading, tuple(lines)))
    names = [f"Iter-{place + 1}" for place in range(deepest)]
    head = (*names, *map(_title, settings.columns), "BS (initial)", "Δ(×)")
    return Table(settings.title, head, tuple(parts))


def _stage_row(
    settings: TableSettings, block: Block, path: Path, deepest: int, start: Start | None
) -> tuple[Entry, ...]:
    trained = [f"PC_{data}" for data in path] + ["-"] * (deepest - len(path))
    gains = block.gains(path, settings.columns[0]) if path else {}
    cells: list[Entry] = []
    for place, name in enumerate(settings.columns):
        gain = mean(gains.values()) if gains and not place else None
        cells.append(_entry(block.values(path, name), name, gain))
    score = _entry([start.boundary_score], "boundary_score", digits=2) if start else None
    return (*trained, *cells, score, _ratio(start))


def _ratio(start: Start | None) -> str | None:
    """Δ as the paper prints it; a dash where nothing gains."""
    if start is None or start.ratio is None:
        return None
    if start.on <= 0:
        return "+∞"
    if start.off <= 0:
        return "≤ 0"
    return f"{start.ratio:.2f}" if start.ratio >= _LEAST else f"< {_LEAST:g}"


def _result_table(settings: TableSettings, rows: Rows) -> Table:
    parts = []
    for heading, group in _grouped(settings.by, rows).items():
        lines: list[tuple[Entry, ...]] = []
        found = _grouped(settings.rows, group)
        named = (*settings.by, *settings.rows)  # rows start alike: each repeat counts once
        starts = {_repeat(row, named): row["policies"][0]["figures"] for row in group}
        lines.append((START, *_cells(settings, [*starts.values()])))
        for label, cells in found.items():
            lines.append(
                (label, *_cells(settings, [row["policies"][-1]["figures"] for row in cells]))
            )
        parts.append((heading, tuple(lines)))
    return Table(
        settings.title, (", ".join(settings.rows), *map(_title, settings.columns)), tuple(parts)
    )


def _contrast_table(settings: TableSettings, rows: Rows) -> Table:
    found = {
        label: [row["policies"][-1]["figures"] for row in cells]
        for label, cells in _grouped(settings.rows, rows).items()
    }
    first, parts = settings.columns[0], []
    for heading, pairs in settings.parts.items():
        lines: list[tuple[Entry, ...]] = []
        for pair in pairs:
            means = [
                mean(figures[first] for figures in found[label] if first in figures)
                for label in pair
                if any(first in figures for figures in found.get(label, []))
            ]
            difference = f"{means[0] - means[1]:+.{_digits(first)}f}" if len(means) == 2 else None  # noqa: PLR2004 - two rows are compared
            for place, label in enumerate(pair):
                cells = _cells(settings, found.get(label, []))
                lines.append((label, *cells, None if place else difference))
        parts.append((heading, tuple(lines)))
    head = (", ".join(settings.rows), *map(_title, settings.columns), f"Δ {_title(first)}")
    return Table(settings.title, head, tuple(parts))


def _repeat(row: Mapping[str, Any], named: Sequence[str]) -> Repeat:
    return tuple(label for axis, label in row["values"].items() if axis not in named)


def _grouped(axes: Sequence[str], rows: Rows) -> dict[str, list[Mapping[str, Any]]]:
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault(", ".join(row["values"][axis] for axis in axes), []).append(row)
    return found


def _cells(settings: TableSettings, figures: Sequence[Mapping[str, float]]) -> list[Entry]:
    return [
        _entry([each[name] for each in figures if name in each], name) for name in settings.columns
    ]


def _entry(
    values: Sequence[float], name: str, gain: float | None = None, *, digits: int | None = None
) -> Entry:
    if not values:
        return None
    return figure(values, gain=gain, digits=_digits(name) if digits is None else digits)


def _digits(name: str) -> int:
    return _DIGITS.get(name, _OTHER_DIGITS)


def _title(name: str) -> str:
    return _TITLES.get(name, name.removeprefix(TRAINING))
