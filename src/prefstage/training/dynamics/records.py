"""The folder that dynamics are recorded in, whole steps only, none of them twice; pictures of it.

Pictures: flips over training, loss against threshold, trajectories.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from prefstage.core import (
    DataError,
    InputError,
    MissingDependencyError,
    RunFolderError,
    atomic_path,
    read_json,
    write_json,
)
from prefstage.diagnosing.flips import FLIP_GROUPS
from prefstage.training.dynamics.pairs import PairSample, PairScores, metric_key

_log = logging.getLogger(__name__)

ABOUT, REFERENCE, PAIRS, METRICS = "about.json", "reference.parquet", "pairs", "metrics"
_ENDINGS = {PAIRS: ".parquet", METRICS: ".json"}

SCHEMA = pa.schema(
    [
        ("step", pa.int64()),
        ("set", pa.string()),
        ("pair", pa.int64()),
        ("prompt_id", pa.string()),
        ("chosen_tokens", pa.int32()),
        ("rejected_tokens", pa.int32()),
        ("chosen_log_prob", pa.float64()),
        ("rejected_log_prob", pa.float64()),
        ("reference_chosen_log_prob", pa.float64()),
        ("reference_rejected_log_prob", pa.float64()),
        ("reference_log_ratio", pa.float64()),
        ("loss", pa.float64()),
        ("threshold", pa.float64()),
        ("margin", pa.float64()),
        ("correct", pa.bool_()),
        ("group", pa.string()),
        ("tied", pa.bool_()),
    ]
)
_REFERENCE_SCHEMA = pa.schema(
    [SCHEMA.field(name) for name in ("set", "pair", "chosen_log_prob", "rejected_log_prob")]
)

FORMATS = ("png", "svg")
# Okabe and Ito's colours, which differ with any colour vision: what stays right or wrong is
# blue or red, what changed is light blue or orange.
GROUP_COLOURS = dict(zip(FLIP_GROUPS, ("#0072B2", "#E69F00", "#56B4E9", "#D55E00"), strict=True))
RIGHT, WRONG, LINE = "#0072B2", "#D55E00", "#222222"
_CURVE_POINTS = 400
_DOTS_PER_INCH = 130


@dataclass(frozen=True)
class DynamicsFolder:
    """Where one training run's dynamics lie.

    ``about.json`` (what is measured), ``reference.parquet``, ``pairs/step-*.parquet`` (one
    row a pair) and ``metrics/step-*.json``. Files appear whole or not at all.

    Args:
        path: The folder; made when something is written.
    """

    path: Path

    def begin(self, about: Mapping[str, Any], *, step: int) -> None:
        """Begin a run, or go on with it at a step.

        Args:
            about: What is measured and how; JSON-serialisable.
            step: Optimiser steps done; 0 drops all records.

        Raises:
            RunFolderError: If the folder holds dynamics of something else.
        """
        file, now = self.path / ABOUT, json.loads(json.dumps(dict(about)))
        before = read_json(file) if file.exists() else now
        different = sorted(key for key in {*before, *now} if before.get(key) != now.get(key))
        RunFolderError.unless(
            not different,
            saw=f"{self.path} holds dynamics of another run (different: {', '.join(different)})",
            expected="a new folder, or the same pairs, reference and settings",
            cure="name another folder with out=",
        )
        if step == 0:
            (self.path / REFERENCE).unlink(missing_ok=True)
        # Later steps are of a training that was killed after its last checkpoint, and come anew.
        later = [recorded for recorded in self.steps() if recorded > step or step == 0]
        if later:
            _log.warning(
                "%s: dropping the records of steps %d to %d, which training comes to again",
                self.path,
                later[0],
                later[-1],
            )
        for recorded in later:
            self._file(recorded, PAIRS).unlink()
            self._file(recorded, METRICS).unlink(missing_ok=True)
        write_json(file, now)

    def steps(self) -> list[int]:
        """The steps that are recorded, ascending."""
        return sorted(
            int(file.stem.removeprefix("step-"))
            for file in (self.path / PAIRS).glob("step-*.parquet")
        )

    def metrics(self) -> list[dict[str, float]]:
        """The aggregates of every recorded step, ascending."""
        return [read_json(self._file(step, METRICS)) for step in self.steps()]

    def write_step(
        self,
        step: int,
        samples: Sequence[PairSample],
        measured: Sequence[Mapping[str, torch.Tensor]],
        metrics: Mapping[str, float],
    ) -> None:
        """Record one step.

        Args:
            step: Optimiser steps done.
            samples: The pairs of each set.
            measured: What was measured of them, as of `measure_pairs`.
            metrics: The aggregates by name.
        """
        tables = [
            _table(
                sample,
                {
                    **tensors,
                    "step": [step] * len(sample.items),
                    "prompt_id": [tree.prompt_id for tree in sample.trees],
                    "group": [FLIP_GROUPS[number] for number in tensors["group"]],
                },
                SCHEMA,
            )
            for sample, tensors in zip(samples, measured, strict=True)
        ]
        # The Parquet file comes last, as a step counts by it: whatever else a kill leaves out,
        # a step that counts has its metrics.
        write_json(self._file(step, METRICS), {"step": step, **metrics})
        _write(tables, self._file(step, PAIRS))

    def write_reference(self, samples: Sequence[PairSample], scores: Sequence[PairScores]) -> None:
        """Keep the reference's log-probs of every set.

        Args:
            samples: The pairs of each set.
            scores: Their log-probs under the reference.
        """
        _write(
            [
                _table(
                    sample,
                    {"chosen_log_prob": pair[0], "rejected_log_prob": pair[1]},
                    _REFERENCE_SCHEMA,
                )
                for sample, pair in zip(samples, scores, strict=True)
            ],
            self.path / REFERENCE,
        )

    def read_reference(self) -> dict[str, PairScores] | None:
        """The reference's log-probs by set; None if they were not kept."""
        if not (self.path / REFERENCE).exists():
            return None
        table, scores = _read(self.path / REFERENCE, _REFERENCE_SCHEMA), {}
        for name in table["set"].unique().to_pylist():
            rows = table.filter(pc.equal(table["set"], name))
            chosen, rejected = (
                torch.tensor(rows[side].to_numpy())
                for side in ("chosen_log_prob", "rejected_log_prob")
            )
            scores[name] = chosen, rejected
        return scores

    # With zeros in front, so that names sort as steps do.
    def _file(self, step: int, kind: str) -> Path:
        return self.path / kind / f"step-{step:08d}{_ENDINGS[kind]}"


def read_dynamics(folder: str | Path) -> pa.Table:
    """Read every pair at every recorded step.

    Args:
        folder: `out` of a `DynamicsCallback`.

    Returns:
        One row a step, set and pair, in this order, with the columns of `SCHEMA`;
        ``.to_pandas()`` gives a data frame.

    Raises:
        DataError: If nothing is recorded there, or a file cannot be read.
    """
    store = _recorded(folder)
    return pa.concat_tables([_read(store._file(step, PAIRS), SCHEMA) for step in store.steps()])


def read_metrics(folder: str | Path) -> list[dict[str, float]]:
    """Read the aggregates of every recorded step.

    Args:
        folder: `out` of a `DynamicsCallback`.

    Returns:
        One mapping a step, ascending: "step" and the metrics by name.

    Raises:
        DataError: If nothing is recorded there.
    """
    return _recorded(folder).metrics()


def _recorded(folder: str | Path) -> DynamicsFolder:
    store = DynamicsFolder(Path(folder))
    DataError.unless(
        store.steps(),
        saw=f"no recorded step in {store.path}",
        expected="the folder that a DynamicsCallback wrote",
        cure="give the callback's out=",
    )
    return store


def _write(tables: Sequence[pa.Table], path: Path) -> None:
    with atomic_path(path) as temporary:
        pq.write_table(pa.concat_tables(tables), temporary, compression="zstd")


def _read(path: Path, schema: pa.Schema) -> pa.Table:
    with DataError.instead_of(
        *(OSError, pa.ArrowInvalid),
        saw=f"{path}: {{error}}",
        expected="a file written by a DynamicsCallback",
        cure="delete it, and go on training from the checkpoint before that step",
    ):
        return pq.read_table(path, schema=schema)


def _table(sample: PairSample, columns: Mapping[str, Any], schema: pa.Schema) -> pa.Table:
    rows = [item.index for item in sample.items]
    values = {"set": [sample.name] * len(rows), "pair": rows, **columns}
    return pa.table({name: np.asarray(values[name]) for name in schema.names}, schema=schema)


# --- Pictures ------------------------------------------------------------------------------------


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
    name = _known("set", set_name, list(about["sets"]), default=0)
    moment = _known("step", step, [int(entry["step"]) for entry in metrics], default=-1)
    pairs = table.filter(pc.and_(pc.equal(table["set"], name), pc.equal(table["step"], moment)))
    files = list[Path]()
    figures = {
        "flips": _flips(Figure, metrics, name),
        "threshold": _threshold(Figure, pairs, float(about["beta"]), f"{name}, step {moment}"),
        "trajectories": _trajectories(Figure, metrics, name),
    }
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
) -> tuple[Any, list[Any]]:
    figure = figure_type(figsize=size, layout="constrained")
    panels = list(figure.subplots(*shape, subplot_kw={"xlabel": "optimiser step"}).flat)
    for panel, (title, looks) in zip(panels, lines.items(), strict=True):
        for metric, look in looks.items():
            panel.plot(*_series(metrics, metric), marker="o", ms=3.5, **look)
        panel.set_title(title, fontsize=10)
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(alpha=0.2)
    return figure, panels


def _flips(figure_type: Any, metrics: list[dict[str, float]], name: str) -> Any:
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
                "loss": "mean DPO loss (nats)",
                "margins": "mean reward margin",
            }.items()
        },
        size=(12, 3.6),
        shape=(1, 3),
    )
    panels[0].set_ylim(0, 1)
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False
    )
    figure.suptitle(f"Ranking by reference → by policy ({name})")
    return figure


def _threshold(figure_type: Any, pairs: pa.Table, beta: float, title: str) -> Any:
    figure = figure_type(figsize=(12, 4.4), layout="constrained")
    linear, logarithmic = figure.subplots(1, 2, sharex=True)
    c, loss, correct = (
        pairs[column].to_numpy() for column in ("reference_log_ratio", "loss", "correct")
    )
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
            reach, np.logaddexp(0, -beta * reach), "--", color=LINE, label="threshold −log σ(βc)"
        )
        panel.axvline(0, color=LINE, lw=0.6, alpha=0.4)
        panel.set_xlabel("reference log-ratio c (nats); right of 0 the reference is wrong")
        panel.spines[["top", "right"]].set_visible(False)
    linear.set(ylabel="DPO loss (nats)", ylim=(0, None))
    linear.legend(frameon=False)
    logarithmic.set_yscale("log")
    figure.suptitle(f"Loss against the flip threshold ({title})")
    return figure


def _trajectories(figure_type: Any, metrics: list[dict[str, float]], name: str) -> Any:
    figure, panels = _line_panels(
        figure_type,
        metrics,
        {
            "accuracies": {
                metric_key(name, "rankings/accuracy"): {"label": "ranking accuracy R"},
                metric_key(name, "rankings/normalised_accuracy"): {"label": "length-normalised R̃"},
                metric_key(name, "rewards/accuracies"): {"label": "reward accuracy"},
            },
            "change of mean log π(y|x) since the reference (nats)": {
                metric_key(name, "displacement/chosen"): {"label": "chosen", "color": RIGHT},
                metric_key(name, "displacement/rejected"): {"label": "rejected", "color": WRONG},
            },
            "intra-diversity: log π(y_w|x) − log π(y_l|x) (nats)": {
                metric_key(name, "intra_diversity/mean"): {"label": "mean"}
            },
            "distance of the weights from the start": {"dynamics/weight_distance": {"color": LINE}},
        },
        size=(12, 7),
        shape=(2, 2),
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


# Steps and values of a metric; a group without a pair has none at that step.
def _series(metrics: list[dict[str, float]], key: str) -> tuple[list[float], list[float]]:
    points = [(entry["step"], entry[key]) for entry in metrics if key in entry]
    return [step for step, _ in points], [value for _, value in points]
