"""Pictures of the decision bench: forecasts beside real gains, a race of pilots, cost and accuracy.

    python benchmarks/decision_pictures.py [FOLDER] [--worlds 1 2 3] [--out docs/images]

Reads what `benchmarks/decision_table.py` reads, and needs matplotlib.
"""

import argparse
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from decision_table import (
    ADVISED,
    COLLECTED,
    Predictor,
    Start,
    advised,
    boundary,
    ceiling,
    figure,
    forecast,
    interval,
    of_start,
    pilot,
    read_starts,
)
from decisions import CANDIDATES, EPOCHS, LOSSES, PAIRS, PILOT_SEEDS, SHARES
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from prefstage.sandbox.theory.evidence import COLOURS

DOTS_PER_INCH = 110
RACE = (400, "dpo+sft")  # policy and loss of the race that is drawn, in the first world
MARKS = dict(zip(CANDIDATES, zip(COLOURS, "osD^vX", strict=True), strict=True))


def panels(columns: int, *, width: float, height: float) -> tuple[Figure, Any]:
    """An empty picture in the style of the docs."""
    canvas = Figure(figsize=(width, height), layout="constrained")
    axes = canvas.subplots(1, columns, squeeze=False)[0]
    for panel in axes:
        panel.grid(alpha=0.2)
        panel.spines[["top", "right"]].set_visible(False)
    return canvas, axes


def draw_forecasts(starts: list[Start]) -> Figure:
    """Forecast and real gain of every candidate, a panel a loss."""
    canvas, axes = panels(len(LOSSES), width=12.5, height=3.2)
    for panel, loss in zip(axes, LOSSES, strict=True):
        rows = [start for start in starts if start.loss == loss]
        points = {
            c: [(1e3 * forecast("rating")(s)[c], 100 * s.truth()[c]) for s in rows]
            for c in CANDIDATES
        }
        for name, values in points.items():
            colour, mark = MARKS[name]
            panel.scatter(*zip(*values, strict=True), s=16, color=colour, marker=mark, label=name)
        rank = mean(
            spearmanr(
                [forecast("rating")(s)[c] for c in CANDIDATES],
                [s.truth()[c] for c in CANDIDATES],
            ).statistic
            for s in rows
        )
        panel.set_title(f"{loss} (rank correlation {rank:.2f})", fontsize=9)
        panel.axhline(0, color="#888888", linewidth=0.6)
        panel.set_xlabel("rated forecast, thousandths", fontsize=8)
        panel.tick_params(labelsize=8)
    axes[0].set_ylabel("real gain in true reward, points", fontsize=8)
    axes[0].legend(frameon=False, fontsize=7)
    return canvas


def draw_race(starts: list[Start]) -> Figure:
    """Gains of one start's pilots heat by heat, and of the full trainings."""
    canvas, (panel,) = panels(1, width=6.4, height=3.8)
    start = next(s for s in starts if (s.policy, s.loss) == RACE)
    truth = start.truth()
    for name in CANDIDATES:
        gains = [100 * start.pilot(share, ADVISED)[name] for share in SHARES]
        colour, mark = MARKS[name]
        line = [*gains, 100 * truth[name]]
        panel.plot([*SHARES, 1.0], line, color=colour, marker=mark, label=name)
    panel.legend(frameon=False, fontsize=8)
    panel.set_xscale("log", base=2)
    panel.set_xticks([*SHARES, 1.0], ["1/16", "1/8", "1/4", "full"])
    panel.set(xlabel="share of the pairs", ylabel="gain, points")
    panel.set_title(
        f"World {start.world}, policy of {start.policy} steps, {start.loss}: pilots valued by "
        "scoring, full trainings by true reward",
        fontsize=8,
    )
    return canvas


def draw_costs(starts: list[Start]) -> Figure:
    """Accuracy of predictors by their cost."""
    canvas, (panel,) = panels(1, width=6.8, height=4.2)
    worlds = np.array([start.world for start in starts])
    one = PILOT_SEEDS[:1]
    gradients = {pairs: pairs / (PAIRS * EPOCHS) for pairs in (48, 96, 192, PAIRS)}
    families: dict[str, list[tuple[float, Predictor]]] = {
        "figures of the data, nothing trained": [
            (0.01, boundary("boundary_probabilities")),
            (0.01, figure("chosen")),
            (0.01, figure("dcrm")),
        ],
        "forecast, by number of pairs": [
            (cost, forecast("rating", pairs=pairs)) for pairs, cost in gradients.items()
        ],
        "pilots by scoring, one seed": [(share, pilot(share, ADVISED, one)) for share in SHARES],
        "pilots by sampling, one seed": [(share, pilot(share, "sampled", one)) for share in SHARES],
        "forecast and pilots by scoring, two seeds": [
            (2 * share + gradients[PAIRS], advised(share)) for share in SHARES
        ],
    }
    for (name, members), (colour, mark) in zip(families.items(), MARKS.values(), strict=False):
        points = []
        for cost, predictor in members:
            right = np.array([of_start(predictor(s), s.truth())[0] for s in starts])
            points.append((cost, 100 * right.mean(), *(100 * x for x in interval(right, worlds))))
        x, y, low, high = np.array(points).T
        line = "" if "figures" in name else "-"
        panel.errorbar(
            x, y, (y - low, high - y), color=colour, marker=mark, linestyle=line, label=name
        )
    top = 100 * mean(ceiling(start)[0] for start in starts)
    panel.axhline(top, color="#444444", linestyle="--", linewidth=0.8)
    panel.annotate("another seed's full training", (0.01, top), (0, 4), fontsize=8, **_IN_POINTS)
    panel.axhline(50, color="#888888", linewidth=0.6)
    panel.annotate("a coin", (0.01, 50), (0, 4), fontsize=8, **_IN_POINTS)
    panel.set_xscale("log")
    panel.set(
        xlabel="cost beside one full training of the candidate",
        ylabel="named the better of two, %",
    )
    panel.set_ylim(35, 95)
    panel.legend(frameon=False, fontsize=8, loc="lower left")
    return canvas


_IN_POINTS: dict[str, Any] = {"textcoords": "offset points"}


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", maxsplit=1)[0])
    parser.add_argument("folder", type=Path, nargs="?", default=COLLECTED)
    parser.add_argument("--worlds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--out", type=Path, default=Path("docs/images"))
    asked = parser.parse_args()
    starts, _ = read_starts(asked.folder, asked.worlds)
    drawings = {"forecasts": draw_forecasts, "race": draw_race, "costs": draw_costs}
    for name, draw in drawings.items():
        path = asked.out / f"decisions-{name}.png"
        draw(starts).savefig(path, dpi=DOTS_PER_INCH)
        print(path)


if __name__ == "__main__":
    main()
