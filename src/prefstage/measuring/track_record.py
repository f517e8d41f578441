"""How often predictions of the better data set were right, in worlds whose truth is known."""

import json
import math
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

ANY_LOSS = "all"


@dataclass(frozen=True)
class TrackRecord:
    """How often one kind of prediction named the better of two data sets, by how clear it was.

    With d the distance between the two, in standard errors of their difference, it was right in a
    share ``f + (c - f)(1 - e^(-d/s))`` of the cases.

    Attributes:
        loss: Of the trainings; "all" for the mean over the bench's losses.
        floor: f, at d = 0: ½ of a prediction alone; more where another one follows it.
        ceiling: c, of the clearest, in [f, 1].
        scale: s > 0, standard errors.
        right: Share of all cases, clear or not, in [0, 1].
        decisions: Number of cases.

    Source:
        Ours: fitted by maximum likelihood to the decisions of ``benchmarks/decisions.py``.
    """

    loss: str
    floor: float
    ceiling: float
    scale: float
    right: float
    decisions: int

    def at(self, distance: float) -> float:
        """Share of cases as clear as this that were right.

        Args:
            distance: d >= 0; may be infinite.

        Returns:
            In [½, 1].
        """
        return self.floor - (self.ceiling - self.floor) * math.expm1(-distance / self.scale)


def track_record(kind: str, loss: str) -> TrackRecord | None:
    """Look up how often a kind of prediction was right.

    Args:
        kind: "stage", "forecast", "pilot SHARE" with the last heat's share of the pairs, such as
            "pilot 0.25", or "forecast, then pilot SHARE": by how clear the forecast was.
        loss: Names of the loss's terms, joined by " + ".

    Returns:
        Its record with that loss, else with all losses of the bench; None of an unknown kind.
    """
    records = bench_table()["kinds"].get(kind, {})
    name = loss if loss in records else ANY_LOSS
    return TrackRecord(name, **records[name]) if records else None


@cache
def bench_table() -> dict[str, Any]:
    """What `benchmarks/decision_table.py --reliability` wrote: "command", "worlds", "kinds"."""
    path = files("prefstage.measuring") / "track_record.json"
    table: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return table
