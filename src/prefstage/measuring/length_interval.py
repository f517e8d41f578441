"""What the length-controlled rate does not know: its uncertainty, other prompts' difficulty."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit, logit as exact_logit, stdtrit

from prefstage.core import InputError, seed_for
from prefstage.measuring.length_controlled import (
    LengthControlledWinRate,
    LengthProblem,
    Lookup,
    choose_c,
    length_controlled_win_rate,
    length_problem,
)
from prefstage.measuring.rates import (
    Floats,
    batches,
    check_bootstrap,
    cross_entropy,
    fit_l1_logistic,
    hessians,
    outer_products,
    standardised_length,
)
from prefstage.measuring.settings import ENOUGH_MODELS, FEWEST_MODELS

_AT_ONCE = 50
_NO_PENALTY = 1e6  # as C
_ROUNDING = 1e-9
_NEAR = np.linspace(0.0, 4.0, 17)  # standard errors
_FAR = 4.0 * 1.5 ** np.arange(1, 12)
_NARROWEST, _WIDEST = 0.01, 1.0  # logits
_FARTHEST = 30.0
_MAX_STEPS = 60
_LONGEST_STEP = 2.0
_RIDGE = 1e-6
_SMALL = 1e-8


def controlled_rate(
    preference: ArrayLike,
    len_model: ArrayLike,
    len_baseline: ArrayLike,
    *,
    confidence: float,
    resamples: int = 1000,
    seed: int,
    **how: Any,
) -> tuple[LengthControlledWinRate, tuple[float, float]]:
    """The length-controlled win rate of verdicts, and its interval.

    Args:
        preference: As for `length_controlled_win_rate`.
        len_model: Likewise.
        len_baseline: Likewise.
        confidence: Of the interval, in (0, 1).
        resamples: Of its bootstrap.
        seed: Likewise.
        how: Further arguments of `length_controlled_win_rate`.

    Returns:
        Both, in percent.
    """
    rows = (preference, len_model, len_baseline)
    controlled = length_controlled_win_rate(*rows, **how)
    c = controlled.C if controlled.C > 0 else None  # NaN for the baseline itself
    return controlled, length_controlled_interval(
        *rows, **how, C=c, confidence=confidence, resamples=resamples, seed=seed
    )


def length_controlled_interval(
    preference: ArrayLike,
    len_model: ArrayLike,
    len_baseline: ArrayLike,
    *,
    instruction: ArrayLike | None = None,
    row: ArrayLike | None = None,
    lookup: Lookup = "instruction",
    C: float | None = None,  # noqa: N803 - the name that everyone knows it by
    difficulty: ArrayLike | None = None,
    regularise: bool = True,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Interval of the length-controlled win rate that also holds for few prompts and wins.

    The union of two: the bootstrap with the regression fitted anew, and `profile_interval`,
    which does not rely on what the rows at hand happen to show. The bootstrap draws the
    model's rows with replacement, keeps the gamed rows, which are constants of the method, and
    is studentised on the logit scale by the fit's sandwich error. Both are about the fit without
    the l1 penalty, which pulls towards 50 %; stretched to hold the rate with the penalty too.

    Args:
        preference: As for `length_controlled_win_rate`, and so the next seven.
        len_model: Likewise.
        len_baseline: Likewise.
        instruction: Likewise.
        row: Likewise.
        lookup: Likewise.
        C: Likewise; None chooses it once, on all rows.
        difficulty: Likewise; taken as known (see `widened` where it is estimated).
        regularise: Likewise.
        confidence: In (0, 1).
        resamples: How many, >= 1.
        seed: Of the draws.

    Returns:
        (low, high) in percent.

    Raises:
        InputError: As `length_controlled_win_rate`, or if a setting is out of range.

    Source:
        Efron and Tibshirani 1993, An Introduction to the Bootstrap, §12.5.
    """
    check_bootstrap(confidence, resamples)
    problem = length_problem(
        preference,
        len_model,
        len_baseline,
        instruction=instruction,
        row=row,
        lookup=lookup,
        difficulty=difficulty,
        regularise=regularise,
    )
    if problem.is_baseline:
        return 50.0, 50.0
    count = len(problem.preference)
    once = np.ones((1, count))
    penalised = _rates(problem, once, choose_c(problem) if C is None else float(C))[0][0]
    rate, error, fitted = _rates(problem, once, _NO_PENALTY)
    # From the optimum that is found once Newton needs few steps to that of a resample.
    rate_at_start = _rates(problem, once, _NO_PENALTY, start=fitted)[0]
    rng = np.random.default_rng(seed_for(seed, "length-controlled"))
    t = list[Floats]()
    for size in batches(resamples, _AT_ONCE):
        times = rng.multinomial(count, np.full(count, 1 / count), size=size).astype(np.float64)
        drawn, errors, _ = _rates(problem, times, _NO_PENALTY, start=fitted.repeat(size, axis=0))
        t.append((logit(drawn) - logit(rate_at_start)) / errors)
    tails = np.quantile(np.concatenate(t), [(1 + confidence) / 2, (1 - confidence) / 2])
    ends = [
        *profile_interval(problem, fitted[0], confidence=confidence),
        *(penalised, *expit(logit(rate) - tails * error)),
    ]
    return 100 * float(min(ends)), 100 * float(max(ends))


def widened(interval: tuple[float, float], rate: float, *, absorbed: float) -> tuple[float, float]:
    """Interval of a length-controlled win rate whose difficulty is estimated, not known.

    On the logit scale its ends are ``1 / (1 - absorbed)`` times as far from the rate.

    Args:
        interval: As for a known difficulty; percent.
        rate: The win rate, in percent.
        absorbed: The model's share, of `estimate_difficulty`.

    Returns:
        (low, high) in percent.
    """
    centre, ends = logit(np.array(rate / 100)), logit(np.array(interval) / 100)
    low, high = 100 * expit(centre + (ends - centre) / (1 - absorbed))
    return min(float(low), interval[0]), max(float(high), interval[1])


def logit(rate: Floats) -> Floats:
    """log(p / (1 - p)), kept finite at 0 and 1."""
    return np.asarray(exact_logit(np.clip(rate, _ROUNDING, 1 - _ROUNDING)))


# Mean prediction at equal lengths [draws], the standard error of its logit [draws], and the fitted
# weights [draws, features], where each of the model's answers is there so many times [draws,
# prompts]. Where the fits begin changes their time, not their result. [draws, features].
def _rates(
    problem: LengthProblem, times: Floats, c: float, *, start: Floats | None = None
) -> tuple[Floats, Floats, Floats]:
    x, y, m, model = problem.features, problem.labels, times.T, problem.model
    judged = ~np.isnan(problem.preference)
    v = np.repeat(problem.weights[:, None], len(times), axis=1)
    v[model] *= m[judged]
    w = fit_l1_logistic(x, y, v, c=c, start=start)
    p, q = expit(x @ w.T), expit(problem.test @ w.T)
    n = m.sum(axis=0)
    rate = (q * m).sum(axis=0) / n
    bread = hessians(outer_products(x), v * p * (1 - p)) + _ROUNDING * np.eye(x.shape[1])
    slope = (problem.test.T @ (q * (1 - q) * m) / n).T
    turned = np.linalg.solve(bread, slope[..., None])[..., 0]
    # A row moves the rate in two ways: by its prediction, and, where it was judged, by the fit.
    # The two belong together (a prompt that is won is often one that is easy), so the error is
    # that of their sum, not the sum of two errors.
    influence = (q - rate) / n
    influence[judged] -= (x[model] @ turned.T) * (p[model] - y[model, None])
    squares = (m * influence**2).sum(axis=0) * n / (n - 1)
    spread = np.maximum(rate * (1 - rate), _ROUNDING)  # slope of the logit, by the delta method
    return rate, np.sqrt(squares) / spread + _ROUNDING, w


def profile_interval(
    problem: LengthProblem, fitted: Floats, *, confidence: float
) -> tuple[float, float]:
    """Rates that the likelihood of the verdicts does not rule out.

    The model's term is held at each value of a grid and the others are fitted anew; kept is
    what lies within t²·φ of the least deviance, φ being how far verdicts spread beside won and
    lost ones of the same means. Where few wins, or lengths on one side alone, leave the rate
    open, the interval is wide, which no resampling of the same rows can show.

    Args:
        problem: The regression's rows.
        fitted: The weights without penalty. [features].
        confidence: In (0, 1).

    Returns:
        (low, high) as shares.

    Source:
        Heinze and Schemper 2002, Statistics in Medicine 21(16), on separation; dispersion:
        McCullagh and Nelder 1989, Generalized Linear Models, §9.2.
    """
    x, y, v = problem.features, problem.labels, problem.weights
    p = expit(x @ fitted)
    bread = (x * (v * p * (1 - p))[:, None]).T @ x + _RIDGE * np.eye(x.shape[1])
    error = float(np.sqrt(np.linalg.inv(bread)[-1, -1]))
    # Close around the fit the grid is fine, since there most intervals end; then it widens, since
    # with few wins an end may be many standard errors away.
    steps = np.clip(error, _NARROWEST, _WIDEST) * np.concatenate([_NEAR, _FAR])
    centre = np.clip(fitted[-1], -_FARTHEST / 2, _FARTHEST / 2)
    grid = np.concatenate([centre - steps[:0:-1], centre + steps])
    grid = np.unique(np.clip(grid, -_FARTHEST, _FARTHEST))
    w, losses = _profile(problem, x[:, -1:] * grid, np.repeat(fitted[None, :-1], len(grid), axis=0))
    deviance = 2 * np.einsum("r,rc->c", v, losses)
    rates = expit(problem.test[:, :-1] @ w.T + grid).mean(axis=0)
    root = np.sqrt(np.maximum(deviance - deviance.min(), 0.0))
    y, p = y[problem.model], p[problem.model]
    # t²·φ, with one more row at 0 and one at 1: few rows do not show how far they spread.
    mean, t = y.mean(), stdtrit(max(1, len(y) - x.shape[1]), (1 + confidence) / 2)
    spread = ((y - p) ** 2).sum() + mean**2 + (1 - mean) ** 2
    binary = (p * (1 - p)).sum() + 2 * mean * (1 - mean)
    limit = float(np.sqrt(t**2 * spread / max(binary, _SMALL)))
    first, last = np.flatnonzero(root <= limit)[[0, -1]]

    def crossing(a: int, b: int) -> float:
        # The deviance is nearly a parabola, so between grid points its root is straight.
        return float(rates[a] + (limit - root[a]) / (root[b] - root[a]) * (rates[b] - rates[a]))

    return (
        0.0 if first == 0 else crossing(first, first - 1),
        1.0 if last == len(rates) - 1 else crossing(last, last + 1),
    )


# The other weights [columns, features], and the losses [rows, columns] of each offset.
def _profile(problem: LengthProblem, offset: Floats, w: Floats) -> tuple[Floats, Floats]:
    x, y, v = problem.features[:, :-1], problem.labels, problem.weights[:, None]
    products = outer_products(x)
    for _ in range(_MAX_STEPS):
        p = expit(x @ w.T + offset)
        slope = (x.T @ (v * (p - y[:, None]))).T + _RIDGE * w
        bread = hessians(products, v * p * (1 - p)) + _RIDGE * np.eye(x.shape[1])
        # Far from the fit, where all p are near 0 or 1, Newton would leap beyond all numbers.
        step = np.linalg.solve(bread, slope[..., None])[..., 0].clip(-_LONGEST_STEP, _LONGEST_STEP)
        w = w - step
        if np.abs(step).max() < _SMALL:
            break
    return w, cross_entropy(x @ w.T + offset, y)[0]


# --- Difficulty estimated from several models -------------------------------------------------

_MAX_TURNS = 500
_STILL = 1e-9
_MODEL_RIDGE = 0.01


def estimate_difficulty(
    preference: ArrayLike, len_model: ArrayLike, len_baseline: ArrayLike, *, spread: float = 1.0
) -> tuple[Floats, Floats]:
    """Estimate how easy the baseline is to beat on each prompt, from several models' verdicts.

    ``P(model m wins on x) = σ(a_m·t_mx + b_m + d_x)``, maximised with d_x ~ N(0, spread²), so
    that prompts about which the models disagree, or with few verdicts, stay near 0.

    The difficulty absorbs part of a verdict's deviation: ``h_mx = v_mx / (Σ_m' v_m'x + 1/spread²)``
    with v = p(1 - p), the leverage of a model's verdict on it. Residuals of the model's regression
    are smaller by it than verdicts deviate, and so is every error that is computed from them.

    Args:
        preference: For the model, in [0, 1]; NaN where there is no verdict. [models, prompts].
        len_model: Characters of the models' answers; read where there is a verdict.
            [models, prompts].
        len_baseline: Characters of the baseline's answers. [prompts].
        spread: Standard deviation of d before anything is seen, > 0. Nats.

    Returns:
        d, of mean 0: the `difficulty` of `length_controlled_win_rate`, [prompts], nats; and each
        model's absorbed share, the mean of h over prompts, in (0, 1), [models].

    Raises:
        InputError: If shapes differ, there are fewer than three models, or a value is out of
            range.

    Source:
        Dubois et al. 2024, arXiv:2404.04475, Sec. 3: the prompt's term, fitted over all
        models, with every model's sensitivity to it 1; the normal prior is ours. Leverage in a
        generalised linear model: McCullagh and Nelder 1989, Sec. 12.7.1.
    """
    y, a = (np.atleast_2d(np.asarray(m, dtype=np.float64)) for m in (preference, len_model))
    b = np.asarray(len_baseline, dtype=np.float64)
    judged, outside = ~np.isnan(y), (y < 0) | (y > 1)
    InputError.unless(
        y.shape == a.shape and y.shape[1:] == b.shape,
        saw=f"preferences {list(y.shape)}, lengths {list(a.shape)} and {list(b.shape)}",
        expected="[models, prompts] twice, and [prompts]",
        cure="give one row a model, and its prompts in one order",
    )
    InputError.unless(
        len(y) >= FEWEST_MODELS and judged.any(axis=1).all(),
        saw=f"{int(judged.any(axis=1).sum())} models with verdicts",
        expected=ENOUGH_MODELS,
        cure="add models, or leave the difficulty out",
    )
    InputError.unless(
        not outside.any() and 0 < spread < np.inf,
        saw=f"a preference {y[outside][0]:g}" if outside.any() else f"spread {spread}",
        expected="preferences in [0, 1], a positive spread",
        cure="subtract 1 from AlpacaEval's 1 to 2, 0 being a draw",
    )
    x = np.stack([np.zeros_like(y), np.ones_like(y)], axis=2)
    for model, known in enumerate(judged):
        x[model, known, 0] = standardised_length(a[model, known], b[known])
    w, d = np.zeros((len(y), 2)), np.zeros(y.shape[1])
    # Newton by turns, the models' weights and then all difficulties: each half has few unknowns or
    # separate ones, where a joint step would solve equations in all prompts at once.
    for _ in range(_MAX_TURNS):
        before = d
        for model, known in enumerate(judged):
            rows = x[model, known]
            p = expit(rows @ w[model] + d[known])
            # A weak ridge holds models that always win, whose weights would grow for ever.
            bread = (rows * (p * (1 - p))[:, None]).T @ rows + _MODEL_RIDGE * np.eye(2)
            slope = rows.T @ (y[model, known] - p) - _MODEL_RIDGE * w[model]
            w[model] += np.linalg.solve(bread, slope)
        p = expit((x * w[:, None]).sum(axis=2) + d)
        slope = np.where(judged, y - p, 0.0).sum(axis=0) - d / spread**2
        d = d + slope / (np.where(judged, p * (1 - p), 0.0).sum(axis=0) + 1 / spread**2)
        # a constant may stand in d or in every model's b: d is kept at mean 0
        d, w[:, 1] = d - d.mean(), w[:, 1] + d.mean()
        if np.abs(d - before).max() < _STILL:
            break
    v = np.where(judged, p * (1 - p), 0.0)
    return d, (v / (v.sum(axis=0) + 1 / spread**2)).sum(axis=1) / judged.sum(axis=1)
