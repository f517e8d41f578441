"""Pictures of recorded dynamics: flips, thresholds, trajectories, and how far the weights went."""

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prefstage.core import InputError, MissingDependencyError, atomic_path, read_json
from prefstage.diagnosing.flips import FLIP_GROUPS
from prefstage.training.dynamics.criterion import Criterion
from prefstage.training.dynamics.pairs import metric_key
from prefstage.training.dynamics.records import ABOUT, best_step, read_dynamics, read_metrics

FORMATS = ("png", "svg")
# Okabe and Ito's colours, which differ with any colour vision: what stays right or wrong is
# blue or red, what changed is light blue or orange.
GROUP_COLOURS = dict(zip(FLIP_GROUPS, ("#0072B2", "#E69F00", "#56B4E9", "#D55E00"), strict=True))
RIGHT, WRONG, LINE = "#0072B2", "#D55E00", "#222222"
_CURVE_POINTS = 400
_DOTS_PER_INCH = 130
_DISTANCE, _WIN_RATE = "dynamics/weight_distance", "dynamics/win_rate"


def draw_dynamics(
    folder: str | Path,
    *,
    out: str | Path | None = None,
    set_name: str | None = None,
    step: int | None = None,
    win_rates: Mapping[int, float] | None = None,
    formats: Sequence[str] = FORMATS,
) -> list[Path]:
    """Draw what a `DynamicsCallback` recorded.

    - ``flips``: share, mean DPO loss and mean reward margin of the four groups over training.
    - ``threshold``: each pair's DPO loss against its reference log-ratio c, and the curve
      -log σ(βc): a pair is ranked rightly if and only if it is not above the curve.
      Of an IPO training its own loss and threshold, which guarantees and does not decide.
    - ``trajectories``: ranking and reward accuracy, mean log-probs, intra-diversity,
      distance of the weights.
    - ``distance``: ranking accuracy, and the win rate over the start if it was measured,
      against the distance of the weights; left out where that was not measured.

    A dashed line stands at the step of the lowest loss on held-out pairs, if any were followed.

    Args:
        folder: `out` of the callback.
        out: Where the pictures go; None for ``figures`` in `folder`.
        set_name: Which set; None for the first ("train" where there is one).
        step: Of the threshold picture; None for that of the lowest held-out loss, or the last.
        win_rates: Of checkpoints, by step, in [0, 1], where the training measured none itself.
        formats: File formats, as matplotlib names them.

    Returns:
        The files, ``NAME-SET.FORMAT``.

    Raises:
        InputError: If there is no such set or step.
        DataError: If nothing is recorded there.
        MissingDependencyError: If matplotlib is not installed.

    Source:
        Chen et al. 2024, arXiv:2405.19534, Figures 2 to 9 and 11; Sun et al. 2025,
        arXiv:2508.10530, Figure 3 (intra-diversity).
    """
    with MissingDependencyError.instead_of(
        ImportError,
        saw="no package matplotlib",
        expected="matplotlib, which draws",
        cure="pip install 'prefstage[plots]'",
    ):
        from matplotlib.figure import Figure
    source = Path(folder)
    table, metrics = read_dynamics(source), read_metrics(source)
    about = read_json(source / ABOUT)
    for entry in metrics:
        if win_rates and int(entry["step"]) in win_rates:
            entry[_WIN_RATE] = win_rates[int(entry["step"])]
    name = _known("set", set_name, list(about["sets"]), default=0)
    best = best_step(metrics, about["sets"])
    steps = [int(entry["step"]) for entry in metrics]
    moment = _known("step", best if step is None else step, steps, default=-1)
    pairs = table.filter(pc.and_(pc.equal(table["set"], name), pc.equal(table["step"], moment)))
    files = list[Path]()
    criterion = Criterion.of(about)
    figures = {
        "flips": _flips(Figure, metrics, name, criterion, best),
        "threshold": _threshold(Figure, pairs, criterion, f"{name}, step {moment}"),
        "trajectories": _trajectories(Figure, metrics, name, best),
    }
    if any(_DISTANCE in entry for entry in metrics):
        figures["distance"] = _distance(Figure, metrics, name, best)
    for (kind, figure), form in product(figures.items(), formats):
        files.append(Path(out or source / "figures") / f"{kind}-{name}.{form}")
        with atomic_path(files[-1]) as temporary:
            figure.savefig(temporary, dpi=_DOTS_PER_INCH)
    return files


def _known(what: str, wanted: Any, recorded: list[Any], *, default: int) -> Any:
    if wanted is None:
        return recorded[default]
    InputError.unless(
        wanted in recorded,
        saw=f"{what} {wanted!r}",
        expected=f"one of {', '.join(map(str, recorded))}",
        cure=f"leave {what} out, or name a recorded one",
    )
    return wanted


# A panel a title, with a line a metric: as `_series` gives it, in its look.
def _line_panels(
    figure_type: Any,
    metrics: list[dict[str, float]],
    lines: Mapping[str, Mapping[str, dict[str, str]]],
    *,
    size: tuple[float, float],
    shape: tuple[int, int],
    best: int | None,
) -> tuple[Any, list[Any]]:
    figure = figure_type(figsize=size, layout="constrained")
    panels = list(figure.subplots(*shape, subplot_kw={"xlabel": "optimiser step"}).flat)
    for panel, (title, looks) in zip(panels, lines.items(), strict=True):
        for metric, look in looks.items():
            panel.plot(*_series(metrics, metric), marker="o", ms=3.5, **look)
        if best is not None:
            panel.axvline(best, color=LINE, lw=0.9, ls="--", label="lowest held-out loss")
        panel.set_title(title, fontsize=10)
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(alpha=0.2)
    return figure, panels


def _flips(
    figure_type: Any,
    metrics: list[dict[str, float]],
    name: str,
    criterion: Criterion,
    best: int | None,
) -> Any:
    figure, panels = _line_panels(
        figure_type,
        metrics,
        {
            title: {
                metric_key(name, "flips", group, kind): {
                    "color": colour,
                    "label": group.replace("->", " → "),
                }
                for group, colour in GROUP_COLOURS.items()
            }
            for kind, title in {
                "share": "share of pairs",
                "loss": f"mean {criterion.name} loss",
                "margins": "mean reward margin",
            }.items()
        },
        size=(12, 3.6),
        shape=(1, 3),
        best=best,
    )
    panels[0].set_ylim(0, 1)
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False
    )
    figure.suptitle(f"Ranking by reference → by policy ({name})")
    return figure


def _threshold(figure_type: Any, pairs: pa.Table, criterion: Criterion, title: str) -> Any:
    figure = figure_type(figsize=(12, 4.4), layout="constrained")
    linear, logarithmic = figure.subplots(1, 2, sharex=True)
    columns = {name: pairs[name].to_numpy() for name in pairs.column_names}
    (c, correct), loss = criterion.points(columns), columns["loss"]
    unit = "nats a token" if criterion.per_token else "nats"
    reach = np.linspace(min(c.min(), 0.0), max(c.max(), 0.0), _CURVE_POINTS)
    for panel in (linear, logarithmic):
        for right, colour, label in (
            (True, RIGHT, "ranked rightly"),
            (False, WRONG, "ranked wrongly"),
        ):
            chosen = correct == right
            panel.scatter(
                c[chosen],
                loss[chosen],
                s=14,
                color=colour,
                alpha=0.7,
                lw=0,
                label=f"{label} ({int(chosen.sum())})",
            )
        panel.plot(
            *(reach, criterion.curve(reach), "--"),
            color=LINE,
            label=f"threshold {criterion.formula}",
        )
        panel.axvline(0, color=LINE, lw=0.6, alpha=0.4)
        panel.set_xlabel(f"reference log-ratio c ({unit}); right of 0 the reference is wrong")
        panel.spines[["top", "right"]].set_visible(False)
    linear.set(ylabel=f"{criterion.name} loss", ylim=(0, None))
    linear.legend(frameon=False)
    logarithmic.set_yscale("log")
    figure.suptitle(f"Loss against the flip threshold ({title})")
    return figure


def _trajectories(
    figure_type: Any, metrics: list[dict[str, float]], name: str, best: int | None
) -> Any:
    figure, panels = _line_panels(
        figure_type,
        metrics,
        {
            "accuracies": {
                metric_key(name, "rankings/accuracy"): {"label": "ranking accuracy R"},
                metric_key(name, "rankings/normalised_accuracy"): {"label": "length-normalised R̃"},
                metric_key(name, "rewards/accuracies"): {"label": "reward accuracy"},
                _WIN_RATE: {"label": "win rate over the start"},
            },
            "change of mean log π(y|x) since the reference (nats)": {
                metric_key(name, "displacement/chosen"): {"label": "chosen", "color": RIGHT},
                metric_key(name, "displacement/rejected"): {"label": "rejected", "color": WRONG},
            },
            "intra-diversity: log π(y_w|x) − log π(y_l|x) (nats)": {
                metric_key(name, "intra_diversity/mean"): {"label": "mean"}
            },
            "distance of the weights from the start": {_DISTANCE: {"color": LINE}},
        },
        size=(12, 7),
        shape=(2, 2),
        best=best,
    )
    accuracy, likelihood, diversity, _ = panels
    accuracy.set_ylim(0, 1)
    likelihood.axhline(0, color=LINE, lw=0.6)
    steps, low = _series(metrics, metric_key(name, "intra_diversity/q05"))
    _, high = _series(metrics, metric_key(name, "intra_diversity/q95"))
    diversity.fill_between(steps, low, high, alpha=0.2, lw=0, label="5 to 95 % of the pairs")
    for panel in panels[:3]:
        panel.legend(frameon=False)
    figure.suptitle(f"Dynamics ({name})")
    return figure


# Ranking accuracy and win rate against the distance that the weights have moved.
def _distance(
    figure_type: Any, metrics: list[dict[str, float]], name: str, best: int | None
) -> Any:
    figure = figure_type(figsize=(6.4, 4.4), layout="constrained")
    panel = figure.subplots()
    moved = {entry["step"]: entry[_DISTANCE] for entry in metrics if _DISTANCE in entry}
    for key, label, colour in (
        (metric_key(name, "rankings/accuracy"), f"ranking accuracy R ({name})", RIGHT),
        (_WIN_RATE, "win rate over the start", WRONG),
    ):
        steps, values = _series([e for e in metrics if e["step"] in moved], key)
        if steps:
            where = [moved[step] for step in steps]
            panel.plot(where, values, marker="o", ms=4, color=colour, label=label)
    if best in moved:
        panel.axvline(moved[best], color=LINE, lw=0.9, ls="--", label="lowest held-out loss")
    panel.set(xlabel="distance of the weights from the start", ylabel="share")
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(alpha=0.2)
    panel.legend(frameon=False)
    figure.suptitle(f"Ranking accuracy and win rate by distance ({name})")
    return figure


# Steps and values of a metric; a group without a pair has none at that step.
def _series(metrics: list[dict[str, float]], key: str) -> tuple[list[float], list[float]]:
    points = [(entry["step"], entry[key]) for entry in metrics if key in entry]
    return [step for step, _ in points], [value for _, value in points]
