"""What a cell of an experiment came to: figures of each policy along its iterations."""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from prefstage.aligning.grid import TRAINING, Cell
from prefstage.aligning.results import RESULT, reversals_told
from prefstage.aligning.steps import FOLDER
from prefstage.aligning.work import ANSWERS, PAIRS
from prefstage.core.files import read_json_lines
from prefstage.data.loading import load_pairs
from prefstage.data.records import Prompt

EVEN = 50.0
"""Win rate of the start over itself, percent."""

Metric = Callable[[Prompt, str], float]
"""(prompt, response) -> figure."""


def read_cell(cell: Cell, folder: Path, metrics: Mapping[str, Metric]) -> dict[str, Any]:
    """The figures of a finished cell.

    Args:
        cell: The cell.
        folder: Its run folder.
        metrics: What else is computed of each answer to a held-out prompt, and averaged.

    Returns:
        The cell's name and values, the bad rows that it put aside, how often its judge reversed
        labels that it replaced, and its policies in order:
        the start, and after each iteration; each with the data trained on so far and its
        figures.
    """
    result = json.loads((folder / RESULT).read_text("utf-8"))
    steps, rows = folder / FOLDER, result["iterations"]
    done = [row for row in rows if row["stopped"] is None]
    policies = [_start(result, rows, steps, metrics)]
    for place, row in enumerate(done):
        after = rows[place + 1] if place + 1 < len(rows) else None
        path = [each["data"] for each in done[: place + 1]]
        policies.append({"path": path, "figures": _figures(row, after, steps, metrics)})
    return {
        "cell": cell.name,
        "values": dict(cell.values),
        "put_aside": result["put_aside"],
        "stopped": result["stopped"],
        "reversals": reversals_told(result),
        "policies": policies,
    }


def bad_rows_told(cells: Sequence[Mapping[str, Any]]) -> str:
    """Say which bad rows the cells put aside.

    Args:
        cells: As of `read_cell`.

    Returns:
        Such as "2 of 14 rows of off_policy (in 8 of 8 cells)"; empty if there were none.
    """
    counts = Counter(
        f"{each['rows']:,} of {each['of']:,} rows of {name}"
        for cell in cells
        for name, each in cell.get("put_aside", {}).items()
    )
    return ", ".join(f"{rows} (in {count} of {len(cells)} cells)" for rows, count in counts.items())


def reversals_in_cells(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say how often the cells' judges reversed the labels that they replaced.

    Args:
        cells: As of `read_cell`.

    Returns:
        A line for each different figure, with how many cells it is of.
    """
    counts = Counter(told for cell in cells for told in cell.get("reversals", ()))
    return [f"{told} (in {count} of {len(cells)} cells)" for told, count in counts.items()]


def _start(
    result: Mapping[str, Any],
    rows: list[dict[str, Any]],
    steps: Path,
    metrics: Mapping[str, Metric],
) -> dict[str, Any]:
    figures: dict[str, float] = {}
    evaluation = rows[0]["evaluation"] if rows else None
    if evaluation is not None:
        figures |= {"win_rate": EVEN, "avg_length": evaluation["avg_length_start"]}
        if evaluation["length_controlled_win_rate"] is not None:
            figures["length_controlled_win_rate"] = EVEN
        figures |= _metrics(steps / result["start_answers"], metrics)
    if rows and rows[0]["stage"] is not None:
        figures["boundary_score"] = rows[0]["stage"]["boundary_score"]
    return {"path": [], "figures": figures}


def _figures(
    row: Mapping[str, Any],
    after: Mapping[str, Any] | None,
    steps: Path,
    metrics: Mapping[str, Metric],
) -> dict[str, float]:
    found: dict[str, float | None] = {"pairs": row["pairs"]}
    if row["evaluation"] is not None:
        names = ("win_rate", "length_controlled_win_rate", "avg_length")
        found |= {name: row["evaluation"][name] for name in names}
        found |= _metrics(steps / row["steps"]["answer"], metrics)
    if after is not None and after["stage"] is not None:
        found["boundary_score"] = after["stage"]["boundary_score"]
    found |= {TRAINING + name: value for name, value in row["training"]["metrics"].items()}
    found |= _quality(steps / row["steps"]["build"] / PAIRS)
    return {name: value for name, value in found.items() if value is not None}


def _metrics(answers: Path, metrics: Mapping[str, Metric]) -> dict[str, float]:
    if not metrics:
        return {}
    rows = read_json_lines(answers / ANSWERS)
    return {
        name: mean(metric(tuple(row["prompt"]), row["text"]) for row in rows)
        for name, metric in metrics.items()
    }


def _quality(pairs: Path) -> dict[str, float | None]:
    """Mean score of the chosen responses, and mean gap, where the pairs have scores."""
    scores = [(pair.score_chosen, pair.score_rejected) for pair in load_pairs(str(pairs))]
    known = [(a, b) for a, b in scores if a is not None and b is not None]
    if not known or len(known) < len(scores):
        return {}
    return {"avg_chosen": mean(a for a, _ in known), "avg_gap": mean(a - b for a, b in known)}
