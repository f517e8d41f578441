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
from prefstage.training.dynamics.pairs import metric_name
from prefstage.training.dynamics.records import ABOUT, read_dynamics, read_metrics

FORMATS = ("png", "svg")
# Okabe and Ito's colours, which differ with any colour vision: what stays right or wrong is
# blue or red, what changed is light blue or orange.
GROUP_COLOURS = dict(zip(FLIP_GROUPS, ("#0072B2", "#E69F00", "#56B4E9", "#D55E00"), strict=True))
RIGHT, WRONG, LINE = "#0072B2", "#D55E00", "#222222"
_CURVE_POINTS = 400
_DOTS_PER_INCH = 130
_DOTTED = {"marker": "o", "ms": 3.5}


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


def _known(what: str, wanted: Any, recorded: list[Any], *, default: int) -> Any:
    if wanted is None:
        return recorded[default]
    if wanted not in recorded:
        raise InputError.of(
            saw=f"{what} {wanted!r}",
            expected=f"one of {', '.join(map(str, recorded))}",
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
        for group, colour in GROUP_COLOURS.items():
            series = _series(metrics, f"{prefix}flips/{metric_name(group)}/{kind}")
            panel.plot(*series, **_DOTTED, color=colour, label=group.replace("->", " → "))
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
    for panel, key, look in (
        (accuracy, f"{prefix}rankings/accuracy", {"label": "ranking accuracy R"}),
        (accuracy, f"{prefix}rankings/normalised_accuracy", {"label": "length-normalised R̃"}),
        (accuracy, f"{prefix}rewards/accuracies", {"label": "reward accuracy"}),
        (likelihood, f"{prefix}displacement/chosen", {"label": "chosen", "color": RIGHT}),
        (likelihood, f"{prefix}displacement/rejected", {"label": "rejected", "color": WRONG}),
        (diversity, f"{prefix}intra_diversity/mean", {"label": "mean"}),
        (distance, "dynamics/weight_distance", {"color": LINE}),
    ):
        panel.plot(*_series(metrics, key), **_DOTTED, **look)
    accuracy.set_ylim(0, 1)
    likelihood.axhline(0, color=LINE, lw=0.6)
    steps, low = _series(metrics, f"{prefix}intra_diversity/q05")
    _, high = _series(metrics, f"{prefix}intra_diversity/q95")
    diversity.fill_between(steps, low, high, alpha=0.2, lw=0, label="5 to 95 % of the pairs")
    _finish(accuracy, "accuracies", legend=True)
    _finish(likelihood, "change of mean log π(y|x) since the reference (nats)", legend=True)
    _finish(diversity, "intra-diversity: log π(y_w|x) − log π(y_l|x) (nats)", legend=True)
    _finish(distance, "distance of the weights from the start")
    figure.suptitle(f"Dynamics ({name})")
    return figure


# Steps and values of a metric; a group without a pair has none at that step.
def _series(metrics: list[dict[str, float]], key: str) -> tuple[list[float], list[float]]:
    points = [(entry["step"], entry[key]) for entry in metrics if key in entry]
    return [step for step, _ in points], [value for _, value in points]


def _finish(panel: Any, title: str, *, legend: bool = False) -> None:
    panel.set_title(title, fontsize=10)
    panel.set_xlabel("optimiser step")
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(alpha=0.2)
    if legend:
        panel.legend(frameon=False)


def _save(figure: Any, path: Path) -> Path:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=_DOTS_PER_INCH)
    return path
