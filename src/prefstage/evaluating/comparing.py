"""Several checkpoints over the same prompts: which differ, and what their rankings tell."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np

from prefstage.core import InputError, seed_for
from prefstage.evaluating.win_rates import WinRate, confidence_at_stop
from prefstage.measuring.rates import (
    HALF,
    Figures,
    Floats,
    batches,
    effective_interval,
    standard_error,
)

Interval = tuple[float, float]

_AT_ONCE = 500
_ROUNDING = 1e-12
_FEWEST_CHECKPOINTS = 3


@dataclass(frozen=True)
class Difference(Figures):
    """One pair of models on the prompts that both were judged on; in percentage points.

    Attributes:
        first: A model.
        second: Another.
        difference: Win rate of the first less that of the second, on common prompts.
        standard_error: Of the paired difference.
        interval: Simultaneous: all intervals of the table hold at once.
        p_value: Adjusted for all pairs of the table (family-wise).
        better: The better one's name where the adjusted p-value decides it, else None.
        prompts: Common prompts with both verdicts.
    """

    first: str
    second: str
    difference: float
    standard_error: float
    interval: tuple[float, float]
    p_value: float
    better: str | None
    prompts: int

    def as_text(self) -> str:
        """The difference in a line."""
        return (
            f"{self.first} - {self.second}: {self.difference:+.2f} points "
            f"[{self.interval[0]:+.2f}, {self.interval[1]:+.2f}], p = {self.p_value:.4f}, "
            f"better: {self.better or 'undecided'}"
        )


def compare_win_rates(
    results: Mapping[str, WinRate],
    *,
    confidence: float = 0.95,
    resamples: int = 5000,
    seed: int = 0,
) -> list[Difference]:
    """Compare models that were judged against the same baseline, prompt by prompt.

    The largest studentised difference under random sign flips, one flip a prompt for all
    pairs at once, gives p-values that hold for all pairs together; so do the intervals.

    Args:
        results: name → win rate; at least two, of the same baseline and judge.
        confidence: Of the whole table, in (0, 1).
        resamples: Sign flips and bootstrap draws, each.
        seed: Of both.

    Returns:
        A line for each pair, in the order of `results`.

    Raises:
        InputError: If there are fewer than two models, baselines or judges differ, or two
            models share fewer than two prompts.

    Source:
        Westfall and Young 1993, Resampling-Based Multiple Testing, Alg. 2.5 (single step).
    """
    against = sorted({f"{rate.baseline} by {rate.judge}" for rate in results.values()})
    InputError.unless(
        len(results) >= 2 and 0 < confidence < 1,  # noqa: PLR2004 - a pair
        saw=f"{len(results)} models at confidence {confidence}",
        expected="at least two models, confidence in (0, 1)",
        cure="give the win rates of several checkpoints",
    )
    InputError.unless(
        len(against) <= 1,
        saw=f"win rates against {', '.join(against)}",
        expected="one baseline and one judge",
        cure="judge all models against the same baseline by the same judge",
    )
    verdicts = [{v.prompt_id: v.preference for v in rate.verdicts} for rate in results.values()]
    prompts = sorted(set().union(*verdicts))
    y = np.array([[known.get(key, np.nan) for key in prompts] for known in verdicts])
    d = np.stack([first - second for first, second in combinations(y, 2)])
    names, common = list(combinations(results, 2)), (~np.isnan(d)).sum(axis=1)
    InputError.unless(
        common.min() >= 2,  # noqa: PLR2004 - an error needs two
        saw=f"{common.min()} prompts judged for both {' and '.join(names[common.argmin()])}",
        expected="at least two",
        cure="judge the models on the same prompts",
    )
    at_stop = confidence_at_stop(
        confidence,
        max(rate.looks for rate in results.values()),
        early=any(rate.stopped == "decided" for rate in results.values()),
    )
    # Times the looks at which judging might have stopped (Bonferroni).
    p_values = np.minimum(1.0, (1 - confidence) / (1 - at_stop) * _p_values(d, resamples, seed))
    values = [row[~np.isnan(row)] for row in d]
    return [
        Difference(
            first=first,
            second=second,
            difference=100 * float(known.mean()),
            standard_error=100 * standard_error(known),
            interval=(100 * ends[0], 100 * ends[1]),
            p_value=float(p),
            better=(first if known.mean() > 0 else second)
            if p <= 1 - confidence and known.mean()
            else None,
            prompts=len(known),
        )
        for (first, second), known, ends, p in zip(
            names, values, _intervals(d, at_stop, resamples, seed), p_values, strict=True
        )
    ]


# Intervals of all pairs' mean differences, in [-1, 1], that hold at once. Each is the union of two:
# the bootstrap of prompts, studentised by the largest |t| of all pairs (Efron and Tibshirani 1993,
# An Introduction to the Bootstrap, §12.5), and Bonferroni's share of `effective_interval`, which
# does not rely on what few prompts happen to show of rare differences.
def _intervals(d: Floats, confidence: float, resamples: int, seed: int) -> list[Interval]:
    n = d.shape[1]
    mean, error = (values[0] for values in _mean_and_error(d, np.ones((1, n))))
    rng = np.random.default_rng(seed_for(seed, "compare"))
    # How often each prompt is drawn, for all pairs at once: differences that share a model or a
    # prompt move together, which makes the largest of them smaller than Bonferroni's.
    draws = (
        rng.multinomial(n, np.full(n, 1 / n), size=size).astype(np.float64)
        for size in batches(resamples, _AT_ONCE)
    )
    half = float(np.quantile(_largest(d, mean, draws), confidence)) * error
    share, intervals = 1 - (1 - confidence) / len(d), list[Interval]()
    for values, m, h in zip(d, mean, half, strict=True):
        shares = HALF + HALF * values[~np.isnan(values)]
        low, high = (2 * end - 1 for end in effective_interval(shares, confidence=share))
        intervals.append((max(-1.0, min(low, float(m - h))), min(1.0, max(high, float(m + h)))))
    return intervals


# If two models are equally good, the sign of their difference on a prompt is chance: flipping it at
# random shows how large the largest |t| of all pairs gets then.
def _p_values(d: Floats, resamples: int, seed: int) -> Floats:
    rng = np.random.default_rng(seed_for(seed, "flips"))
    mean, error = _mean_and_error(d, np.ones((1, d.shape[1])))
    draws = (
        rng.choice([-1.0, 1.0], size=(size, d.shape[1])) for size in batches(resamples, _AT_ONCE)
    )
    # The verdicts themselves are one of the flips, so that no p-value is zero; a flip that equals
    # them may come out smaller by a rounding error.
    at_least = _largest(d, 0.0, draws)[:, None] >= np.abs(mean / error) - _ROUNDING
    return np.asarray((1 + at_least.sum(axis=0)) / (resamples + 1))


# Of each draw the largest |t| of all pairs. [draws]. Draws come some at a time, and are made when
# they are needed: memory must not grow with all of them.
def _largest(d: Floats, mean: Floats | float, draws: Iterable[Floats]) -> Floats:
    return np.concatenate(
        [
            (np.abs(means - mean) / errors).max(axis=1)
            for means, errors in (_mean_and_error(d, factors) for factors in draws)
        ]
    )


# Mean and its standard error of each pair, rows flipped (±1) or repeated (0, 1, 2, …), both
# [draws, pairs]. A flipped row keeps its square; a repeated one counts so often. The error is that
# with one more row at 1 and one at -1, so that it is never zero.
def _mean_and_error(d: Floats, factors: Floats) -> tuple[Floats, Floats]:
    known = ~np.isnan(d)
    x = np.where(known, d, 0.0)
    often = np.abs(factors)
    n = np.maximum(often @ known.T, 1.0)
    total = factors @ x.T
    square = (often @ (x**2).T + 2) / (n + 2)
    return total / n, np.sqrt((square - (total / (n + 2)) ** 2) / (n + 1))


@dataclass(frozen=True)
class CheckpointRates:
    """One checkpoint.

    Attributes:
        step: Optimiser step.
        ranking_accuracy: Share of the followed pairs that the policy ranks rightly, in [0, 1].
        win_rate: Of its answers over the baseline's, percent.
        interval: Of the win rate.
        weight_distance: ‖θ - θ_start‖₂; None where the run did not record it.
    """

    step: int
    ranking_accuracy: float
    win_rate: float
    interval: tuple[float, float]
    weight_distance: float | None


@dataclass(frozen=True)
class CheckpointTable(Figures):
    """Checkpoints of one run, by step.

    Attributes:
        pairs: Name of the followed pairs, such as "train" or "eval".
        checkpoints: One line each.
        correlation: Pearson's, of ranking accuracy and win rate over the checkpoints; None
            for fewer than three, or where one of the two stays the same.
    """

    pairs: str
    checkpoints: tuple[CheckpointRates, ...]
    correlation: float | None

    def as_text(self) -> str:
        """A line a checkpoint."""
        lines = [
            f"  step {line.step}: ranking accuracy {100 * line.ranking_accuracy:.1f} %, win "
            f"rate {line.win_rate:.2f} % [{line.interval[0]:.2f}, {line.interval[1]:.2f}]"
            + ("" if line.weight_distance is None else f", distance {line.weight_distance:.4g}")
            for line in self.checkpoints
        ]
        if self.correlation is not None:
            lines.append(f"  correlation over the checkpoints {self.correlation:+.2f}")
        return "\n".join([f"rankings of the {self.pairs} pairs beside win rates:", *lines])


def rankings_against_win_rates(
    dynamics: str | Path, win_rates: Mapping[int, WinRate], *, pairs: str = "eval"
) -> CheckpointTable:
    """Compare what a run recorded of its rankings with what its checkpoints win.

    Near the start of training the two rise together; far from it, as the weight distance
    tells, the win rate may fall while rankings still improve.

    Args:
        dynamics: The folder of a `DynamicsCallback`; ``prefstage train`` writes it into the
            run folder.
        win_rates: Optimiser step → win rate of the checkpoint.
        pairs: Which followed pairs: "train", "eval" or "eval_NAME".

    Returns:
        A line for each checkpoint.

    Raises:
        DataError: If nothing is recorded in the folder.
        InputError: If a step, or the pairs, were not recorded.

    Source:
        Chen et al. 2024, Preference Learning Algorithms Do Not Learn Preference Rankings,
        arXiv:2405.19534, Figs. 4, 9 and 11.
    """
    from prefstage.training import read_metrics

    key = ("" if pairs == "train" else f"{pairs}_") + "dynamics/rankings/accuracy"
    metrics = {int(entry["step"]): entry for entry in read_metrics(dynamics) if key in entry}
    missing = next((step for step in win_rates if step not in metrics), None)
    steps = ", ".join(map(str, sorted(metrics))) or f"none for pairs {pairs!r}"
    InputError.unless(
        missing is None,
        saw=f"checkpoint {missing}, of whose {pairs} pairs nothing is in {dynamics}",
        expected=f"a recorded step: {steps}",
        cure="evaluate checkpoints of recorded steps, or name other pairs",
    )
    lines = tuple(
        CheckpointRates(
            step,
            metrics[step][key],
            win_rates[step].rates.win_rate,
            win_rates[step].rates.interval,
            metrics[step].get("dynamics/weight_distance"),
        )
        for step in sorted(win_rates)
    )
    columns = np.array([[line.ranking_accuracy, line.win_rate] for line in lines])
    known = len(lines) >= _FEWEST_CHECKPOINTS and (columns.std(axis=0) > 0).all()
    return CheckpointTable(pairs, lines, float(np.corrcoef(columns.T)[0, 1]) if known else None)


def step_of(name: str) -> int:
    """Optimiser step of a checkpoint, from its folder's name.

    Args:
        name: Such as "checkpoint-120".

    Returns:
        The step.

    Raises:
        InputError: If the name does not end so.
    """
    steps = re.findall(r"checkpoint-(\d+)/?$", name)
    InputError.unless(
        steps,
        saw=f"{name!r} beside --dynamics",
        expected="checkpoints of the run, checkpoint-STEP",
        cure="give the run's checkpoints, or leave --dynamics out",
    )
    return int(steps[0])
