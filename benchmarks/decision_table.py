"""The decision bench's table: how often each predictor names the better data, and what errors cost.

    python benchmarks/decision_table.py decisions [--worlds 1 2 3] [--json FILE]

Reads what `benchmarks/decisions.py` measured. A start is a world, a policy and a loss; its truth
is each candidate's gain in true reward after the full training, mean over its seeds. Starts whose
trainings are not all there are left out and counted.

- accuracy: share of (start, candidate A, candidate B) in which the predictor's score is larger for
  the one that gained more; equal scores count half.
- regret: what is lost by training on the predictor's first choice, mean over starts.
- rank: Spearman's correlation with the truth over a start's candidates, mean over starts.
- ceiling: one seed's full trainings as the predictor of the other seeds' mean.

Intervals are of 95 %: worlds are drawn with replacement, and starts within each.
"""

import argparse
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from decisions import CANDIDATES, FULL_SEEDS, LOSSES, PILOT_SEEDS, POLICIES, SHARES
from scipy.stats import spearmanr

from prefstage.core import markdown_table

RESAMPLES = 2000
FORMS = ("sampled", "self-normalised", "clipped", "first-order")
Scores = Mapping[str, float]
"""A predictor's score by candidate; the larger, the better it expects the candidate to be."""


@dataclass(frozen=True)
class Start:
    """What was measured of one world, policy and loss.

    Attributes:
        world: Its seed.
        policy: Steps of supervised training.
        loss: The loss's name.
        gains: Gain in true reward of the full training, by seed and candidate.
        figures: By candidate: figures of the data and of the policy on them.
        forecasts: By "CANDIDATE|PAIRS|PROMPTS|FAMILY".
        pilots: Gain by (share, seed, form, candidate).
    """

    world: int
    policy: int
    loss: str
    gains: Mapping[int, Scores]
    figures: Mapping[str, Mapping[str, float]]
    forecasts: Mapping[str, Mapping[str, float]]
    pilots: Mapping[tuple[float, int, str, str], float]

    def truth(self, seeds: Sequence[int] = FULL_SEEDS) -> Scores:
        """Mean gain over seeds, by candidate."""
        return {c: mean(self.gains[seed][c] for seed in seeds) for c in CANDIDATES}

    def pilot(self, share: float, form: str, seeds: Sequence[int] = PILOT_SEEDS) -> Scores:
        """Mean gain of the pilots, by candidate."""
        return {c: mean(self.pilots[share, seed, form, c] for seed in seeds) for c in CANDIDATES}


Predictor = Callable[[Start], Scores]


def read_starts(folder: Path, worlds: Sequence[int]) -> tuple[list[Start], int]:
    """The starts that are whole, and how many are not."""
    starts, lacking = list[Start](), 0
    for world in worlds:
        for policy in POLICIES:
            for loss in LOSSES:
                try:
                    starts.append(_read(folder / f"world-{world}", world, policy, loss))
                except FileNotFoundError:
                    lacking += 1
    return starts, lacking


def _read(folder: Path, world: int, policy: int, loss: str) -> Start:
    def run(candidate: str, share: float, seed: int) -> dict[str, Any]:
        return _json(folder / "runs" / f"{policy}-{loss}-{candidate}-{share:g}-{seed}.json")

    pilots = {}
    for share in SHARES:
        for seed in PILOT_SEEDS:
            for candidate in CANDIDATES:
                found = run(candidate, share, seed)
                for form in FORMS:
                    pilots[share, seed, form, candidate] = mean(found[form])
    forecasts = _json(folder / "forecasts" / f"{policy}.json")
    return Start(
        world,
        policy,
        loss,
        {s: {c: run(c, 1.0, s)["gain"] for c in CANDIDATES} for s in FULL_SEEDS},
        {c: _json(folder / "figures" / f"{policy}-{c}.json") for c in CANDIDATES},
        {
            name.partition("|")[2]: value
            for name, value in forecasts.items()
            if name.startswith(f"{loss}|")
        },
        pilots,
    )


def _json(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


# --- Predictors ----------------------------------------------------------------------------------


def constant(candidate: str) -> Predictor:
    """Always the same data."""
    return lambda start: {c: float(c == candidate) for c in CANDIDATES}


def figure(name: str, sign: float = 1.0) -> Predictor:
    """A figure of the data."""
    return lambda start: {c: sign * start.figures[c][name] for c in CANDIDATES}


def boundary(name: str) -> Predictor:
    """How far the boundary score against a data set is below one half; 0 for own answers."""
    return lambda start: {
        c: 0.0 if c == "own" else 0.5 - start.figures[c][name] for c in CANDIDATES
    }


def forecast(kind: str, family: str = "adam", pairs: int = 384, prompts: int = 512) -> Predictor:
    """A forecast, from so many pairs and target prompts."""
    return lambda start: {
        c: start.forecasts[f"{c}|{pairs}|{prompts}|{family}"][kind] for c in CANDIDATES
    }


def pilot(share: float, form: str, seeds: Sequence[int] = PILOT_SEEDS) -> Predictor:
    """Pilots of one size."""
    return lambda start: start.pilot(share, form, seeds)


def together(parts: Sequence[Predictor], starts: Sequence[Start]) -> Predictor:
    """The sum of predictors, each divided by its spread over candidates in other worlds' starts."""
    spreads: dict[tuple[int, int], float] = {}
    for world in {start.world for start in starts}:
        others = [start for start in starts if start.world != world] or starts
        for number, part in enumerate(parts):
            spread = mean(float(np.std(list(part(start).values()))) for start in others)
            spreads[world, number] = spread or 1.0

    def scores(start: Start) -> Scores:
        found = [part(start) for part in parts]
        return {
            c: sum(values[c] / spreads[start.world, n] for n, values in enumerate(found))
            for c in CANDIDATES
        }

    return scores


def predictors(starts: Sequence[Start]) -> Iterator[tuple[str, Predictor, str]]:
    """Name, predictor, and its cost as a share of one full training a candidate."""
    for candidate in CANDIDATES:
        yield f"always {candidate}", constant(candidate), "0"
    yield "boundary score, votes", boundary("boundary_votes"), "samples, judge"
    yield "boundary score, probabilities", boundary("boundary_probabilities"), "samples, judge"
    yield "Avg.Chs", figure("chosen"), "judge"
    yield "Avg.Diff", figure("difference"), "judge"
    yield "intra-diversity", figure("intra_diversity"), "scoring"
    yield "ranked rightly by the reference", figure("ranked", -1.0), "scoring"
    yield "easy to flip", figure("easy_to_flip"), "scoring"
    yield "DCRM", figure("dcrm"), "scoring, judge"
    for prompts in (64, 128, 256, 512):
        yield f"forecast, {prompts} prompts", forecast("gain", prompts=prompts), "gradients"
    for pairs in (48, 96, 192):
        yield f"forecast, {pairs} pairs", forecast("gain", pairs=pairs), "gradients"
    yield "forecast, SGD direction", forecast("gain", "sgd"), "gradients"
    yield "forecast, cosine", forecast("cosine"), "gradients"
    for share in SHARES:
        for form in FORMS:
            name = f"pilots {share:g}, {form}"
            yield f"{name}, one seed", pilot(share, form, PILOT_SEEDS[:1]), f"{share:g}"
            yield f"{name}, two seeds", pilot(share, form), f"{2 * share:g}"
    scored = "self-normalised"
    small, large = (pilot(share, scored, PILOT_SEEDS[:1]) for share in SHARES[1:])
    cost = f"{sum(SHARES[1:]):g}"
    yield "pilots 1/8 + 1/4, by scoring", together([small, large], starts), cost
    yield (
        "forecast + pilots 1/8 + 1/4, by scoring",
        together([forecast("gain"), small, large], starts),
        f"gradients + {cost}",
    )
    yield (
        "forecast + pilots 1/8 sampled + 1/4 by scoring",
        together([forecast("gain"), pilot(SHARES[1], "sampled", PILOT_SEEDS[:1]), large], starts),
        f"gradients + {cost}",
    )


# --- Measures ------------------------------------------------------------------------------------


def of_start(scores: Scores, truth: Scores) -> tuple[float, float, float]:
    """Accuracy, regret and rank correlation."""
    right = [
        0.5 if scores[a] == scores[b] else float((scores[a] > scores[b]) == (truth[a] > truth[b]))
        for a, b in combinations(CANDIDATES, 2)
        if truth[a] != truth[b]
    ]
    best = max(scores.values())
    chosen = mean(truth[c] for c in CANDIDATES if scores[c] == best)
    values = [[side[c] for c in CANDIDATES] for side in (scores, truth)]
    rank = float(spearmanr(*values).statistic) if len({*values[0]}) > 1 else math.nan
    return mean(right), max(truth.values()) - chosen, rank


def ceiling(start: Start) -> tuple[float, float, float]:
    """One seed's trainings as predictor of the others' mean, mean over seeds."""
    rows = [
        of_start(start.truth([seed]), start.truth([s for s in FULL_SEEDS if s != seed]))
        for seed in FULL_SEEDS
    ]
    accuracy, regret, rank = np.mean(rows, axis=0).tolist()
    return accuracy, regret, rank


def interval(values: np.ndarray, worlds: np.ndarray) -> tuple[float, float]:
    """Of a mean over starts: worlds are drawn, and starts within them."""
    random = np.random.default_rng(0)
    names, means = np.unique(worlds), []
    for _ in range(RESAMPLES):
        drawn = [values[worlds == world] for world in random.choice(names, len(names))]
        means.append(np.mean(np.concatenate([random.choice(part, len(part)) for part in drawn])))
    low, high = np.nanquantile(means, (0.025, 0.975))
    return float(low), float(high)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", maxsplit=1)[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--worlds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    starts, lacking = read_starts(asked.folder, asked.worlds)
    print(f"{len(starts)} starts; {lacking} are not measured yet\n")
    if not starts:
        return
    worlds = np.array([start.world for start in starts])
    rows, figures = [], {}
    measured = [
        (name, [of_start(predictor(s), s.truth()) for s in starts], cost)
        for name, predictor, cost in predictors(starts)
    ]
    measured.append(("ceiling: another seed", [ceiling(start) for start in starts], "1"))
    for name, values, cost in measured:
        accuracy, regret, rank = np.array(values).T
        low, high = interval(accuracy, worlds)
        figures[name] = {
            "accuracy": float(accuracy.mean()),
            "interval": [low, high],
            "regret": float(regret.mean()),
            "rank": float(np.nanmean(rank)) if not np.isnan(rank).all() else None,
            "by_loss": {
                loss: float(accuracy[[s.loss == loss for s in starts]].mean())
                for loss in LOSSES
                if any(s.loss == loss for s in starts)
            },
        }
        rank_text = "-" if figures[name]["rank"] is None else f"{figures[name]['rank']:.2f}"
        right = f"{100 * accuracy.mean():.1f} % [{100 * low:.0f}, {100 * high:.0f}]"
        rows.append((name, right, f"{regret.mean():.4f}", rank_text, cost))
    print(markdown_table(("predictor", "right", "regret", "rank", "cost"), rows))
    print("\nright by loss\n")
    shown = [loss for loss in LOSSES if loss in figures["always own"]["by_loss"]]
    print(
        markdown_table(
            ("predictor", *shown),
            [
                (name, *(f"{100 * found['by_loss'][loss]:.0f} %" for loss in shown))
                for name, found in figures.items()
            ],
        )
    )
    if asked.json is not None:
        asked.json.write_text(json.dumps({"starts": len(starts), "predictors": figures}, indent=1))


if __name__ == "__main__":
    main()
