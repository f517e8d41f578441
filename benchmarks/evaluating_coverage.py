"""How often the intervals of `prefstage evaluate` hold the truth, by simulation.

    python benchmarks/evaluating_coverage.py [--runs 1000] [--only rates] [SHARED_DATA_FOLDER]

One line a cell: the interval, the case, its size, runs, coverage of 95 % intervals and their mean
width. The length-controlled cells take lengths and weights from models of AlpacaEval's
leaderboard, so they need the shared data; without the folder they are left out.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from evaluating import rows_of

from prefstage.evaluating.comparing import paired_differences
from prefstage.evaluating.l1_logistic import fit_l1_logistic
from prefstage.evaluating.length_controlled import length_controlled_win_rate
from prefstage.evaluating.length_fit import problem_of, sigmoid
from prefstage.evaluating.length_interval import length_controlled_interval
from prefstage.evaluating.length_rows import read_rows
from prefstage.evaluating.length_tables import length_tables, standardised_length
from prefstage.evaluating.mt_bench import Grade, score_interval
from prefstage.evaluating.rates import mean_interval
from prefstage.measuring.loop import chunk_sizes
from prefstage.measuring.sequential import ConfidenceSequence

Draw = Callable[[np.random.Generator, int], np.ndarray]
Cell = tuple[str, str, int, Callable[[np.random.Generator, int], tuple[bool, float]]]

OUTCOMES: dict[str, tuple[float, Draw]] = {
    "even, won or lost": (0.5, lambda rng, n: (rng.random(n) < 0.5).astype(float)),
    "5 % won": (0.05, lambda rng, n: (rng.random(n) < 0.05).astype(float)),
    "2 % won": (0.02, lambda rng, n: (rng.random(n) < 0.02).astype(float)),
    "98 % won": (0.98, lambda rng, n: (rng.random(n) < 0.98).astype(float)),
    "half drawn": (0.5, lambda rng, n: rng.choice([0.0, 0.5, 1.0], n, p=[0.25, 0.5, 0.25])),
    "graded, mean 0.1": (0.1, lambda rng, n: rng.beta(0.05, 0.45, n)),
    "graded, mean 0.03": (0.03, lambda rng, n: rng.beta(0.03, 0.97, n)),
    "graded, narrow": (0.3, lambda rng, n: rng.beta(30, 70, n)),
    "uniform": (0.5, lambda rng, n: rng.random(n)),
}


def rate_cells() -> Iterator[Cell]:
    """The raw and the discrete win rate."""
    for name, (truth, draw) in OUTCOMES.items():
        for n in (5, 20, 50, 100, 300, 805):

            def once(
                rng: np.random.Generator,
                seed: int,
                draw: Draw = draw,
                n: int = n,
                truth: float = truth,
            ) -> tuple[bool, float]:
                low, high = mean_interval(draw(rng, n), resamples=1000, seed=seed)
                return low <= truth <= high, 100 * (high - low)

            yield "win rate", name, n, once


def controlled_cells(folder: Path) -> Iterator[Cell]:
    """The length-controlled win rate, official prompts and others."""
    models = rows_of(folder)
    sizes = [(True, 805), (True, 300), (True, 100), (False, 300), (False, 100), (False, 40)]
    for model in ("alpaca-7b", "OpenHermes-2.5-Mistral-7B", "FuseChat-Gemma-2-9B-Instruct"):
        for official, n in sizes:
            name = f"{model}, {'official' if official else 'other'} prompts"
            yield "length-controlled", name, n, controlled_once(models[model], n, official)


def controlled_once(
    rows: dict[str, np.ndarray], n: int, official: bool
) -> Callable[[np.random.Generator, int], tuple[bool, float]]:
    """One experiment: n prompts drawn, preferences by the model that the regression assumes.

    The truth is what the method gives for these prompts where every preference is its
    expectation and nothing is uncertain: no penalty, the gamed rows at their share of n rows.
    """
    prompts, a, b = (rows[name] for name in ("instruction", "len_model", "len_baseline"))
    w = length_controlled_win_rate(rows["preference"], a, b, instruction=prompts).weights
    d = length_tables().difficulty[prompts.astype(int)]
    p = sigmoid(w.length * standardised_length(a, b) + w.difficulty * d + w.model)
    known = prompts if official else None
    ordered = read_rows(p, a, b, instruction=known, row=None, lookup="instruction", difficulty=None)
    problem = problem_of(ordered, length_tables(), regularise=official)
    v = problem.weights.copy()
    v[len(v) - len(p) :] *= n / len(p)
    fitted = fit_l1_logistic(problem.features, problem.labels, v[:, None], c=1e6).weights[0]
    truth = 100 * float(sigmoid(problem.test @ fitted).mean())

    def once(rng: np.random.Generator, seed: int) -> tuple[bool, float]:
        # without replacement, the official prompts stand once each; others are drawn freely
        drawn = rng.choice(len(p), n, replace=not official)
        share = np.clip(p[drawn], 1e-3, 1 - 1e-3)
        low, high = length_controlled_interval(
            rng.beta(0.5 * share, 0.5 * (1 - share)),
            a[drawn],
            b[drawn],
            instruction=prompts[drawn] if official else None,
            regularise=official,
            resamples=300,
            seed=seed,
        )
        return low <= truth <= high, high - low

    return once


def compared_cells() -> Iterator[Cell]:
    """All differences of a table at once, checkpoints that share prompts."""
    for models in (2, 4):
        for n in (20, 50, 200):
            for name, shift in (("no difference", 0.0), ("differences", 0.6)):

                def once(
                    rng: np.random.Generator,
                    seed: int,
                    models: int = models,
                    n: int = n,
                    shift: float = shift,
                ) -> tuple[bool, float]:
                    z = rng.normal(size=n) - 0.5 + shift * np.arange(models)[:, None]
                    y = (rng.random((models, n)) < sigmoid(z)).astype(float)
                    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
                    rates = [
                        float(weights @ sigmoid(nodes - 0.5 + shift * k) / weights.sum())
                        for k in range(models)
                    ]
                    lines = paired_differences(y, resamples=600, seed=seed)
                    held = [
                        low <= rates[i] - rates[j] <= high for (i, j), (low, high) in lines.items()
                    ]
                    width = float(np.mean([high - low for low, high in lines.values()]))
                    return all(held), 100 * width

                yield "all differences at once", f"{models} models, {name}", n, once


def sequential_cells() -> Iterator[Cell]:
    """The anytime-valid interval, at the moment when judging stops."""
    for name, (_, draw) in OUTCOMES.items():
        for n in (50, 300):

            def once(
                rng: np.random.Generator, seed: int, draw: Draw = draw, n: int = n
            ) -> tuple[bool, float]:
                values = draw(rng, n)
                sequence = ConfidenceSequence(available=n)
                begin, held = 0, True
                for size in chunk_sizes(n, first=16):
                    sequence.update(values[begin : begin + size])
                    begin += size
                    low, high = sequence.interval
                    held &= low - 1e-6 <= values.mean() <= high + 1e-6
                    if sequence.side is not None:
                        break
                return held, 100 * (high - low)

            yield "anytime, every look until the stop", name, n, once


def rating_cells() -> Iterator[Cell]:
    """MT-bench's mean over questions of two graded turns."""
    cases = {"good answers": (8.5, 1.5), "middling": (5.5, 2.5), "nearly all 10": (10.5, 1.0)}
    for name, (centre, spread) in cases.items():
        many = np.random.default_rng(1)
        truth = float(np.mean(ratings(many, 400_000, centre, spread)))
        for n in (4, 10, 80):
            yield "MT-bench score", name, n, rated_once(n, centre, spread, truth)


def rated_once(
    n: int, centre: float, spread: float, truth: float
) -> Callable[[np.random.Generator, int], tuple[bool, float]]:
    """One experiment: n questions graded."""

    def once(rng: np.random.Generator, seed: int) -> tuple[bool, float]:
        drawn = ratings(rng, n, centre, spread)
        grades = [
            Grade(k, "", turn + 1, 0, float(drawn[k, turn])) for k in range(n) for turn in (0, 1)
        ]
        low, high = score_interval(grades, 0.95) or (1.0, 10.0)
        return low <= truth <= high, high - low

    return once


def ratings(rng: np.random.Generator, n: int, centre: float, spread: float) -> np.ndarray:
    """Whole ratings of two turns; turns of a question are alike. [questions, 2]."""
    z = centre + spread * (0.7 * rng.normal(size=(n, 1)) + 0.7 * rng.normal(size=(n, 2)))
    return np.clip(np.round(z), 1, 10)


def main(typed: Sequence[str] | None = None) -> None:
    """Print one line a cell."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", help="the shared data folder")
    parser.add_argument("--runs", type=int, default=1000)
    kinds = ("rates", "controlled", "compared", "sequential", "ratings")
    parser.add_argument("--only", choices=kinds)
    parser.add_argument("--size", type=int, help="only cells of this size")
    arguments = parser.parse_args(typed)
    cells: dict[str, Callable[[], Iterator[Cell]]] = {
        "rates": rate_cells,
        "compared": compared_cells,
        "sequential": sequential_cells,
        "ratings": rating_cells,
    }
    if arguments.folder is not None:
        cells["controlled"] = lambda: controlled_cells(arguments.folder)
    print("interval | case | size | runs | coverage | mean width", flush=True)
    for kind, make in cells.items():
        if arguments.only not in (None, kind):
            continue
        for interval, name, n, once in make():
            if arguments.size not in (None, n):
                continue
            rng = np.random.default_rng([n, *name.encode()])
            found = [once(rng, seed) for seed in range(arguments.runs)]
            covered, width = np.mean(found, axis=0)
            print(
                f"{interval} | {name} | {n} | {arguments.runs} | {100 * covered:.1f} % |"
                f" {width:.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
