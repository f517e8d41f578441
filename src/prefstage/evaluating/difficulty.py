"""How difficult prompts are, estimated from several models at once."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit

from prefstage.core import InputError
from prefstage.evaluating.alpaca_files import standardised_length
from prefstage.evaluating.l1_logistic import Floats
from prefstage.evaluating.settings import ENOUGH_MODELS, FEWEST_MODELS, WinRateConfig
from prefstage.evaluating.win_rates import (
    FEWEST_CONTROLLED,
    LEFT_OUT,
    WinRate,
    control_length,
)

_MAX_ROUNDS = 500
_SMALL = 1e-9
_RIDGE = 0.01


def estimate_difficulty(
    preference: ArrayLike, len_model: ArrayLike, len_baseline: ArrayLike, *, spread: float = 1.0
) -> Floats:
    """Estimate how easy the baseline is to beat on each prompt, from several models' verdicts.

    ``P(model m wins on x) = σ(a_m·t_mx + b_m + d_x)``, maximised with d_x ~ N(0, spread²), so
    that prompts about which the models disagree, or with few verdicts, stay near 0.

    Args:
        preference: For the model, in [0, 1]; NaN where there is no verdict. [models, prompts].
        len_model: Characters of the models' answers; read where there is a verdict.
            [models, prompts].
        len_baseline: Characters of the baseline's answers. [prompts].
        spread: Standard deviation of d before anything is seen, > 0. Nats.

    Returns:
        d, of mean 0: the `difficulty` of `length_controlled_win_rate`. [prompts], nats.

    Raises:
        InputError: If shapes differ, there are fewer than three models, or a value is out of
            range.

    Source:
        Dubois et al. 2024, arXiv:2404.04475, Sec. 3: the prompt's term, fitted over all
        models, with every model's sensitivity to it 1; the normal prior is ours.
    """
    return _fit(preference, len_model, len_baseline, spread)[0]


def absorbed_shares(
    preference: ArrayLike, len_model: ArrayLike, len_baseline: ArrayLike, *, spread: float = 1.0
) -> Floats:
    """How much of a verdict's deviation its prompt's estimated difficulty absorbs.

    ``h_mx = v_mx / (Σ_m' v_m'x + 1/spread²)`` with v = p(1 - p), a mean over prompts: the
    leverage of a model's verdict on the difficulty. Residuals of the model's regression are
    smaller by it than verdicts deviate, and so is every error that is computed from them.

    Args:
        preference: As for `estimate_difficulty`.
        len_model: Likewise.
        len_baseline: Likewise.
        spread: Likewise.

    Returns:
        The mean share of each model, in (0, 1). [models].

    Raises:
        InputError: As `estimate_difficulty`.

    Source:
        Leverage in a generalised linear model: McCullagh and Nelder 1989, Sec. 12.7.1.
    """
    return _fit(preference, len_model, len_baseline, spread)[1]


# Difficulties [prompts], and how much of a verdict they absorb of each model [models].
def _fit(
    preference: ArrayLike, len_model: ArrayLike, len_baseline: ArrayLike, spread: float
) -> tuple[Floats, Floats]:
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
    for _ in range(_MAX_ROUNDS):
        before = d
        for model, known in enumerate(judged):
            rows = x[model, known]
            p = expit(rows @ w[model] + d[known])
            # A weak ridge holds models that always win, whose weights would grow for ever.
            bread = (rows * (p * (1 - p))[:, None]).T @ rows + _RIDGE * np.eye(2)
            slope = rows.T @ (y[model, known] - p) - _RIDGE * w[model]
            w[model] += np.linalg.solve(bread, slope)
        p = expit((x * w[:, None]).sum(axis=2) + d)
        slope = np.where(judged, y - p, 0.0).sum(axis=0) - d / spread**2
        d = d + slope / (np.where(judged, p * (1 - p), 0.0).sum(axis=0) + 1 / spread**2)
        # a constant may stand in d or in every model's b: d is kept at mean 0
        d, w[:, 1] = d - d.mean(), w[:, 1] + d.mean()
        if np.abs(d - before).max() < _SMALL:
            break
    v = np.where(judged, p * (1 - p), 0.0)
    return d, (v / (v.sum(axis=0) + 1 / spread**2)).sum(axis=1) / judged.sum(axis=1)


def control_jointly(results: Mapping[str, WinRate], config: WinRateConfig) -> dict[str, WinRate]:
    """Control the length of several models' win rates with one difficulty of their prompts.

    Args:
        results: By name, over one baseline.
        config: Of the intervals.

    Returns:
        The same, length-controlled anew; a note says by how many models. A model with too few
        verdicts stays as it is.

    Raises:
        InputError: As `estimate_difficulty`.
    """
    baseline = {
        verdict.prompt_id: len(verdict.baseline_answer)
        for result in results.values()
        for verdict in result.verdicts
    }
    column = {prompt_id: number for number, prompt_id in enumerate(baseline)}
    y = np.full((len(results), len(column)), np.nan)
    lengths = np.ones_like(y)
    for row, result in enumerate(results.values()):
        for verdict in result.verdicts:
            y[row, column[verdict.prompt_id]] = verdict.preference
            lengths[row, column[verdict.prompt_id]] = len(verdict.model_answer)
    d, shares = _fit(y, lengths, list(baseline.values()), 1.0)
    note = f"difficulty estimated from the verdicts on these {len(results)} models"
    controlled = dict(results)
    for (name, result), share in zip(results.items(), shares, strict=True):
        if result.rates.n_total >= FEWEST_CONTROLLED:
            # Notes on the fit without difficulty no longer hold.
            before = result.controlled.notes if result.controlled else ()
            kept = [n for n in result.notes if n not in before and not n.endswith(LEFT_OUT)]
            new = control_length(
                replace(result, notes=tuple(kept)),
                config,
                absorbed=float(share),
                difficulty=d[[column[verdict.prompt_id] for verdict in result.verdicts]],
                regularise=False,
            )
            controlled[name] = replace(new, notes=(*new.notes, note))
    return controlled
