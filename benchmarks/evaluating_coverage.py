"""How often the intervals of `prefstage evaluate` hold the truth, by simulation.

    python benchmarks/evaluating_coverage.py [--runs 1000] [--only rates] [SHARED_DATA_FOLDER]

One line a cell and interval: the interval, the case, its size, runs, coverage of 95 % intervals and
their mean width. The length-controlled cells take lengths and weights from models of AlpacaEval's
leaderboard, so they need the shared data; without the folder they are left out.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from evaluating import rows_of
from scipy.special import expit as sigmoid

from prefstage.evaluating import estimate_difficulty, widened
from prefstage.evaluating.answers import Answers, gather_answers, user_prompt
from prefstage.evaluating.comparing import compare_win_rates
from prefstage.evaluating.mt_bench import Grade, score_interval
from prefstage.evaluating.settings import WinRateConfig
from prefstage.evaluating.win_rates import WinRate, win_rate
from prefstage.judging import Comparison, Judge, Judgment
from prefstage.measuring.boundary import ConfidenceSequence, chunk_sizes
from prefstage.measuring.length_controlled import length_controlled_win_rate, length_problem
from prefstage.measuring.length_interval import length_controlled_interval
from prefstage.measuring.rates import fit_l1_logistic, length_tables, rates_of, standardised_length

Draw = Callable[[np.random.Generator, int], np.ndarray]
Found = Mapping[str, tuple[bool, float]]
"""Interval → whether it held the truth, and its width; an interval that was not given is absent."""
Cell = tuple[str, int, Callable[[np.random.Generator, int], Found]]
Ends = tuple[float, float]

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
HARD = ("even, won or lost", "5 % won", "2 % won", "98 % won", "half drawn")


def held(ends: Ends, truth: float) -> tuple[bool, float]:
    """Whether an interval holds the truth, and its width."""
    return ends[0] <= truth <= ends[1], ends[1] - ends[0]


class Drawn(Judge):
    """A judge whose verdicts are drawn beforehand."""

    name = fingerprint = "drawn"

    def __init__(self, verdicts: Mapping[str, float]) -> None:
        self.verdicts = verdicts

    def compare(self, comparisons: Sequence[Comparison]) -> list[Judgment]:
        """The verdicts on these."""
        return [Judgment(self.verdicts[each.prompt_id]) for each in comparisons]


def said(name: str, lengths: Sequence[int]) -> Answers:
    """Answers of these lengths, to prompts that are numbers."""
    return gather_answers(name, [(user_prompt(str(k)), "x" * n) for k, n in enumerate(lengths)])


def judged(ours: Answers, theirs: Answers, y: np.ndarray, config: WinRateConfig) -> WinRate:
    """The win rate for these verdicts."""
    verdicts = dict(zip(ours.by_prompt, map(float, y), strict=True))
    return win_rate(ours, theirs, judge=Drawn(verdicts), config=config)


def rate_cells() -> Iterator[Cell]:
    """The raw and the discrete win rate; with wins and losses alone they are the same."""
    for name, (truth, draw) in OUTCOMES.items():
        for n in (5, 20, 50, 100, 300, 805):
            yield name, n, rates_once(draw, n, truth, hard=name in HARD)


def rates_once(
    draw: Draw, n: int, truth: float, *, hard: bool
) -> Callable[[np.random.Generator, int], Found]:
    """One experiment: n verdicts."""

    def once(rng: np.random.Generator, seed: int) -> Found:
        found = rates_of(draw(rng, n), resamples=1000, seed=seed)
        if hard:
            return {"discrete win rate": held(found.discrete_interval, 100 * truth)}
        return {"win rate": held(found.interval, 100 * truth)}

    return once


def stopped_cells() -> Iterator[Cell]:
    """Win rates where judging stops as soon as it is decided who is better."""
    for share in (0.5, 0.55, 0.6, 0.7, 0.9):
        for n in (100, 400):
            yield f"{100 * share:.0f} % won, --stop-early", n, stopped_once(share, n)


def stopped_once(share: float, n: int) -> Callable[[np.random.Generator, int], Found]:
    """One experiment: graded verdicts, in a world where the model wins this share."""
    ours, theirs = said("m", [1] * n), said("b", [2] * n)
    truth = float(np.mean(graded(np.random.default_rng(1), share, 400_000)))

    def once(rng: np.random.Generator, seed: int) -> Found:
        config = WinRateConfig(stop_early=True, length_controlled=False, resamples=500, seed=seed)
        found = judged(ours, theirs, graded(rng, share, n), config)
        return {
            "win rate": held(found.rates.interval, 100 * truth),
            "discrete win rate": held(found.rates.discrete_interval, 100 * share),
        }

    return once


def graded(rng: np.random.Generator, share: float, n: int) -> np.ndarray:
    """Verdicts of a judge that is more or less sure."""
    sure = rng.uniform(0.0, 0.4, n)
    return np.where(rng.random(n) < share, 1 - sure, sure)


def controlled_cells(folder: Path) -> Iterator[Cell]:
    """The length-controlled win rate, other prompts than AlpacaEval's and its own."""
    models = rows_of(folder)
    names = ("alpaca-7b", "OpenHermes-2.5-Mistral-7B", "FuseChat-Gemma-2-9B-Instruct")
    for model in names:
        for n in (30, 40, 100, 300):
            yield f"{model}, other prompts", n, controlled_once(models[model], n, official=False)
    for model, sizes in zip(names, ((30, 100, 805), (100,), (100, 805)), strict=True):
        for n in sizes:
            yield f"{model}, its prompts", n, controlled_once(models[model], n, official=True)


def controlled_once(
    rows: dict[str, np.ndarray], n: int, *, official: bool
) -> Callable[[np.random.Generator, int], Found]:
    """One experiment: n prompts drawn, preferences by the model that the regression assumes."""
    prompts, a, b = (rows[name] for name in ("instruction", "len_model", "len_baseline"))
    p, truth = expected(rows, n, official=official)

    def once(rng: np.random.Generator, seed: int) -> Found:
        # without replacement, the official prompts stand once each; others are drawn freely
        drawn = rng.choice(len(p), n, replace=not official)
        ends = length_controlled_interval(
            verdicts(rng, p[drawn]),
            a[drawn],
            b[drawn],
            instruction=prompts[drawn] if official else None,
            regularise=official,
            resamples=300,
            seed=seed,
        )
        return {"length-controlled": held(ends, truth)}

    return once


def expected(rows: dict[str, np.ndarray], n: int, *, official: bool) -> tuple[np.ndarray, float]:
    """Each prompt's expected preference, and the length-controlled rate that is true there.

    The truth is what the method gives for these prompts where every preference is its
    expectation and nothing is uncertain: no penalty, the gamed rows at their share of n rows.
    """
    prompts, a, b = (rows[name] for name in ("instruction", "len_model", "len_baseline"))
    w = length_controlled_win_rate(rows["preference"], a, b, instruction=prompts).weights
    d = length_tables().difficulty[prompts.astype(int)]
    p = sigmoid(w.length * standardised_length(a, b) + w.difficulty * d + w.model)
    known = prompts if official else None
    problem = length_problem(p, a, b, instruction=known, regularise=official)
    v = problem.weights.copy()
    v[len(v) - len(p) :] *= n / len(p)
    fitted = fit_l1_logistic(problem.features, problem.labels, v[:, None], c=1e6)[0]
    return p, 100 * float(sigmoid(problem.test @ fitted).mean())


def verdicts(rng: np.random.Generator, p: np.ndarray) -> np.ndarray:
    """Verdicts of these means, mostly near 0 and 1."""
    share = np.clip(p, 1e-3, 1 - 1e-3)
    return rng.beta(0.5 * share, 0.5 * (1 - share))


def stopped_controlled_cells(folder: Path) -> Iterator[Cell]:
    """The length-controlled win rate where judging stops early, on other prompts."""
    models = rows_of(folder)
    for model in ("OpenHermes-2.5-Mistral-7B", "FuseChat-Gemma-2-9B-Instruct"):
        yield f"{model}, --stop-early", 300, stopped_controlled_once(models[model], 300)


def stopped_controlled_once(
    rows: dict[str, np.ndarray], n: int
) -> Callable[[np.random.Generator, int], Found]:
    """One experiment: up to n prompts drawn and judged."""
    a, b = (rows[name].astype(int) for name in ("len_model", "len_baseline"))
    p, truth = expected(rows, n, official=False)

    def once(rng: np.random.Generator, seed: int) -> Found:
        drawn = rng.choice(len(p), n)
        config = WinRateConfig(stop_early=True, resamples=300, seed=seed)
        found = judged(said("m", a[drawn]), said("b", b[drawn]), verdicts(rng, p[drawn]), config)
        lines = {"win rate": held(found.rates.interval, 100 * float(p.mean()))}
        if found.controlled_interval is not None:
            lines["length-controlled"] = held(found.controlled_interval, truth)
        return lines

    return once


def joint_cells() -> Iterator[Cell]:
    """Length control with difficulties estimated from all models (--joint-difficulty)."""
    for models in (3, 8):
        for n in (50, 200):
            yield f"{models} models, --joint-difficulty", n, joint_once(models, n)


def joint_once(models: int, n: int) -> Callable[[np.random.Generator, int], Found]:
    """One experiment: prompts of unknown difficulty, models that differ in skill and length."""
    skill = np.linspace(-0.8, 0.8, models)
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    truth = 100 * float(weights @ sigmoid(nodes + skill[0]) / weights.sum())

    def once(rng: np.random.Generator, seed: int) -> Found:
        d = rng.normal(size=n)
        b = np.exp(rng.normal(6.5, 0.8, n))
        a = b * np.exp(rng.normal(0.1, 0.5, (models, n)))
        t = np.stack([standardised_length(row, b) for row in a])
        y = verdicts(rng, sigmoid(-0.8 * t + skill[:, None] + d))
        difficulty, shares = estimate_difficulty(y, a, b)
        rows: dict[str, Any] = {"difficulty": difficulty, "regularise": False}
        rate = length_controlled_win_rate(y[0], a[0], b, **rows).length_controlled_win_rate
        ends = length_controlled_interval(y[0], a[0], b, **rows, resamples=300, seed=seed)
        ends = widened(ends, rate, absorbed=float(shares[0]))
        return {"length-controlled": held(ends, truth)}

    return once


def compared_cells() -> Iterator[Cell]:
    """All differences of a table at once, checkpoints that share prompts."""
    for models in (2, 4):
        for n in (20, 50, 200):
            for name, shift in (("no difference", 0.0), ("differences", 0.6)):
                yield f"{models} models, {name}", n, compared_once(models, n, shift)


def compared_once(models: int, n: int, shift: float) -> Callable[[np.random.Generator, int], Found]:
    """One experiment: every interval must hold, and no verdict on a pair be wrong."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    rates = {
        str(k): 100 * float(weights @ sigmoid(nodes - 0.5 + shift * k) / weights.sum())
        for k in range(models)
    }
    theirs, ours = said("b", [2] * n), {name: said(name, [1] * n) for name in rates}
    config = WinRateConfig(length_controlled=False, resamples=1)

    def once(rng: np.random.Generator, seed: int) -> Found:
        z = rng.normal(size=n) - 0.5 + shift * np.arange(models)[:, None]
        y = (rng.random((models, n)) < sigmoid(z)).astype(float)
        results = {
            name: judged(each, theirs, row, config)
            for (name, each), row in zip(ours.items(), y, strict=True)
        }
        lines = compare_win_rates(results, resamples=600, seed=seed)
        gaps = [rates[line.first] - rates[line.second] for line in lines]
        ends = [held(line.interval, gap) for line, gap in zip(lines, gaps, strict=True)]
        wrong = [
            line.better == (line.first if gap <= 0 else line.second)
            or (line.better is not None and gap == 0)
            for line, gap in zip(lines, gaps, strict=True)
        ]
        width = float(np.mean([each for _, each in ends]))
        return {
            "all differences at once": (all(each for each, _ in ends), width),
            "no wrong verdict in the table": (not any(wrong), float("nan")),
        }

    return once


def sequential_cells() -> Iterator[Cell]:
    """The anytime-valid interval when judging stops: it is never wider than at any look before."""
    for name, (_, draw) in OUTCOMES.items():
        for n in (50, 300):

            def once(rng: np.random.Generator, seed: int, draw: Draw = draw, n: int = n) -> Found:
                values = draw(rng, n)
                sequence = ConfidenceSequence(available=n)
                begin = 0
                for size in chunk_sizes(n, first=16):
                    sequence.update(values[begin : begin + size])
                    begin += size
                    if sequence.side is not None:
                        break
                low, high = sequence.interval
                truth = 100 * float(values.mean())
                return {"anytime": held((100 * low - 1e-4, 100 * high + 1e-4), truth)}

            yield name, n, once


def rating_cells() -> Iterator[Cell]:
    """MT-bench's mean over questions of two graded turns."""
    cases = {"good answers": (8.5, 1.5), "middling": (5.5, 2.5), "nearly all 10": (10.5, 1.0)}
    for name, (centre, spread) in cases.items():
        many = np.random.default_rng(1)
        truth = float(np.mean(ratings(many, 400_000, centre, spread)))
        for n in (4, 10, 80):
            yield name, n, rated_once(n, centre, spread, truth)


def rated_once(
    n: int, centre: float, spread: float, truth: float
) -> Callable[[np.random.Generator, int], Found]:
    """One experiment: n questions graded."""

    def once(rng: np.random.Generator, seed: int) -> Found:
        drawn = ratings(rng, n, centre, spread)
        grades = [
            Grade(k, "", turn + 1, 0, float(drawn[k, turn])) for k in range(n) for turn in (0, 1)
        ]
        return {"MT-bench score": held(score_interval(grades, 0.95) or (1.0, 10.0), truth)}

    return once


def ratings(rng: np.random.Generator, n: int, centre: float, spread: float) -> np.ndarray:
    """Whole ratings of two turns; turns of a question are alike. [questions, 2]."""
    z = centre + spread * (0.7 * rng.normal(size=(n, 1)) + 0.7 * rng.normal(size=(n, 2)))
    return np.clip(np.round(z), 1, 10)


def main(typed: Sequence[str] | None = None) -> None:
    """Print one line a cell and interval."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", help="the shared data folder")
    parser.add_argument("--runs", type=int, default=1000)
    kinds: dict[str, Callable[[], Iterator[Cell]]] = {
        "rates": rate_cells,
        "stopped": stopped_cells,
        "compared": compared_cells,
        "sequential": sequential_cells,
        "ratings": rating_cells,
        "joint": joint_cells,
        "controlled": lambda: controlled_cells(arguments.folder),
        "stopped-controlled": lambda: stopped_controlled_cells(arguments.folder),
    }
    parser.add_argument("--only", choices=kinds, action="append", help="repeat it for several")
    parser.add_argument("--size", type=int, help="only cells of this size")
    parser.add_argument("--case", default="", help="only cases whose name holds this")
    arguments = parser.parse_args(typed)
    print("interval | case | size | runs | coverage | mean width", flush=True)
    for kind in arguments.only or kinds:
        if arguments.folder is None and kind.endswith("controlled"):
            continue
        for name, n, once in kinds[kind]():
            if arguments.size not in (None, n) or arguments.case not in name:
                continue
            rng = np.random.default_rng([n, *name.encode()])
            found = [once(rng, seed) for seed in range(arguments.runs)]
            for interval in dict.fromkeys(each for one in found for each in one):
                lines = [one[interval] for one in found if interval in one]
                covered, width = np.mean(lines, axis=0)
                print(
                    f"{interval} | {name} | {n} | {len(lines)} | {100 * covered:.1f} % |"
                    f" {width:.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
