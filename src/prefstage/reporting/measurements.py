"""Measured stages: the decision, and how its interval narrowed."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow.parquet as pq

from prefstage.measuring.sequential import ConfidenceSequence
from prefstage.reporting.blocks import Chart, Section, between, percent, tables
from prefstage.reporting.runs import Part, Run, labelled
from prefstage.reporting.vega import charts, iterations, layer, quantity, rule_at, series

HALF = 0.5
_LOOKS = 60


@dataclass(frozen=True, kw_only=True)
class Measured(Part):
    """One measured stage.

    Attributes:
        looks: How the interval narrowed: "prompts", "score", "low" and "high"; empty where the
            prompts' scores are not on file.
    """

    looks: Sequence[Mapping[str, float]]


def read_measured(**part: Any) -> Measured:
    """A measurement: stage.json, and the prompts' scores if they are there."""
    path, stage = part["folder"] / "prompts.parquet", part["result"]
    scores: list[float] = []
    if path.is_file():
        table = pq.read_table(path, columns=["order", "score"]).sort_by("order")
        scores = table["score"].to_pylist()
    if len(scores) != stage["prompts_used"]:  # another measurement's prompts
        scores = []
    finite = stage.get("population", "these prompts") == "these prompts"
    available = stage["prompts_available"] if finite else None
    looks = looks_of(scores, available=available, confidence=stage["confidence"])
    return Measured(**part, looks=looks)


def looks_of(
    scores: Sequence[float], *, available: int | None, confidence: float
) -> list[dict[str, float]]:
    """The interval after growing numbers of prompts, at most 60 of them.

    Args:
        scores: Score of each prompt, in the order of use. [prompts], in [0, 1].
        available: Prompts that there are; None if the interval is about new ones.
        confidence: Of the interval.

    Returns:
        "prompts", "score", "low" and "high" of each look, the last one after all prompts.
    """
    sequence = ConfidenceSequence(available=available, confidence=confidence)
    counts = sorted({math.ceil(len(scores) * (k + 1) / _LOOKS) for k in range(_LOOKS)} - {0})
    looks = list[dict[str, float]]()
    for count in counts:
        sequence.update(scores[sequence.count : count])
        low, high = sequence.interval
        looks.append({"prompts": count, "score": sequence.mean, "low": low, "high": high})
    return looks


def decision_section(runs: Sequence[Run]) -> Section:
    """The measured stages of all runs."""
    head = ("measured", "stage", "boundary score", "interval", "prompts", "votes on : off : tie")
    rows = [
        [
            name,
            stage["stage"],
            f"{stage['boundary_score']:.3f}",
            f"{between(stage['interval'], 3)} ({percent(stage['confidence'], 0)})",
            f"{stage['prompts_used']:,} of {stage['prompts_available']:,}",
            " : ".join(f"{stage[votes]:,}" for votes in ("votes_on", "votes_off", "ties")),
            stage["stopped"],
            stage["algorithm_1"],
        ]
        for name, stage in ((name, part.result) for name, part in labelled(runs, Measured))
    ]
    text = (
        "The boundary score is the share of comparisons that the policy's own answers win against "
        "the off-policy ones. While its interval is below one half, the off-policy pairs teach "
        "more (injection stage); above, pairs of the policy's own answers do (fine-tuning stage)."
    )
    table = tables("Measured stages", (*head, "stopped", "Algorithm 1"), rows)
    return Section("decision", "Decision", text, (*_narrowing(runs), *_scores(runs)), table)


def _narrowing(runs: Sequence[Run]) -> tuple[Chart, ...]:
    parts = labelled(runs, Measured)
    values = [{"series": name, **look} for name, part in parts for look in part.looks]
    ends = {str(row["series"]): row for row in values}
    head = {"series": "measurement", "prompts": "prompts", "score": "boundary score"}
    head |= {"low": "low", "high": "high"}
    x = quantity("prompts", "prompts used", axis={"tickMinStep": 1})
    y, scale = "boundary score", {"domain": [0, 1], "zero": True}
    colour = series("series", list(ends))
    band = {"type": "area", "opacity": 0.16, "interpolate": "step-after"}
    low, high = quantity("low", y, scale=scale), {"field": "high"}
    score = quantity("score", y, scale=scale)
    course_text = "; ".join(
        f"{name}: {row['score']:.2f} [{row['low']:.2f}, {row['high']:.2f}] after "
        f"{row['prompts']} prompts"
        for name, row in ends.items()
    )
    return charts(
        "interval",
        "The interval as it narrowed",
        f"Boundary score with its interval against the prompts used. {course_text}.",
        values,
        head,
        layer(band, x=x, y=low, y2=high, color=colour),
        layer({"type": "line", "point": {"size": 25}}, head, x=x, y=score, color=colour),
        rule_at(HALF),
    )


def _scores(runs: Sequence[Run]) -> tuple[Chart, ...]:
    values = [
        {
            "run": run.name,
            "iteration": part.iteration,
            "score": part.result["boundary_score"],
            "low": part.result["interval"][0],
            "high": part.result["interval"][1],
            "stage": part.result["stage"],
        }
        for run in runs
        if run.command == "align"
        for part in run.of(Measured)
    ]
    return course(
        values if len(values) > 1 else [],  # one point is no course
        {"score": "boundary score", "low": "low", "high": "high", "stage": "stage"},
        name="boundary",
        title="Boundary score at the beginning of each iteration",
        axis="boundary score",
        alt="Boundary score by iteration; below one half off-policy data win",
        line=HALF,
        domain=[0, 1],
    )


def course(
    values: Sequence[Mapping[str, Any]],
    head: Mapping[str, str],
    *,
    name: str,
    title: str,
    axis: str,
    alt: str,
    line: float | None = None,
    domain: Sequence[float] | None = None,
) -> tuple[Chart, ...]:
    """A value by iteration with its interval, a line a run.

    Args:
        values: "run", "iteration", what `head` names, and where known "low" and "high".
        head: Headings of the table; the first one that is a number is drawn.
        name: As of `Chart`.
        title: As of `Chart`.
        axis: Title of the values' axis.
        alt: As of `Chart`; the values are added.
        line: Where a dashed line is drawn.
        domain: Of the axis.

    Returns:
        The chart; nothing without values.
    """
    field = next((name for name in head if name != "model"), "")
    x, scale = iterations(values), {"scale": {"domain": domain}} if domain else {}
    colour = series("run", list(dict.fromkeys(row["run"] for row in values)))
    points = layer(
        {"type": "line", "point": {"size": 60}},
        {"run": "run", "iteration": "iteration", **head},
        x=x,
        y=quantity(field, axis, **scale),
        color=colour,
    )
    bars = layer(
        {"type": "rule", "strokeWidth": 2},
        transform=[{"filter": "isValid(datum.low)"}],
        x=x,
        y=quantity("low", axis, **scale),
        y2={"field": "high"},
        color=colour,
    )
    layers = [bars, points] if any("low" in row for row in values) else [points]
    layers += [] if line is None else [rule_at(line)]
    course_text = (f"{r['run']}, iteration {r['iteration']}: {float(r[field]):.3g}" for r in values)
    return charts(
        *(name, title, f"{alt}. {'; '.join(course_text)}.", values),
        {"run": "run", "iteration": "iteration", **head},
        *layers,
    )
