"""The decision bench's table: how often each predictor names the better data, and what errors cost.

    python benchmarks/decision_table.py [FOLDER] [--worlds 1 2 3] [--json FILE]
    python benchmarks/decision_table.py FOLDER --collect benchmarks/decisions
    python benchmarks/decision_table.py [FOLDER] --reliability FILE.json

Reads what `benchmarks/decisions.py` measured: its folder, or what `--collect` wrote of it, a file a
world, which is committed. A start is a world, a policy and a loss; its truth is each candidate's
gain in true reward after the full training, mean over its seeds. Starts whose trainings are not all
there are left out and counted.

- accuracy: share of (start, candidate A, candidate B) in which the predictor's score is larger for
  the one that gained more; equal scores count half.
- regret: what is lost by training on the predictor's first choice, mean over starts.
- rank: Spearman's correlation with the truth over a start's candidates, mean over starts.
- ceiling: one seed's full trainings as the predictor of the other seeds' mean.

Intervals are of 95 %: worlds are drawn with replacement, and starts within each.

With `--reliability`, how often a prediction is right by how clear it is: fitted to all worlds'
decisions and written; before that fitted to all worlds but one and checked on that one, each in
turn, and the check is printed.
"""

import argparse
import gzip
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from itertools import combinations, pairwise, product
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from decisions import (
    CANDIDATES,
    FULL_SEEDS,
    GRADIENT_PAIRS,
    LOSSES,
    PILOT_SEEDS,
    POLICIES,
    SHARES,
    TARGETS,
)
from scipy.optimize import minimize
from scipy.special import expit
from scipy.stats import spearmanr

from prefstage.advising import Heat
from prefstage.advising.forecast import Estimate, Forecast
from prefstage.core import markdown_table
from prefstage.measuring.track_record import ANY_LOSS, TrackRecord

RESAMPLES = 2000
CLOSE = 0.01  # gains in true reward that differ by less are hardly told apart by the truth itself
FORMS = ("sampled", "self-normalised", "clipped", "first-order")
SCORED = "self-normalised"
ADVISED = "clipped"  # as `advise` values pilots by default, with two seeds
FULL_FORECAST = "|384|512|adam"  # of all pairs and prompts, as the trainer's optimiser steps
FIGURES = ("gain", "cosine", "agreement")
COLLECTED = Path(__file__).parent / "decisions"
PAIRS_OF_CANDIDATES = tuple(combinations(CANDIDATES, 2))
AT_HAND = ("best", "two", "poor", "other")  # data that "off" may be; "mixed" is neither off nor on
BINS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # of predicted reliability
OTHER_LOSSES = 0.05  # weight of their decisions in a loss's curve
LOG_SCALES = (math.log(0.05), math.log(50.0))  # of distances, in standard errors
PILOTS = tuple(f"pilot {share:g}" for share in SHARES)
OFF_OR_ON = (
    "always the pairs at hand",
    "always own",
    "boundary score, probabilities",
    "forecast, 512 prompts",
    "Avg.Chs",
    "pilots 0.25, clipped, two seeds",
    "forecast + pilots 0.25, clipped, two seeds: `advise`",
)
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
        pilots: Gain by "SHARE|SEED|FORM" and candidate.
        errors: Standard error of a difference of pilots as `advise` values them, by share.
    """

    world: int
    policy: int
    loss: str
    gains: Mapping[str, Scores]
    figures: Mapping[str, Mapping[str, float]]
    forecasts: Mapping[str, Mapping[str, Any]]
    pilots: Mapping[str, Scores]
    errors: Mapping[str, float]

    def truth(self, seeds: Sequence[int] = FULL_SEEDS) -> Scores:
        """Mean gain over seeds, by candidate."""
        return {c: mean(self.gains[str(seed)][c] for seed in seeds) for c in CANDIDATES}

    def pilot(self, share: float, form: str, seeds: Sequence[int] = PILOT_SEEDS) -> Scores:
        """Mean gain of the pilots, by candidate."""
        rows = [self.pilots[f"{share:g}|{seed}|{form}"] for seed in seeds]
        return {c: mean(row[c] for row in rows) for c in CANDIDATES}


Predictor = Callable[[Start], Scores]


def read_starts(folder: Path, worlds: Sequence[int]) -> tuple[list[Start], int]:
    """The starts that are whole, and how many are not."""
    starts = list[Start]()
    for world in worlds:
        collected = folder / f"world-{world}.json.gz"
        if collected.exists():
            rows = json.loads(gzip.decompress(collected.read_bytes()))
            starts += [Start(**row) for row in rows]
            continue
        for policy, loss in product(POLICIES, LOSSES):
            with suppress(FileNotFoundError):  # counted below
                starts.append(_read(folder / f"world-{world}", world, policy, loss))
    return starts, len(worlds) * len(POLICIES) * len(LOSSES) - len(starts)


def collect(starts: Sequence[Start], folder: Path) -> None:
    """Write a file a world, of the worlds that are whole."""
    folder.mkdir(parents=True, exist_ok=True)
    for world in sorted({start.world for start in starts}):
        rows = [asdict(start) for start in starts if start.world == world]
        if len(rows) == len(POLICIES) * len(LOSSES):
            text = json.dumps(_rounded(rows), separators=(",", ":"))
            file = folder / f"world-{world}.json.gz"
            file.write_bytes(gzip.compress(text.encode(), mtime=0))


# Five digits are more than anything here is known to.
def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_rounded(inner) for inner in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def _read(folder: Path, world: int, policy: int, loss: str) -> Start:
    def run(candidate: str, share: float, seed: int) -> dict[str, Any]:
        return _json(folder / "runs" / f"{policy}-{loss}-{candidate}-{share:g}-{seed}.json")

    pilots, errors = dict[str, Scores](), dict[str, float]()
    for share in SHARES:
        runs = {(c, seed): run(c, share, seed) for c, seed in product(CANDIDATES, PILOT_SEEDS)}
        for seed, form in product(PILOT_SEEDS, FORMS):
            pilots[f"{share:g}|{seed}|{form}"] = {c: mean(runs[c, seed][form]) for c in CANDIDATES}
        values = {c: [runs[c, seed][ADVISED] for seed in PILOT_SEEDS] for c in CANDIDATES}
        heat = Heat(share, {c: torch.tensor(rows) for c, rows in values.items()})
        errors[f"{share:g}"] = heat.error(CANDIDATES)
    forecasts = _json(folder / "forecasts" / f"{policy}.json")
    return Start(
        world,
        policy,
        loss,
        {str(s): {c: run(c, 1.0, s)["gain"] for c in CANDIDATES} for s in FULL_SEEDS},
        {c: _json(folder / "figures" / f"{policy}-{c}.json") for c in CANDIDATES},
        {
            name.partition("|")[2]: value if name.endswith(FULL_FORECAST) else _plain(value)
            for name, value in forecasts.items()
            if name.startswith(f"{loss}|")
        },
        pilots,
        errors,
    )


# Without the parts that only intervals need.
def _plain(forecast: Mapping[str, Any]) -> dict[str, Any]:
    return {name: forecast[name] for name in FIGURES}


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
    """A figure of the forecast from so many pairs and target prompts, or its rating."""

    def scores(start: Start) -> Scores:
        rows = {c: start.forecasts[f"{c}|{pairs}|{prompts}|{family}"] for c in CANDIDATES}
        if kind == "rating":
            return {c: row["gain"] * max(row["agreement"], 0.01) for c, row in rows.items()}
        return {c: row[kind] for c, row in rows.items()}

    return scores


def ratings(start: Start) -> dict[str, Estimate]:
    """Of all pairs and prompts, with what the jackknife says."""

    def estimate(row: Mapping[str, Any], name: str) -> Estimate:
        left_out = (torch.tensor(row[f"{name}_{part}"]) for part in ("prompts", "batches"))
        by_prompts, by_batches = left_out
        return Estimate(row[name], by_prompts, (by_batches,))

    rows = {c: start.forecasts[c + FULL_FORECAST] for c in CANDIDATES}
    return {
        c: Forecast(*(estimate(row, name) for name in FIGURES)).rating for c, row in rows.items()
    }


def pilot(share: float, form: str, seeds: Sequence[int] = PILOT_SEEDS) -> Predictor:
    """Pilots of one size."""
    return lambda start: start.pilot(share, form, seeds)


def advised(share: float) -> Predictor:
    """As `advise` ranks by default: pilots of one size together with the forecast."""
    return lambda start: _with_errors(f"pilot {share:g}", start)[0]


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
    for prompts in TARGETS:
        yield f"forecast, {prompts} prompts", forecast("rating", prompts=prompts), "gradients"
    for pairs in GRADIENT_PAIRS[:-1]:
        yield f"forecast, {pairs} pairs", forecast("rating", pairs=pairs), "gradients"
    yield "gain of a step alone", forecast("gain"), "gradients"
    yield "gain of a step alone, SGD direction", forecast("gain", "sgd"), "gradients"
    yield "cosine alone", forecast("cosine"), "gradients"
    yield "agreement alone", forecast("agreement"), "gradients"
    for share in SHARES:
        for form in FORMS:
            name = f"pilots {share:g}, {form}"
            yield f"{name}, one seed", pilot(share, form, PILOT_SEEDS[:1]), f"{share:g}"
            yield f"{name}, two seeds", pilot(share, form), f"{2 * share:g}"
    for share in SHARES:
        name = f"forecast + pilots {share:g}, clipped, two seeds: `advise`"
        yield name, advised(share), f"gradients + {2 * share:g}"
    small, large = (pilot(share, SCORED, PILOT_SEEDS[:1]) for share in SHARES[1:])
    cost = f"{sum(SHARES[1:]):g}"
    yield "pilots 1/8 + 1/4, by scoring", together([small, large], starts), cost
    yield (
        "forecast + pilots 1/8 + 1/4, by scoring",
        together([forecast("rating"), small, large], starts),
        f"gradients + {cost}",
    )
    yield (
        "forecast + pilots 1/8 sampled + 1/4 by scoring",
        together([forecast("rating"), pilot(SHARES[1], "sampled", PILOT_SEEDS[:1]), large], starts),
        f"gradients + {cost}",
    )


# --- Measures ------------------------------------------------------------------------------------


def share_right(scores: Scores, truth: Scores) -> float:
    """Of the pairs of candidates in the truth, how many are in the right order."""
    return mean(
        0.5 if scores[a] == scores[b] else float((scores[a] > scores[b]) == (truth[a] > truth[b]))
        for a, b in combinations(truth, 2)
        if truth[a] != truth[b]
    )


def of_start(scores: Scores, truth: Scores) -> tuple[float, float, float]:
    """Accuracy, regret and rank correlation, on the candidates of the truth."""
    best = max(scores[c] for c in truth)
    chosen = mean(truth[c] for c in truth if scores[c] == best)
    values = [[side[c] for c in truth] for side in (scores, truth)]
    rank = float(spearmanr(*values).statistic) if len({*values[0]}) > 1 else math.nan
    return share_right(scores, truth), max(truth.values()) - chosen, rank


def off_or_on(scores: Scores, truth: Scores) -> tuple[float, float]:
    """Accuracy and regret where the choice is between pairs at hand and own answers alone."""
    rows = []
    for off in AT_HAND:
        both = {c: truth[c] for c in (off, "own")}
        accuracy, regret, _ = of_start(scores, both)
        rows.append((accuracy, regret))
    accuracy, regret = np.mean(rows, axis=0).tolist()
    return accuracy, regret


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


# --- Reliability ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Decision:
    """Which of two candidates a prediction named, how clearly, and whether rightly (½: a tie)."""

    world: int
    loss: str
    distance: float
    right: float


def decisions_of(kind: str, starts: Sequence[Start]) -> list[Decision]:
    """All decisions of one kind of prediction, as `Advice` makes them."""
    made = []
    for start in starts:
        scores, errors = _with_errors(kind, start)
        truth = start.truth()
        for a, b in PAIRS_OF_CANDIDATES:
            if f"{a}|{b}" not in errors:
                continue
            ahead, error = scores[a] - scores[b], errors[f"{a}|{b}"]
            distance = abs(ahead) / error if error else math.inf if ahead else 0.0
            right = 0.5 if not ahead else float((ahead > 0) == (truth[a] > truth[b]))
            made.append(Decision(start.world, LOSSES[start.loss][0], distance, right))
    return made


# Scores and standard errors of their differences.
def _with_errors(kind: str, start: Start) -> tuple[Scores, Scores]:
    if kind == "stage":  # between the pairs at hand and own answers, and those alone
        scores = boundary("boundary_probabilities")(start)
        return scores, {f"{c}|own": math.nan for c in AT_HAND}
    if kind == "forecast":
        made = ratings(start)
        errors = {f"{a}|{b}": made[a].minus(made[b]).error for a, b in PAIRS_OF_CANDIDATES}
        return {c: rating.value for c, rating in made.items()}, errors
    # As `prefstage.advising.standing` adds a forecast and a heat up: each by its error.
    forecast_scores, forecast_errors = _with_errors("forecast", start)
    best = max(forecast_scores, key=lambda c: forecast_scores[c])
    share = kind.split()[1]
    nearest = [e**2 for pair, e in forecast_errors.items() if best in pair.split("|")]
    scores = dict.fromkeys(CANDIDATES, 0.0)
    for gains, error in (
        (forecast_scores, math.sqrt(mean(nearest))),
        (start.pilot(float(share), ADVISED), start.errors[share]),
    ):
        for c in CANDIDATES:
            scores[c] += gains[c] / (error or 1e-12) / math.sqrt(2)
    return scores, {f"{a}|{b}": 1.0 for a, b in PAIRS_OF_CANDIDATES}


def fitted(made: Sequence[Decision], loss: str, *, floor: float | None = None) -> TrackRecord:
    """The curve of largest likelihood; ties are half right.

    Args:
        made: The decisions. Those of other losses count less: a world has few of each loss.
        loss: Whose curve is wanted.
        floor: What is right at distance 0; None: that is fitted too.
    """
    mine = [decision.right for decision in made if loss in (decision.loss, ANY_LOSS)]
    whole = {"loss": loss, "right": mean(mine), "decisions": len(mine)}
    right = np.array([decision.right for decision in made])
    weights = [1.0 if loss in (d.loss, ANY_LOSS) else OTHER_LOSSES for d in made]
    distances = np.array([decision.distance for decision in made])
    if np.isnan(distances).any():  # a prediction that does not say how clear it is
        return TrackRecord(floor=whole["right"], ceiling=whole["right"], scale=1.0, **whole)

    def curve(values: Any) -> tuple[float, float, float]:
        bottom = floor if floor is not None else 0.5 + 0.5 * expit(values[2])
        return (
            bottom,
            bottom + (1 - bottom) * expit(values[0]),
            math.exp(np.clip(values[1], *LOG_SCALES)),
        )

    def cost(values: Any) -> float:
        bottom, top, scale = curve(values)
        p = np.clip(bottom - (top - bottom) * np.expm1(-distances / scale), 1e-9, 1 - 1e-9)
        # One wrong decision, however clear, is added: nothing is right always.
        likelihood = np.dot(weights, right * np.log(p) + (1 - right) * np.log(1 - p))
        return -float(likelihood) - math.log(1.0 - top + 1e-9)

    starts = [(2.0, scale, 0.0)[: 2 if floor is not None else 3] for scale in (-1.0, 0.5, 2.0)]
    best = min((minimize(cost, s, method="Nelder-Mead") for s in starts), key=lambda r: r.fun)
    bottom, top, scale = curve(best.x)
    return TrackRecord(floor=bottom, ceiling=top, scale=scale, **whole)


def curves(made: Sequence[Decision], *, floor: float | None = 0.5) -> dict[str, TrackRecord]:
    """By loss, and of all."""
    losses = sorted({decision.loss for decision in made})
    return {loss: fitted(made, loss, floor=floor) for loss in (*losses, ANY_LOSS)}


def calibration(
    made: Sequence[Decision], *, floor: float | None = 0.5
) -> list[tuple[str, float, float, int]]:
    """Predicted against observed in bins, fitted on the other worlds each time."""
    predicted, observed = [], []
    for world in sorted({decision.world for decision in made}):
        fit = curves([decision for decision in made if decision.world != world], floor=floor)
        for decision in made:
            if decision.world == world:
                predicted.append(fit[decision.loss].at(decision.distance))
                observed.append(decision.right)
    rows = []
    values, right = np.array(predicted), np.array(observed)
    for low, high in pairwise(BINS):
        inside = (values >= low) & ((values < high) | (high == BINS[-1]))
        if inside.sum():
            shown = f"{low:g} to {high:g}"
            rows.append((shown, values[inside].mean(), right[inside].mean(), int(inside.sum())))
    return rows


def write_reliability(starts: Sequence[Start], file: Path) -> None:
    """Fit all worlds, print the check of each on the others, and write the table."""
    of_kind = {k: decisions_of(k, starts) for k in ("stage", "forecast", *PILOTS)}
    # What a pilot is worth after a forecast: its rightness by the forecast's clearness.
    for kind in PILOTS:
        of_kind[f"forecast, then {kind}"] = [
            replace(pilot, distance=forecast.distance)
            for forecast, pilot in zip(of_kind["forecast"], of_kind[kind], strict=True)
        ]
    kinds, worlds = {}, sorted({start.world for start in starts})
    for kind, made in of_kind.items():
        floor = None if "then" in kind else 0.5
        fit = curves(made, floor=floor)
        kinds[kind] = {
            loss: {name: value for name, value in asdict(record).items() if name != "loss"}
            for loss, record in fit.items()
        }
        if kind == "stage" or len(worlds) == 1:
            continue
        print(f"\n{kind}, fitted on the other worlds\n")
        rows = [
            (name, f"{100 * p:.1f} %", f"{100 * o:.1f} %", f"{count:,}")
            for name, p, o, count in calibration(made, floor=floor)
        ]
        print(markdown_table(("bin", "predicted", "observed", "decisions"), rows))
    command = "benchmarks/decision_table.py --reliability"
    table = {"command": command, "worlds": worlds, "kinds": _rounded(kinds)}
    file.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", maxsplit=1)[0])
    parser.add_argument("folder", type=Path, nargs="?", default=COLLECTED)
    parser.add_argument("--worlds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--collect", type=Path)
    parser.add_argument("--reliability", type=Path)
    asked = parser.parse_args()
    starts, lacking = read_starts(asked.folder, asked.worlds)
    print(f"{len(starts)} starts; {lacking} are not measured yet\n")
    if not starts:
        return
    if asked.collect is not None:
        collect(starts, asked.collect)
        return
    if asked.reliability is not None:
        write_reliability(starts, asked.reliability)
        return
    gaps = [abs(t[a] - t[b]) for t in (s.truth() for s in starts) for a, b in PAIRS_OF_CANDIDATES]
    print(f"{sum(gap < CLOSE for gap in gaps)} of {len(gaps)} decisions are closer than {CLOSE}\n")
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
    print("\nbetween pairs at hand and own answers alone\n")
    named = {name: predictor for name, predictor, _ in predictors(starts)}
    named["always the pairs at hand"] = lambda start: {c: float(c != "own") for c in CANDIDATES}
    rows = []
    for name in OFF_OR_ON:
        values = np.array([off_or_on(named[name](s), s.truth()) for s in starts])
        rows.append((name, f"{100 * values[:, 0].mean():.1f} %", f"{values[:, 1].mean():.4f}"))
    mixed = mean(
        max(truth[off], truth["own"]) - truth["mixed"]
        for truth in (start.truth() for start in starts)
        for off in AT_HAND[:1]
    )
    rows.append(("mixed in place of either", "-", f"{mixed:.4f}"))
    print(markdown_table(("predictor", "right", "regret"), rows))
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
