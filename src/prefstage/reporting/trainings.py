"""Trainings: loss, what they did to the rankings of fixed pairs, intra-diversity."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from prefstage.core import DataError, PrefstageError, parse_yaml
from prefstage.data import ReadOptions, load_pairs
from prefstage.diagnosing.flips import (
    FLIP_GROUPS,
    LEARNABILITY_GROUPS,
    fluctuation_range,
    learnability_groups,
)
from prefstage.diagnosing.numbers import histogram
from prefstage.reporting.blocks import (
    Chart,
    Row,
    Section,
    Table,
    charts,
    layer,
    percent,
    quantity,
    rule_at,
    series,
    series_of,
    table_of,
)
from prefstage.reporting.runs import (
    Dynamics,
    PairRows,
    Part,
    Run,
    label,
    labelled,
    read_if_there,
    rows_of,
    with_dynamics,
)
from prefstage.training.dynamics.criterion import Criterion
from prefstage.training.dynamics.pairs import metric_key
from prefstage.training.dynamics.records import ABOUT, best_step, read_dynamics, read_metrics
from prefstage.training.export import describe_exported, describe_steps
from prefstage.training.recipe_run import DYNAMICS, HISTORY

GROUPS = dict(
    zip(FLIP_GROUPS, ("right, kept", "right → wrong", "wrong → right", "wrong, kept"), strict=True)
)
_GROUP_COLOURS = series("group", list(GROUPS.values()), ("@right", "@lost", "@won", "@wrong"))
TRAIN_SET = "train"
_CURVE = 120
_POINTS = 2000


def read_trained(part: Part) -> dict[str, Any]:
    """A training's history, and the dynamics of its pairs."""
    folder, result = part.folder, part.result
    return {
        "history": read_if_there(folder / HISTORY).get("history", ()),
        "dynamics": _read_dynamics(folder / DYNAMICS, result.get("exported_step", result["steps"]))
        if (folder / DYNAMICS / ABOUT).is_file()
        else None,
    }


def _read_dynamics(folder: Path, exported: int) -> Dynamics:
    # Not the last record, but that of the model that was exported: the best checkpoint may be
    # long before the end, and a page shows what users got.
    about, table = read_if_there(folder / ABOUT), read_dynamics(folder)
    table = table.filter(pc.less_equal(table["step"], exported))
    metrics = [entry for entry in read_metrics(folder) if entry["step"] <= exported]
    return Dynamics(
        criterion=Criterion.of(about),
        best=best_step(metrics, about["sets"]),
        sets=list(about["sets"]),
        metrics=metrics,
        last=table.filter(pc.equal(table["step"], pc.max(table["step"]))),
    )


def followed_pairs(run: Run) -> tuple[list[PairRows], list[tuple[str, str]]]:
    """The pairs whose dynamics a `prefstage train` recorded, read where its data lie.

    Args:
        run: The run.

    Returns:
        The pairs of every set, and what cannot be shown: what, and why.
    """
    settings = parse_yaml(run.config) or {}
    pairs, lacks = list[PairRows](), list[tuple[str, str]]()
    dynamics = run.of("train")[0].dynamics
    for name, source in {TRAIN_SET: settings.get("data"), **(settings.get("eval") or {})}.items():
        table = dynamics and dynamics.of(name)
        if source and table:
            try:
                pairs.append(_followed(source, table, f"{name}: followed pairs"))
            except PrefstageError as error:
                lacks.append((f"the texts of the followed pairs ({name})", str(error)))
    return pairs, lacks


def _followed(source: Row, dynamics: pa.Table, title: str) -> PairRows:
    rows, wanted = (
        load_pairs(
            source["path"],
            **{name: source[name] for name in ReadOptions.model_fields if source.get(name)},
        ),
        dynamics["pair"].to_pylist(),
    )
    known = rows.dataset.select([k for k in wanted if k < len(rows)]).with_format("arrow")[:]
    # Files change after a training: pairs are shown only if they are those that were followed.
    DataError.unless(
        known["prompt_id"].to_pylist() == dynamics["prompt_id"].to_pylist(),
        saw=f"{source['path']} holds other pairs than those that were trained on",
        expected="the training data",
        cure="train again to see them",
    )
    return with_dynamics(rows_of(known, title), dynamics, range(len(known)))


def training_section(runs: Sequence[Run]) -> Section:
    """Steps, losses and notes of all trainings."""
    trainings = [(name, part.result) for name, part in labelled(runs, "train")]
    exports = ((name, describe_exported(result)) for name, result in trainings)
    return Section(
        "training",
        "Training",
        charts=(*_losses(runs), *_rewards(runs)),
        tables=table_of(
            "Trainings",
            [
                {
                    "training": name,
                    "items": result["items"],
                    "epochs": result["epochs"],
                    "steps": describe_steps(result),
                    "tokens": result["tokens"],
                    "mean loss": result["train_loss"],
                    "first": result["first_loss"],
                    "last": result["last_loss"],
                }
                for name, result in trainings
            ],
        ),
        notes=(
            *(f"{name}: {note}" for name, result in trainings for note in result["notes"]),
            *(f"{name}: exported: {export}" for name, export in exports if export is not None),
        ),
    )


def _losses(runs: Sequence[Run]) -> tuple[Chart, ...]:
    values = [
        {
            "series": name,
            "step": line["step"],
            "loss": line["loss"],
            "accuracy": line.get("rewards/accuracies"),
        }
        for name, part in labelled(runs, "train")
        for line in part.history
        if "loss" in line
    ]
    head = {"series": "training", "step": "step", "loss": "loss", "accuracy": "reward accuracy"}
    return charts(
        "loss",
        "Training loss",
        f"Training loss by optimiser step. {_from_first_to_last(values, 'loss')}.",
        values,
        head,
        layer(
            {"type": "line", "point": {"size": 20}},
            head,
            x=quantity("step", "optimiser step", axis={"tickMinStep": 1}),
            y=quantity("loss", "training loss"),
            color=series_of("series", values),
        ),
    )


# Of both sides of the pairs: whether training lifts the chosen ones or pushes the rejected down.
def _rewards(runs: Sequence[Run]) -> tuple[Chart, ...]:
    values = [
        {"series": name, "side": side, "step": line["step"], "reward": line[f"rewards/{side}"]}
        for name, part in labelled(runs, "train")
        for line in part.history
        for side in ("chosen", "rejected")
        if f"rewards/{side}" in line
    ]
    head = {"series": "training", "side": "response", "step": "step", "reward": "mean reward"}
    return charts(
        "rewards",
        "Rewards",
        "Mean reward of the chosen (drawn through) and of the rejected responses (dashed) by "
        "optimiser step, each loss's own.",
        values,
        head,
        layer(
            {"type": "line", "point": {"size": 14}},
            head,
            x=quantity("step", "optimiser step", axis={"tickMinStep": 1}),
            y=quantity("reward", "mean reward"),
            color=series_of("series", values),
            strokeDash={"field": "side", "type": "nominal", "title": "response"},
        ),
    )


# The values of a field, by series.
def _courses(values: Sequence[Row], field: str) -> dict[str, list[float]]:
    courses = dict[str, list[float]]()
    for row in values:
        courses.setdefault(row["series"], []).append(row[field])
    return courses


def _from_first_to_last(values: Sequence[Row], field: str) -> str:
    return "; ".join(
        f"{name}: {course[0]:.3g} to {course[-1]:.3g}"
        for name, course in _courses(values, field).items()
    )


def dynamics_section(runs: Sequence[Run]) -> Section:
    """Flip dynamics, and the loss against the reference log-ratio with the threshold."""
    drawn, table = list[Chart](), list[Table]()
    for number, run in enumerate(runs, start=1):
        for part, dynamics in ((p, p.dynamics) for p in run.of("train") if p.dynamics):
            for name in dynamics.sets:
                where = f"{label(run, part, runs)}, {name} pairs"
                anchor = f"{number}-{part.iteration}-{name}"
                drawn += _flips(dynamics, name, f"Flip groups: {where}", anchor)
                drawn += _threshold(
                    dynamics, name, f"Loss against the reference log-ratio: {where}", anchor
                )
                last = dynamics.metrics[-1]
                table += table_of(
                    f"{where}, step {last['step']:.0f}",
                    [
                        {
                            "group": group["group"],
                            "share": percent(group["share"]),
                            f"mean {dynamics.criterion.name} loss": group["loss"],
                            "mean margin": group["margins"],
                        }
                        for group in _groups(last, name)
                    ],
                )
                drawn += _learnability(dynamics, name, f"Learnability: {where}", anchor)
                drawn += _distance(dynamics, name, f"Distance and ranking: {where}", anchor)
    return Section(
        "dynamics",
        "What training did to the rankings",
        "How the reference and the policy rank the followed pairs: right means that the chosen "
        "response is at least as likely. A pair is ranked rightly if and only if its DPO loss is "
        "at most -log σ(βc), c the reference log-ratio log π_ref(rejected) - log π_ref(chosen): "
        "points above the curve are ranked wrongly, however small their loss. Of an IPO training "
        "its own loss is shown, and (1/(2τ) - c)²: below it a pair is ranked rightly, above it "
        "either order is possible.",
        tuple(drawn),
        tuple(table),
    )


def _groups(entry: Mapping[str, float], name: str) -> list[dict[str, Any]]:
    return [
        {"group": words}
        | {k: entry.get(metric_key(name, "flips", group, k)) for k in ("share", "loss", "margins")}
        for group, words in GROUPS.items()
    ]


def _flips(dynamics: Dynamics, name: str, title: str, anchor: str) -> tuple[Chart, ...]:
    values = [
        {"step": entry["step"], **group, "order": order}
        for entry in dynamics.metrics
        for order, group in enumerate(_groups(entry, name))
        if group["share"] is not None
    ]
    head = {
        "step": "step",
        "group": "group",
        "share": "share",
        "loss": f"mean {dynamics.criterion.name} loss",
        "margins": "mean margin",
    }
    best = "" if dynamics.best is None else f"; lowest held-out loss at step {dynamics.best}"
    last = [row for row in values if row["step"] == values[-1]["step"]]
    shares = ", ".join(f"{row['group']} {100 * row['share']:.1f} %" for row in last)
    return charts(
        f"flips-{anchor}",
        title + best,
        f"Shares of the four flip groups over training. At the last step: {shares}{best}.",
        values,
        head,
        layer(
            {"type": "area", "opacity": 0.85},
            head,
            x=quantity("step", "optimiser step"),
            y=quantity("share", "share of pairs", stack="zero", axis={"format": "%"}),
            color=_GROUP_COLOURS,
            order={"field": "order"},
        ),
        *([] if dynamics.best is None else [rule_at(dynamics.best, axis="x")]),
    )


# How many pairs the reference makes hard, easy or easy to flip, by its log-ratio c.
def _learnability(dynamics: Dynamics, name: str, title: str, anchor: str) -> tuple[Chart, ...]:
    ratios = dynamics.of(name)["reference_log_ratio"].to_numpy()
    groups = learnability_groups(torch.from_numpy(np.array(ratios))).numpy()
    edges = histogram(ratios)["edges"] if len(ratios) else []
    values = [
        {"from": low, "to": high, "group": group, "pairs": int(count)}
        for number, group in enumerate(LEARNABILITY_GROUPS)
        for low, high, count in zip(
            *(edges, edges[1:], np.histogram(ratios[groups == number], bins=edges)[0]),
            strict=False,
        )
        if count
    ]
    counts = Counter(LEARNABILITY_GROUPS[number] for number in groups)
    said = ", ".join(f"{group}: {counts[group]}" for group in LEARNABILITY_GROUPS)
    head = {"from": "c from, nats", "to": "to", "group": "learnability", "pairs": "pairs"}
    return charts(
        f"learnability-{anchor}",
        title,
        f"Pairs by the reference log-ratio c and what it makes of them. {said}. Their texts, loss "
        "and c are in the explorer, which sorts by c.",
        values,
        head,
        layer(
            {"type": "bar"},
            head,
            x=quantity("from", "reference log-ratio c, nats", bin="binned"),
            x2={"field": "to"},
            y=quantity("pairs", "pairs", stack="zero"),
            color=series_of("group", values),
        ),
    )


# Ranking accuracy, and the win rate where it was measured, by the distance of the weights.
def _distance(dynamics: Dynamics, name: str, title: str, anchor: str) -> tuple[Chart, ...]:
    moved = "dynamics/weight_distance"
    values = [
        {"distance": entry[moved], "step": entry["step"], "figure": words, "share": entry[key]}
        for key, words in {
            metric_key(name, "rankings/accuracy"): "ranking accuracy",
            "dynamics/win_rate": "win rate over the start",
        }.items()
        for entry in dynamics.metrics
        if moved in entry and key in entry
    ]
    head = {"step": "step", "distance": "distance", "figure": "figure", "share": "share"}
    best = [entry.get(moved) for entry in dynamics.metrics if entry["step"] == dynamics.best]
    return charts(
        f"distance-{anchor}",
        title,
        "Ranking accuracy, and the win rate over the start if it was measured, by how far the "
        "weights have moved. The dashed line is at the lowest held-out loss.",
        values,
        head,
        layer(
            {"type": "line", "point": {"size": 25}},
            head,
            x=quantity("distance", "distance of the weights from the start"),
            y=quantity("share", "share", axis={"format": "%"}),
            color=series_of("figure", values),
            order={"field": "step"},
        ),
        *(rule_at(at, axis="x") for at in best if at is not None),
    )


# Each pair's loss against its reference log-ratio, and the threshold's curve.
def _threshold(dynamics: Dynamics, name: str, title: str, anchor: str) -> tuple[Chart, ...]:
    rows, criterion = dynamics.of(name), dynamics.criterion
    columns: dict[str, Any] = {n: rows[n].to_pylist() for n in rows.column_names}
    points: list[dict[str, Any]] = [
        {"ratio": float(f"{c:.5g}"), "loss": float(f"{loss:.5g}"), "group": GROUPS[group]}
        for c, loss, group in zip(
            *(criterion.points(columns)[0], columns["loss"], columns["group"]), strict=True
        )
    ][:_POINTS]
    ratios = [point["ratio"] for point in points] or [0.0]
    reach = np.linspace(min(ratios), max(ratios), _CURVE + 1)
    unit = "nats a token" if criterion.per_token else "nats"
    loss_name = f"{criterion.name} loss"
    head = {"ratio": f"c, {unit}", "loss": loss_name, "group": "group"}
    x, y = quantity("ratio", f"reference log-ratio c, {unit}"), quantity("loss", loss_name)
    groups = [point["group"] for point in points]
    part = "" if len(rows) <= _POINTS else f" The first {_POINTS:,} of {len(rows):,} pairs."
    counts = ", ".join(f"{group}: {groups.count(group)}" for group in GROUPS.values())
    return charts(
        f"threshold-{anchor}",
        title + part,
        f"{loss_name} against the reference log-ratio c with the threshold {criterion.formula}, at "
        f"or below which a pair is ranked rightly. {counts}.{part}",
        points,
        head,
        layer(
            {"type": "point", "opacity": 0.7, "size": 22},
            head,
            x=x,
            y=y,
            color=_GROUP_COLOURS,
        ),
        {
            "data": {
                "values": [
                    {"ratio": c, "loss": threshold}
                    for c, threshold in zip(
                        *(reach.tolist(), criterion.curve(reach).tolist()), strict=True
                    )
                    if math.isfinite(threshold)
                ]
            },
            **layer({"type": "line", "color": "@ink", "strokeWidth": 1.5}, x=x, y=y),
        },
        height=320,
    )


def intra_diversity(runs: Sequence[Run]) -> tuple[tuple[Chart, ...], tuple[Table, ...]]:
    """Mean of log π(chosen) - log π(rejected) of each training's first set over the training.

    Args:
        runs: The runs.

    Returns:
        The chart with its 5 to 95 % range, and its table.
    """
    recorded = list[dict[str, Any]]()
    for name, dynamics in ((n, p.dynamics) for n, p in labelled(runs, "train") if p.dynamics):
        key = metric_key(dynamics.sets[0], "intra_diversity")
        recorded += [
            {
                "series": name,
                "step": entry["step"],
                "mean": entry[f"{key}/mean"],
                "low": entry.get(f"{key}/q05"),
                "high": entry.get(f"{key}/q95"),
            }
            for entry in dynamics.metrics
            if f"{key}/mean" in entry
        ]
    values = [row for row in recorded if math.isfinite(row["mean"])]
    head = {
        "series": "training",
        "step": "step",
        "mean": "mean, nats",
        "low": "5 %",
        "high": "95 %",
    }
    x, colour = quantity("step", "optimiser step"), series_of("series", values)
    mean, low = (
        quantity(field, "log π(chosen) - log π(rejected), nats") for field in ("mean", "low")
    )
    chart = charts(
        "intra-diversity",
        "Intra-diversity",
        "Intra-diversity over training, mean and 5 to 95 % range. "
        f"{_from_first_to_last(values, 'mean')}.",
        values,
        head,
        layer({"type": "area", "opacity": 0.14}, x=x, y=low, y2={"field": "high"}, color=colour),
        layer({"type": "line", "point": {"size": 25}}, head, x=x, y=mean, color=colour),
    )
    return chart, table_of(
        "Intra-diversity",
        [
            {
                "training": name,
                "first mean, nats": means[0],
                "last": means[-1],
                "fluctuation range": fluctuation_range(means),
            }
            for name, means in _courses(recorded, "mean").items()
        ],
    )
