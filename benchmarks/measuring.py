"""How many prompts the sequential test takes, and how often it is wrong, by simulation.

Each cell draws sets of 2,000 prompts whose boundary score is known, runs the product's own
confidence sequence over them in random order with the product's own looks, and counts wrong
decisions, prompts used, and how often the interval lost the true score before it stopped.

The worlds, by the judge's view of m = n = 2 responses a prompt with normal rewards, shifted
from prompt to prompt (hard and easy prompts), unless said otherwise:

- votes: hard votes, as in the paper;
- probabilities: P(y > y') itself instead of votes;
- ties half, ties off: the judge cannot tell close rewards; a tie counts half, or for off;
- all or nothing: m = n = 1, a prompt scores 0 or 1, the largest variance there is;
- almost constant: every prompt scores within 0.02 of the boundary score.

Right is the side of 1/2 on which the true boundary score is. At exactly 1/2 there is no right
side, and every decision counts as wrong.

Run: python benchmarks/measuring.py [--runs 1000] [--seed 0] [--out FILE.json]
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from prefstage.measuring import MeasureConfig, rejection_step
from prefstage.measuring.boundary import chunk_sizes

Floats = NDArray[np.float64]
Rng = np.random.Generator

PROMPTS = 2_000  # of the paper's fixed-size measurement
LEVEL = (1.0 - MeasureConfig().confidence) / 2.0  # of each side
SPREAD = 1.0  # of the prompts' shifts, in standard deviations of a response's reward
TIE_BAND = 0.5  # rewards closer than this are a tie where the judge has ties
SHARPNESS = 2.0  # P = σ(SHARPNESS · difference) where probabilities count
PREFIXES = (128, 512)  # most runs end early: the rest is computed only where it is needed
RUNS_AT_ONCE = 50
SCORES = (0.2, 0.3, 0.4, 0.45, 0.49, 0.5, 0.51, 0.55, 0.6, 0.7, 0.8)
NEW_PROMPT_SCORES = (0.3, 0.4, 0.49, 0.5, 0.51, 0.6, 0.7)
PAPER = {  # "BS (initial)" of arXiv:2508.10530, Tables 3 and 4: policy, trained on before
    "Llama-3-8B-Instruct": 0.62,
    "Llama-3-8B-Instruct, off": 0.66,
    "Llama-3-8B-Instruct, on": 0.69,
    "Zephyr-7B": 0.40,
    "Zephyr-7B, off": 0.66,
    "Zephyr-7B, on": 0.58,
    "Phi-2": 0.23,
    "Phi-2, off": 0.25,
    "Phi-2, on": 0.23,
    "Qwen2.5-1.5B": 0.35,
    "Qwen2.5-1.5B, off": 0.47,
    "Qwen2.5-1.5B, on": 0.38,
    "Pythia-6.9B": 0.22,
    "Pythia-6.9B, off": 0.26,
    "Pythia-6.9B, on": 0.24,
}


@dataclass(frozen=True)
class Cell:
    """What happened in one world at one boundary score.

    Attributes:
        world: Name of the world.
        population: Whether the score is that of the 2,000 prompts, or of new ones.
        score: The true boundary score.
        runs: Simulated measurements.
        variance: Of a prompt's score.
        median: Prompts used, median over runs.
        ninth_decile: Prompts used, 90 % of runs use fewer.
        wrong: Share of runs with a wrong decision.
        undecided: Share of runs without a decision.
        lost: Share of runs whose interval lost the true score before it stopped.
    """

    world: str
    population: str
    score: float
    runs: int
    variance: float
    median: float
    ninth_decile: float
    wrong: float
    undecided: float
    lost: float


def rewards_of(rng: Rng, score: float, shape: tuple[int, int]) -> Floats:
    """Reward differences of 2 × 2 responses. [runs, prompts, 2, 2]."""
    shift = NormalDist().inv_cdf(score) * math.sqrt(2.0 + SPREAD**2)
    prompts = rng.normal(shift, SPREAD, size=(*shape, 1, 1))
    return prompts + rng.normal(size=(*shape, 2, 1)) - rng.normal(size=(*shape, 1, 2))


def votes(rng: Rng, score: float, shape: tuple[int, int]) -> Floats:
    """Shares of hard votes."""
    return (rewards_of(rng, score, shape) > 0).mean(axis=(-1, -2))


def probabilities(rng: Rng, score: float, shape: tuple[int, int]) -> Floats:
    """Mean probabilities."""
    p = 1.0 / (1.0 + np.exp(-SHARPNESS * rewards_of(rng, score, shape)))
    return p.mean(axis=(-1, -2))


def with_ties(rng: Rng, score: float, shape: tuple[int, int], *, worth: float) -> Floats:
    """Shares of hard votes, where a close pair counts `worth`."""
    difference = rewards_of(rng, score, shape)
    tied = np.abs(difference) < TIE_BAND
    return np.where(tied, worth, difference > 0).mean(axis=(-1, -2))


def all_or_nothing(rng: Rng, score: float, shape: tuple[int, int]) -> Floats:
    """One vote a prompt."""
    return (rng.random(shape) < score).astype(np.float64)


def almost_constant(rng: Rng, score: float, shape: tuple[int, int]) -> Floats:
    """Scores in a narrow band."""
    return score + rng.uniform(-0.02, 0.02, size=shape)


World = Callable[[Rng, float, tuple[int, int]], Floats]
WORLDS: dict[str, tuple[World, float]] = {  # with the step of a score, 0 if continuous
    "votes": (votes, 1 / 4),
    "probabilities": (probabilities, 0.0),
    "ties half": (partial(with_ties, worth=0.5), 1 / 8),
    "ties off": (partial(with_ties, worth=0.0), 1 / 4),
    "all or nothing": (all_or_nothing, 1.0),
    "almost constant": (almost_constant, 0.0),
}


def settle(rng: Rng, scores: Floats, score: float, step: float) -> Floats:
    """Change as little as needed for every row's mean to be exactly `score`."""
    if step == 0.0:
        mean = scores.mean(axis=1, keepdims=True)
        up = scores + (score - mean) * (1.0 - scores) / (1.0 - mean)
        return np.clip(np.where(mean < score, up, scores * score / mean), 0.0, 1.0)
    for row in scores:
        missing = round((score * row.size - row.sum()) / step)
        while missing:
            change = math.copysign(step, missing)
            room = np.flatnonzero((row + change >= 0.0) & (row + change <= 1.0))
            chosen = rng.choice(room, size=min(abs(missing), room.size), replace=False)
            row[chosen] += change
            missing -= int(math.copysign(chosen.size, missing))
    return rng.permuted(scores, axis=1)


def first_rejections(scores: Floats, mean: float, available: int | None) -> NDArray[np.int64]:
    """Steps at which "mean ≤ …" and "mean ≥ …" are first rejected. [2, runs]."""
    return np.stack(
        [
            rejection_step(x, m, available=available, level=LEVEL)
            for x, m in ((scores, mean), (1.0 - scores, 1.0 - mean))
        ]
    )


def looks(prompts: int) -> NDArray[np.int64]:
    """After how many prompts the product looks at the interval."""
    return np.cumsum(list(chunk_sizes(prompts, first=MeasureConfig().first_chunk)))


def play(scores: Floats, truth: float, available: int | None) -> dict[str, Floats]:
    """Measure each row as the product does.

    Returns:
        For each run: prompts used, the side decided (+1 above, -1 below, 0 none), and
        whether the interval lost the truth by then.
    """
    runs, prompts = scores.shape
    used, side, lost = np.full(runs, float(prompts)), np.zeros(runs), np.zeros(runs)
    open_runs = np.arange(runs)
    for length in (*(prefix for prefix in PREFIXES if prefix < prompts), prompts):
        prefix = scores[open_runs, :length]
        step = first_rejections(prefix, 0.5, available)
        first = np.minimum(step.min(axis=0), prompts)
        found = step.min(axis=0) <= length
        look = looks(prompts)[np.searchsorted(looks(prompts), first)]
        ended = (found & (look <= length)) | (length == prompts)
        done = open_runs[ended]
        used[done] = np.where(found, look, prompts)[ended]
        side[done] = np.where(found, np.where(step[0] < step[1], 1.0, -1.0), 0.0)[ended]
        truth_lost = first_rejections(prefix[ended], truth, available).min(axis=0)
        lost[done] = truth_lost <= used[done]
        open_runs = open_runs[~ended]
    if available is not None:  # all prompts used: the mean is known, in whole
        exact = np.sign(np.round(scores.mean(axis=1) - 0.5, 9))
        side = np.where(used == available, exact, side)
    return {"used": used, "side": side, "lost": lost}


def simulate(name: str, score: float, *, runs: int, seed: int, new_prompts: bool = False) -> Cell:
    """Fill one cell of the table."""
    world, step = WORLDS[name]
    rng = np.random.default_rng([seed, sorted(WORLDS).index(name), round(score * 1000)])
    parts, variances = [], []
    for start in range(0, runs, RUNS_AT_ONCE):
        scores = world(rng, score, (min(RUNS_AT_ONCE, runs - start), PROMPTS))
        if not new_prompts:
            scores = settle(rng, scores, score, step)
        parts.append(play(scores, score, None if new_prompts else PROMPTS))
        variances.append(float(scores.var(axis=1).mean()))
    used, side, lost = (np.concatenate([p[key] for p in parts]) for key in ("used", "side", "lost"))
    right = math.copysign(1.0, score - 0.5) if score != 0.5 else 0.0
    return Cell(
        world=name,
        population="new prompts" if new_prompts else "these prompts",
        score=score,
        runs=runs,
        variance=float(np.mean(variances)),
        median=float(np.median(used)),
        ninth_decile=float(np.quantile(used, 0.9)),
        wrong=float(np.mean((side != 0.0) & (side != right))),
        undecided=float(np.mean(side == 0.0)),
        lost=float(np.mean(lost)),
    )


def cells(runs: int, seed: int) -> list[Cell]:
    """All cells of the validity table."""
    finite = [
        simulate(name, score, runs=runs, seed=seed)
        for name in WORLDS
        for score in SCORES
        if name != "ties off" or score < 0.5  # ties for off leave few votes for the rest
    ]
    infinite = [
        simulate(name, score, runs=runs, seed=seed, new_prompts=True)
        for name in ("votes", "all or nothing")
        for score in NEW_PROMPT_SCORES
    ]
    return finite + infinite


def paper_cells(runs: int, seed: int) -> dict[float, tuple[Cell, Cell]]:
    """Votes and probabilities at each boundary score of the paper."""
    return {
        score: (
            simulate("votes", score, runs=runs, seed=seed),
            simulate("probabilities", score, runs=runs, seed=seed),
        )
        for score in sorted(set(PAPER.values()))
    }


def validity_table(table: list[Cell]) -> str:
    """Wrong decisions and lost intervals, as Markdown."""
    lines = [
        "| world | about | BS | variance | median prompts | 90 % | wrong | undecided | lost |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {c.world} | {c.population} | {c.score:.2f} | {c.variance:.3f} | {c.median:.0f} |"
        f" {c.ninth_decile:.0f} | {c.wrong:.1%} | {c.undecided:.1%} | {c.lost:.1%} |"
        for c in table
    ]
    return "\n".join(lines)


def paper_table(found: dict[float, tuple[Cell, Cell]]) -> str:
    """Prompts needed at the paper's boundary scores, as Markdown."""
    lines = [
        "| initial policy (trained before on) | BS | votes: median | 90 % | of 2,000 |"
        " probabilities: median | 90 % | of 2,000 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for policy, score in PAPER.items():
        row = [
            f"{c.median:.0f} | {c.ninth_decile:.0f} | {c.median / PROMPTS:.1%}"
            for c in found[score]
        ]
        lines.append(f"| {policy} | {score:.2f} | {row[0]} | {row[1]} |")
    return "\n".join(lines)


def main() -> None:
    """Print both tables; write the cells as JSON where asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    started = time.monotonic()
    table = cells(options.runs, options.seed)
    paper = paper_cells(options.runs, options.seed)
    seconds = time.monotonic() - started
    every = [*table, *(cell for pair in paper.values() for cell in pair)]
    worst = max(cell.wrong for cell in every)
    lost = max(cell.lost for cell in every)
    print(f"Prompts needed at the paper's boundary scores, against {PROMPTS:,}\n")
    print(paper_table(paper))
    print(f"\nValidity: {options.runs:,} runs a cell\n")
    print(validity_table(table))
    print(f"\nWorst cell: {worst:.1%} wrong decisions, {lost:.1%} lost intervals", end="")
    print(f" (at most 5 % promised); {len(every)} cells in {seconds:.0f} s")
    if options.out is not None:
        result = {"seconds": seconds, "cells": [asdict(cell) for cell in every], "paper": PAPER}
        options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
