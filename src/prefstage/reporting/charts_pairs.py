"""Charts of pairs: score gaps, flips, loss against the reference log-ratio, diversity."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from prefstage.diagnosing.flips import FLIP_GROUPS
from prefstage.reporting.blocks import Chart, chart_values
from prefstage.reporting.charts_loop import label
from prefstage.reporting.marks import chart, iterations, quantity, series, tooltips
from prefstage.reporting.results import Dynamics, Run
from prefstage.training.dynamics_measures import metric_name

GROUPS = dict(
    zip(FLIP_GROUPS, ("right, kept", "right → wrong", "wrong → right", "wrong, kept"), strict=True)
)
GROUP_COLOURS = ("@right", "@lost", "@won", "@wrong")
_BINS = 30
_CURVE = 120
POINTS = 2000

Rows = list[dict[str, Any]]


def score_gaps(runs: Sequence[Run]) -> Chart | None:
    """Histogram of the score gaps of every set of pairs, as shares."""
    sets = {
        " ".join(filter(None, (label(run, each.iteration, runs), part))): gaps
        for run in runs
        for each in run.built
        for part, gaps in each.gaps.items()
        if gaps
    }
    if not sets:
        return None
    every = np.concatenate([np.asarray(each) for each in sets.values()])
    edges = np.histogram_bin_edges(every, bins=_BINS)
    values: Rows = []
    for name, gaps in sets.items():
        counts = np.histogram(gaps, bins=edges)[0]
        for k, count in enumerate(counts.tolist()):
            low, high = (float(f"{edge:.4g}") for edge in edges[k : k + 2])
            row = {"set": name, "low": low, "high": high, "pairs": count}
            values.append({**row, "share": round(count / len(gaps), 6)})
    head = {"set": "pairs of", "low": "gap from", "high": "to", "pairs": "pairs", "share": "share"}
    steps = {
        "mark": {"type": "area", "interpolate": "step-after", "opacity": 0.25, "line": True},
        "encoding": {
            "x": quantity("low", "score gap, chosen - rejected"),
            "y": quantity("share", "share of pairs", scale={"zero": True}, stack=None),
            "color": series("set", list(sets)),
            "tooltip": tooltips(head),
        },
    }
    told = [f"{name}: median {np.median(gaps):.3g} of {len(gaps)}" for name, gaps in sets.items()]
    alt = "Histogram of score gaps. " + "; ".join(told) + "."
    return Chart("gaps", "Score gaps", alt, chart(values, steps), chart_values(values, head))


def prefix_of(name: str) -> str:
    """What stands before the metrics of a set."""
    return "dynamics/" if name == "train" else f"{name}_dynamics/"


def flips(dynamics: Dynamics, name: str, title: str, anchor: str) -> Chart | None:
    """The shares of the four flip groups over training."""
    values: Rows = []
    for entry in dynamics.metrics:
        for group, told in GROUPS.items():
            key = f"{prefix_of(name)}flips/{metric_name(group)}"
            if f"{key}/share" not in entry:
                continue
            row = {"step": entry["step"], "group": told, "share": entry[f"{key}/share"]}
            more = {kind: entry.get(f"{key}/{kind}") for kind in ("loss", "margins")}
            values.append({**row, **more, "order": list(GROUPS.values()).index(told)})
    if not values:
        return None
    head = {
        "step": "step",
        "group": "group",
        "share": "share",
        "loss": "mean DPO loss",
        "margins": "mean margin",
    }
    area = {
        "mark": {"type": "area", "opacity": 0.85},
        "encoding": {
            "x": quantity("step", "optimiser step"),
            "y": quantity("share", "share of pairs", stack="zero", axis={"format": "%"}),
            "color": series("group", list(GROUPS.values()), range=GROUP_COLOURS),
            "order": {"field": "order"},
            "tooltip": tooltips(head),
        },
    }
    last = [row for row in values if row["step"] == values[-1]["step"]]
    told = ", ".join(f"{row['group']} {100 * row['share']:.1f} %" for row in last)
    alt = f"Shares of the four flip groups over training. At the last step: {told}."
    spec = chart(values, area)
    return Chart(f"flips-{anchor}", title, alt, spec, chart_values(values, head))


def threshold(dynamics: Dynamics, name: str, title: str, anchor: str) -> Chart | None:
    """Each pair's DPO loss against its reference log-ratio, and the curve -log σ(βc)."""
    rows = [row for row in dynamics.last.to_pylist() if row["set"] == name]
    if not rows:
        return None
    beta = dynamics.beta
    points: Rows = [
        {
            "ratio": float(f"{row['reference_log_ratio']:.5g}"),
            "loss": float(f"{row['loss']:.5g}"),
            "group": GROUPS[row["group"]],
        }
        for row in rows[:POINTS]
    ]
    low, high = (f([p["ratio"] for p in points]) for f in (min, max))
    at = [low + (high - low) * k / _CURVE for k in range(_CURVE + 1)]
    curve = [{"ratio": c, "loss": float(np.logaddexp(0.0, -beta * c))} for c in at]
    head = {"ratio": "c, nats", "loss": "DPO loss", "group": "group"}
    x, y = quantity("ratio", "reference log-ratio c, nats"), quantity("loss", "DPO loss, nats")
    dots = {
        "mark": {"type": "point", "opacity": 0.7, "size": 22},
        "encoding": {
            "x": x,
            "y": y,
            "color": series("group", list(GROUPS.values()), range=GROUP_COLOURS),
            "tooltip": tooltips(head),
        },
    }
    line = {
        "data": {"values": curve},
        "mark": {"type": "line", "color": "@ink", "strokeWidth": 1.5},
        "encoding": {"x": x, "y": y},
    }
    counts = {told: sum(p["group"] == told for p in points) for told in GROUPS.values()}
    shown = "" if len(rows) <= POINTS else f" The first {POINTS:,} of {len(rows):,} pairs."
    alt = (
        f"DPO loss against the reference log-ratio c with the threshold -log σ({beta:g} c), at or "
        "below which a pair is ranked rightly. "
        + ", ".join(f"{told}: {count}" for told, count in counts.items())
        + f".{shown}"
    )
    spec = chart(points, dots, line, height=320)
    return Chart(f"threshold-{anchor}", title + shown, alt, spec, chart_values(points, head))


def intra_diversities(runs: Sequence[Run]) -> Chart | None:
    """Mean of log π(y_w|x) - log π(y_l|x) over training, with the 5 to 95 % range."""
    values: Rows = []
    for run in runs:
        for each in run.trainings:
            if each.dynamics is None:
                continue
            key = f"{prefix_of(each.dynamics.sets[0])}intra_diversity"
            for entry in each.dynamics.metrics:
                if math.isfinite(entry.get(f"{key}/mean", math.nan)):
                    row = {"series": label(run, each.iteration, runs), "step": entry["step"]}
                    ends = {"low": entry.get(f"{key}/q05"), "high": entry.get(f"{key}/q95")}
                    values.append({**row, "mean": entry[f"{key}/mean"], **ends})
    if not values:
        return None
    names = list(dict.fromkeys(row["series"] for row in values))
    head = {
        "series": "training",
        "step": "step",
        "mean": "mean, nats",
        "low": "5 %",
        "high": "95 %",
    }
    x, colour = quantity("step", "optimiser step"), series("series", names)
    title = "log π(chosen) - log π(rejected), nats"
    band = {
        "mark": {"type": "area", "opacity": 0.14},
        "encoding": {
            "x": x,
            "y": quantity("low", title),
            "y2": {"field": "high"},
            "color": colour,
        },
    }
    line = {
        "mark": {"type": "line", "point": {"size": 25}},
        "encoding": {
            "x": x,
            "y": quantity("mean", title),
            "color": colour,
            "tooltip": tooltips(head),
        },
    }
    moved = [
        f"{name}: {own[0]['mean']:.3g} to {own[-1]['mean']:.3g}"
        for name in names
        for own in [[row for row in values if row["series"] == name]]
    ]
    alt = "Intra-diversity over training, mean and 5 to 95 % range. " + "; ".join(moved) + "."
    spec = chart(values, band, line)
    return Chart("intra-diversity", "Intra-diversity", alt, spec, chart_values(values, head))


def distinct_words(runs: Sequence[Run]) -> Chart | None:
    """Distinct-1 and distinct-2 of the held-out answers, by iteration."""
    values: Rows = []
    for run in runs:
        for place, each in enumerate(run.evaluations):
            at = {each.model: each.iteration}
            if place == 0 and run.command == "align":
                at = {each.baseline: 0, **at}
            for model, iteration in at.items():
                for size, share in enumerate(each.distinct.get(model, ()), start=1):
                    name = f"distinct-{size}"
                    series_name = f"{run.name}: {name}" if len(runs) > 1 else name
                    row = {"series": series_name, "iteration": iteration, "model": model}
                    values.append({**row, "share": round(share, 5)})
    if not values:
        return None
    names = list(dict.fromkeys(row["series"] for row in values))
    head = {"series": "figure", "iteration": "iteration", "model": "model", "share": "share"}
    line = {
        "mark": {"type": "line", "point": {"size": 60}},
        "encoding": {
            "x": iterations(values),
            "y": quantity("share", "share of different n-grams", scale={"zero": True}),
            "color": series("series", names),
            "tooltip": tooltips(head),
        },
    }
    told = "; ".join(f"{r['series']}, {r['model']}: {r['share']:.3f}" for r in values)
    alt = f"Share of different 1-grams and 2-grams among all held-out answers of a policy. {told}."
    spec = chart(values, line)
    title = "Diversity of the held-out answers"
    return Chart("distinct", title, alt, spec, chart_values(values, head))


def followed(run: Run) -> list[tuple[int, str, Dynamics]]:
    """The recorded dynamics of a run: iteration, set, record."""
    return [
        (each.iteration, name, each.dynamics)
        for each in run.trainings
        if each.dynamics is not None
        for name in each.dynamics.sets
    ]


def group_table(metrics: Mapping[str, float], name: str) -> list[list[Any]]:
    """Share, mean loss and mean margin of each flip group at one step."""
    key = f"{prefix_of(name)}flips"
    return [
        [
            told,
            *(
                metrics.get(f"{key}/{metric_name(group)}/{kind}")
                for kind in ("share", "loss", "margins")
            ),
        ]
        for group, told in GROUPS.items()
    ]
