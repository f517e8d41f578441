"""The real decision bench's tables: each data set's truth, and who would have named the better one.

    python benchmarks/real_decisions.py --out FOLDER --table

A start is a mode (adapters or all weights) and a loss; its truth is each candidate's win rate over
the start on held-out prompts, mean over the seeds that are there. Gains are in points over 50 %.

- right: share of (start, candidate A, candidate B) in which the predictor's score is larger for
  the one that gained more; equal scores count half. Of the win rate, and of the length-controlled.
- regret: points of win rate that are lost by training on the predictor's first choice, mean over
  starts.
- ceiling: the first seed's trainings as the predictor of the others' mean.

Intervals are of 95 %, over held-out prompts: a data set's as `prefstage evaluate` gives them; of
"right", prompts are drawn with replacement, the same for all data sets, and predictions stay.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from decision_table import of_start, share_right

from prefstage.advising import Heat, standing
from prefstage.core import markdown_table
from prefstage.evaluating import length_controlled_interval, length_controlled_win_rate, rates_of

RESAMPLES = 1000
FORMS = ("sampled", "self-normalised", "clipped", "first-order")
SCORED = "self-normalised"
Runs = Mapping[tuple[str, float], Mapping[int, Any]]
Scores = dict[str, float]


@dataclass(frozen=True)
class Start:
    """What was measured of one mode and loss; what is missing is not there.

    Attributes:
        name: "MODE, LOSS".
        runs: Trainings by candidate, share and seed, each with its figures.
        figures: Of the data, by candidate.
        forecasts: By candidate: gain and cosine, each with its value and error.
        agreement: Of two halves of the target; None before it is forecast.
    """

    name: str
    runs: Runs
    figures: Mapping[str, Mapping[str, float]]
    forecasts: Mapping[str, Any]
    agreement: float | None

    @property
    def candidates(self) -> list[str]:
        """Those that were trained in full."""
        return [c for c, share in self.runs if share == 1]

    def preferences(self, candidate: str, seeds: Sequence[int] | None = None) -> np.ndarray:
        """By held-out prompt, how often the trained policy wins over the start; mean over seeds."""
        found = self.runs[candidate, 1.0]
        rows = [run["preference"] for seed, run in found.items() if seeds is None or seed in seeds]
        return np.mean(rows, axis=0)

    @cached_property
    def preferred(self) -> Mapping[str, np.ndarray]:
        """`preferences` over all seeds, by candidate."""
        return {c: self.preferences(c) for c in self.candidates}

    def truth(self, seeds: Sequence[int] | None = None, drawn: Any = slice(None)) -> Scores:
        """Gain in points of win rate, by candidate, on the prompts that are drawn."""
        rows = {c: self.preferences(c, seeds) for c in self.candidates} if seeds else self.preferred
        return {c: 100 * float(row[drawn].mean()) - 50 for c, row in rows.items()}

    def controlled(self) -> Scores:
        """Gain in points of length-controlled win rate, by candidate."""
        return {
            c: length_controlled_win_rate(*self.lengths(c)).length_controlled_win_rate - 50
            for c in self.candidates
        }

    def lengths(self, candidate: str) -> list[np.ndarray]:
        """Preferences, and characters of the answers of both sides, by held-out prompt."""
        found = self.runs[candidate, 1.0].values()
        return [
            self.preferences(candidate),
            *(np.mean([run[key] for run in found], axis=0) for key in ("length", "length_start")),
        ]

    def seeds(self) -> list[int]:
        """Seeds with which every candidate was trained in full."""
        found = [set(self.runs[c, 1.0]) for c in self.candidates]
        return sorted(set.intersection(*found)) if found else []


Predictor = Callable[[Start], Scores]


def read_starts(
    folder: Path, modes: Sequence[str], losses: Sequence[str], candidates: Sequence[str]
) -> list[Start]:
    """All starts of which a training in full is there."""
    figures = {c: _json(folder / "figures" / f"{c}.json") for c in candidates}
    starts = []
    for mode, loss in product(modes, losses):
        runs: dict[tuple[str, float], dict[int, Any]] = {}
        for candidate in candidates:
            for file in sorted(folder.glob(f"runs/{mode}-{loss}-{candidate}-*.json")):
                share, _, seed = file.stem.rpartition("-")
                key = candidate, float(share.rpartition("-")[2])
                runs.setdefault(key, {})[int(seed)] = _json(file)
        forecast = _json(folder / "forecasts" / f"{mode}-{loss}.json") or {}
        start = Start(
            f"{mode}, {loss}",
            runs,
            {c: row for c, row in figures.items() if row},
            forecast.get("candidates", {}),
            forecast.get("agreement"),
        )
        if start.candidates:
            starts.append(start)
    return starts


def _json(path: Path) -> Any:
    return json.loads(path.read_text("utf-8")) if path.exists() else None


# --- Predictors ----------------------------------------------------------------------------------


def figure(name: str, sign: float = 1.0) -> Predictor:
    """A figure of the data."""
    return lambda start: {c: sign * row[name] for c, row in start.figures.items()}


def boundary(name: str) -> Predictor:
    """How far the boundary score against a data set is below one half; 0 for own answers."""
    return lambda start: {
        c: 0.0 if c == "own" else 0.5 - row[name] for c, row in start.figures.items()
    }


def forecast(kind: str) -> Predictor:
    """The forecast, or its cosine."""
    return lambda start: {c: row[kind]["value"] for c, row in start.forecasts.items()}


def pilot(share: float, form: str) -> Predictor:
    """Pilots of one size, mean over the seeds that are there."""
    return lambda start: {
        c: mean(mean(run[form]) for run in found.values())
        for (c, size), found in start.runs.items()
        if size == share
    }


def raced(shares: Sequence[float]) -> Predictor:
    """Pilots of several sizes, valued by scoring and added up as `prefstage advise` does."""

    def scores(start: Start) -> Scores:
        names = [c for c in start.candidates if all((c, share) in start.runs for share in shares)]
        if len(names) < 2:
            return {}
        heats = []
        for share in shares:
            runs = {c: start.runs[c, share] for c in names}
            seeds = set.intersection(*(set(found) for found in runs.values()))
            rows = {c: [found[seed][SCORED] for seed in sorted(seeds)] for c, found in runs.items()}
            heats.append(Heat(share, {c: torch.tensor(row) for c, row in rows.items()}))
        return {name: -distance for name, distance in standing(heats).items()}

    return scores


def predictors(shares: Sequence[float]) -> list[tuple[str, Predictor]]:
    """Name and predictor of each."""
    always = [(f"always {c}", figure_of(c)) for c in ("own", "spread")]
    return [
        *always,
        ("boundary score, votes", boundary("boundary_votes")),
        ("boundary score, probabilities", boundary("boundary_probabilities")),
        ("Avg.Chs", figure("chosen")),
        ("Avg.Diff", figure("difference")),
        ("intra-diversity", figure("intra_diversity")),
        ("DCRM", figure("dcrm")),
        ("forecast", forecast("gain")),
        ("forecast, cosine", forecast("cosine")),
        *(
            (f"pilots {share:g}, {form}", pilot(share, form))
            for share, form in product(shares, FORMS)
        ),
        (f"pilots {' + '.join(f'{s:g}' for s in shares)}, by scoring", raced(shares)),
    ]


def figure_of(candidate: str) -> Predictor:
    """Always the same data."""
    return lambda start: {c: float(c == candidate) for c in start.candidates}


# --- Measures ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """How right a predictor was, mean over starts; regret and gains in points.

    Attributes:
        right: Share of decisions, by win rate.
        interval: Of it.
        regret: By win rate.
        rank: Spearman's correlation; NaN where it is not defined.
        controlled: Share of decisions that are right by length-controlled win rate.
        decisions: How many there are.
    """

    right: float
    interval: tuple[float, float]
    regret: float
    rank: float
    controlled: float
    decisions: int


def measured(
    scored: Sequence[tuple[Start, Scores]], truths: Mapping[str, tuple[Scores, Scores]]
) -> Measured | None:
    """Compare scores with the truth, on the candidates that have both.

    Args:
        scored: Starts with a predictor's scores.
        truths: By a start's name, its gains in win rate and in length-controlled win rate.

    Returns:
        The comparison; None if there are no two candidates.
    """
    usable = []
    for start, scores in scored:
        names = [c for c in start.candidates if c in scores]
        if len(names) > 1:
            usable.append((start, scores, names))
    if not usable:
        return None

    def means(kind: int) -> np.ndarray:
        rows = [
            of_start(scores, {c: truths[start.name][kind][c] for c in names})
            for start, scores, names in usable
        ]
        return np.array(rows).mean(0)

    # Prompts are common to all starts.
    held_out = len(usable[0][0].preferences(usable[0][2][0]))
    random = np.random.default_rng(0)
    drawn_right = []
    for _ in range(RESAMPLES):
        drawn = random.integers(held_out, size=held_out)
        truth = {start.name: start.truth(drawn=drawn) for start, *_ in usable}
        drawn_right.append(
            mean(
                share_right(scores, {c: truth[start.name][c] for c in names})
                for start, scores, names in usable
            )
        )
    low, high = np.quantile(drawn_right, (0.025, 0.975))
    right, regret, rank = means(0)
    decisions = sum(len(names) * (len(names) - 1) // 2 for *_, names in usable)
    return Measured(right, (low, high), regret, rank, means(1)[0], decisions)


# --- Tables --------------------------------------------------------------------------------------


def print_table(
    folder: Path,
    wanted: Sequence[str],
    modes: Sequence[str],
    losses: Sequence[str],
    candidates: Sequence[str],
) -> None:
    """Print all that is measured, and how much of what is wanted is not there."""
    starts = read_starts(folder, modes, losses, candidates)
    kinds = Counter(name.partition("/")[0] for name in wanted)
    there = Counter(name.partition("/")[0] for name in wanted if (folder / f"{name}.json").exists())
    measured_so_far = ", ".join(f"{there[kind]} of {count} {kind}" for kind, count in kinds.items())
    print(f"measured: {measured_so_far}")
    shares = sorted({share for start in starts for _, share in start.runs if share < 1})
    for start in starts:
        agree = "-" if start.agreement is None else f"{start.agreement:.2f}"
        print(f"\n**{start.name}** (halves of the target agree with cosine {agree})\n")
        head = ("data", "seeds", "win rate, points over 50", "length-controlled", "boundary score")
        head += ("forecast", "cosine", *(f"pilot {share:g}" for share in shares))
        print(markdown_table(head, [row_of(start, c, shares) for c in candidates]))
    if not starts:
        print("no training in full is measured yet")
        return
    truths = {start.name: (start.truth(), start.controlled()) for start in starts}
    rows = []
    for name, predictor in predictors(shares):
        row = measured([(start, predictor(start)) for start in starts], truths)
        rows.append((name, *_cells(row)))
    twice = [start for start in starts if len(start.seeds()) > 1]
    others = {s.name: (s.truth(s.seeds()[1:]), s.truth(s.seeds()[1:])) for s in twice}
    row = measured([(start, start.truth(start.seeds()[:1])) for start in twice], others)
    rows.append(("ceiling: another seed", *_cells(row)))
    print()
    head = ("predictor", "right", "regret, points", "rank", "right, length-controlled", "decisions")
    print(markdown_table(head, rows))


def row_of(start: Start, candidate: str, shares: Sequence[float]) -> list[str]:
    """What is known of a data set; a dash where nothing is."""
    cells = [candidate, "-", "-", "-"]
    if (candidate, 1.0) in start.runs:
        preferences = start.preferences(candidate)
        low, high = rates_of(preferences).interval
        lengths = start.lengths(candidate)
        controlled = length_controlled_win_rate(*lengths).length_controlled_win_rate
        ends = length_controlled_interval(*lengths)
        cells = [
            candidate,
            str(len(start.runs[candidate, 1.0])),
            _gain(100 * float(preferences.mean()), low, high),
            _gain(controlled, *ends),
        ]
    figures, row = start.figures.get(candidate), start.forecasts.get(candidate)
    cells.append(f"{figures['boundary_votes']:.2f}" if figures and candidate != "own" else "-")
    for kind in ("gain", "cosine"):
        cells.append(f"{row[kind]['value']:.3g} ± {1.96 * row[kind]['error']:.2g}" if row else "-")
    for share in shares:
        value = pilot(share, SCORED)(start).get(candidate)
        cells.append("-" if value is None else f"{value:+.4f}")
    return cells


def _gain(rate: float, low: float, high: float) -> str:
    return f"{rate - 50:+.1f} [{low - 50:+.1f}, {high - 50:+.1f}]"


def _cells(row: Measured | None) -> tuple[str, ...]:
    if row is None:
        return ("not measured yet", "-", "-", "-", "0")
    low, high = row.interval
    return (
        f"{100 * row.right:.0f} % [{100 * low:.0f}, {100 * high:.0f}]",
        f"{row.regret:.2f}",
        "-" if np.isnan(row.rank) else f"{row.rank:.2f}",
        f"{100 * row.controlled:.0f} %",
        str(row.decisions),
    )
