"""Pictures of recorded dynamics: flips over training, loss against threshold, trajectories."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prefstage.core.errors import InputError, MissingDependencyError
from prefstage.core.files import atomic_path
from prefstage.diagnosing.flips import FLIP_GROUPS
from prefstage.training.dynamics_measures import metric_name
from prefstage.training.dynamics_store import ABOUT, read_dynamics, read_metrics

FORMATS = ("png", "svg")
# Okabe and Ito's colours, told apart with any colour vision: what stays right or wrong is
# blue or red, what changed is light blue or orange.
GROUP_COLOURS = dict(zip(FLIP_GROUPS, ("#0072B2", "#E69F00", "#56B4E9", "#D55E00"), strict=True))
RIGHT, WRONG, LINE = "#0072B2", "#D55E00", "#222222"
_CURVE_POINTS = 400
_DOTS_PER_INCH = 130


def draw_dynamics(
    folder: str | Path,
    *,
    out: str | Path | None = None,
    set_name: str | None = None,
    step: int | None = None,
    formats: Sequence[str] = FORMATS,
) -> list[Path]:
    """Draw what a `DynamicsCallback` recorded.

    - ``flips``: share, mean DPO loss and mean reward margin of the four groups over training.
    - ``threshold``: each pair's DPO loss against its reference log-ratio c, and the curve
      -log σ(βc): a pair is ranked rightly if and only if it is not above the curve.
    - ``trajectories``: ranking and reward accuracy, mean log-probs, intra-diversity,
      distance of the weights.

    Args:
        folder: `out` of the callback.
        out: Where the pictures go; None for ``figures`` in `folder`.
        set_name: Which set; None for the first ("train" where there is one).
        step: Of the threshold picture; None for the last one recorded.
        formats: File formats, as matplotlib names them.

    Returns:
        The files, ``NAME-SET.FORMAT``.

    Raises:
        InputError: If there is no such set or step.
        DataError: If nothing is recorded there.
        MissingDependencyError: If matplotlib is not installed.

    Source:
        Chen et al. 2024, arXiv:2405.19534, Figures 2 and 3; Sun et al. 2025,
        arXiv:2508.10530, Figure 3 (intra-diversity).
    """
    figure_type = _figure_type()
    source = Path(folder)
    table, metrics = read_dynamics(source), read_metrics(source)
    about = json.loads((source / ABOUT).read_text(encoding="utf-8"))
    name = _known("set", set_name, list(about["sets"]), default=0)
    moment = _known("step", step, [int(entry["step"]) for entry in metrics], default=-1)
    prefix = "dynamics/" if name == "train" else f"{name}_dynamics/"
    pairs = table.filter(pc.and_(pc.equal(table["set"], name), pc.equal(table["step"], moment)))
    figures = {
        "flips": _flips(figure_type, metrics, prefix, name),
        "threshold": _threshold(figure_type, pairs, float(about["beta"]), f"{name}, step {moment}"),
        "trajectories": _trajectories(figure_type, metrics, prefix, name),
    }
    target = source / "figures" if out is None else Path(out)
    return [
        _save(figure, target / f"{kind}-{name}.{form}")
        for kind, figure in figures.items()
        for form in formats
    ]


def _figure_type() -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError.of(
            saw="no package matplotlib",
            expected="matplotlib, which draws",
            cure="pip install 'prefstage[plots]'",
        ) from error
    return Figure


def _known(what: str, wanted: Any, there: list[Any], *, default: int) -> Any:
    if wanted is None:
        return there[default]
    if wanted not in there:
        raise InputError.of(
            saw=f"{what} {wanted!r}",
            expected=f"one of {', '.join(map(str, there))}",
            cure=f"leave {what} out, or name a recorded one",
        )
    return wanted


def _flips(figure_type: Any, metrics: list[dict[str, float]], prefix: str, name: str) -> Any:
    figure = figure_type(figsize=(12, 3.6), layout="constrained")
    panels = figure.subplots(1, 3)
    titles = {
        "share": "share of pairs",
        "loss": "mean DPO loss (nats)",
        "margins": "mean reward margin",
    }
    for panel, (kind, title) in zip(panels, titles.items(), strict=True):
        for group in FLIP_GROUPS:
            steps, values = _series(metrics, f"{prefix}flips/{metric_name(group)}/{kind}")
            label = group.replace("->", " → ")
            panel.plot(steps, values, "o-", ms=3.5, color=GROUP_COLOURS[group], label=label)
        _finish(panel, title)
    panels[0].set_ylim(0, 1)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    figure.suptitle(f"Ranking by reference → by policy ({name})")
    return figure


def _threshold(figure_type: Any, pairs: pa.Table, beta: float, title: str) -> Any:
    figure = figure_type(figsize=(12, 4.4), layout="constrained")
    linear, logarithmic = figure.subplots(1, 2, sharex=True)
    c, loss, correct = (
        pairs[column].to_numpy() for column in ("reference_log_ratio", "loss", "correct")
    )
    reach = np.linspace(min(c.min(), 0.0), max(c.max(), 0.0), _CURVE_POINTS)
    curve = np.logaddexp(0, -beta * reach)
    for panel in (linear, logarithmic):
        for right, colour, label in (
            (True, RIGHT, "ranked rightly"),
            (False, WRONG, "ranked wrongly"),
        ):
            chosen = correct == right
            text = f"{label} ({int(chosen.sum())})"
            panel.scatter(c[chosen], loss[chosen], s=14, color=colour, alpha=0.7, lw=0, label=text)
        panel.plot(reach, curve, "--", color=LINE, label="threshold −log σ(βc)")
        panel.axvline(0, color=LINE, lw=0.6, alpha=0.4)
        panel.set_xlabel("reference log-ratio c (nats); right of 0 the reference is wrong")
        panel.spines[["top", "right"]].set_visible(False)
    linear.set_ylabel("DPO loss (nats)")
    linear.set_ylim(bottom=0)
    linear.legend(frameon=False)
    logarithmic.set_yscale("log")
    figure.suptitle(f"Loss against the flip threshold ({title})")
    return figure


def _trajectories(figure_type: Any, metrics: list[dict[str, float]], prefix: str, name: str) -> Any:
    figure = figure_type(figsize=(12, 7), layout="constrained")
    accuracy, likelihood, diversity, distance = figure.subplots(2, 2).flat
    for key, label in (
        ("rankings/accuracy", "ranking accuracy R"),
        ("rankings/normalised_accuracy", "length-normalised R̃"),
        ("rewards/accuracies", "reward accuracy"),
    ):
        accuracy.plot(*_series(metrics, prefix + key), "o-", ms=3.5, label=label)
    accuracy.set_ylim(0, 1)
    accuracy.legend(frameon=False)
    _finish(accuracy, "accuracies")
    for side, colour in (("chosen", RIGHT), ("rejected", WRONG)):
        series = _series(metrics, f"{prefix}displacement/{side}")
        likelihood.plot(*series, "o-", ms=3.5, color=colour, label=side)
    likelihood.axhline(0, color=LINE, lw=0.6)
    likelihood.legend(frameon=False)
    _finish(likelihood, "change of mean log π(y|x) since the reference (nats)")
    steps, low = _series(metrics, f"{prefix}intra_diversity/q05")
    _, high = _series(metrics, f"{prefix}intra_diversity/q95")
    diversity.fill_between(steps, low, high, alpha=0.2, lw=0, label="5 to 95 % of the pairs")
    diversity.plot(*_series(metrics, f"{prefix}intra_diversity/mean"), "o-", ms=3.5, label="mean")
    diversity.legend(frameon=False)
    _finish(diversity, "intra-diversity: log π(y_w|x) − log π(y_l|x) (nats)")
    distance.plot(*_series(metrics, "dynamics/weight_distance"), "o-", ms=3.5, color=LINE)
    _finish(distance, "distance of the weights from the start")
    figure.suptitle(f"Dynamics ({name})")
    return figure


def _series(metrics: list[dict[str, float]], key: str) -> tuple[list[float], list[float]]:
    """Steps and values of a metric; a group without a pair has none at that step."""
    there = [entry for entry in metrics if key in entry]
    return [entry["step"] for entry in there], [entry[key] for entry in there]


def _finish(panel: Any, title: str) -> None:
    panel.set_title(title, fontsize=10)
    panel.set_xlabel("optimiser step")
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(alpha=0.2)


def _save(figure: Any, path: Path) -> Path:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=_DOTS_PER_INCH)
    return path
