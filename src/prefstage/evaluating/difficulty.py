"""How difficult prompts are, estimated from several models at once."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from prefstage.core.errors import InputError
from prefstage.evaluating.length_controlled import length_controlled_win_rate
from prefstage.evaluating.length_fit import sigmoid
from prefstage.evaluating.length_interval import length_controlled_interval, logit
from prefstage.evaluating.length_tables import standardised_length
from prefstage.evaluating.win_rates import (
    FEWEST_CONTROLLED,
    LEFT_OUT,
    WinRate,
    WinRateConfig,
    confidence_at_stop,
)

Floats = NDArray[np.float64]

FEWEST_MODELS = 3
_MAX_ROUNDS = 500
_SMALL = 1e-9


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
    """How much of a verdict's deviation its prompt's estimated difficulty has taken up itself.

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


def widened(interval: tuple[float, float], rate: float, *, absorbed: float) -> tuple[float, float]:
    """Interval of a length-controlled win rate whose difficulty is estimated, not known.

    On the logit scale its ends are ``1 / (1 - absorbed)`` times as far from the rate.

    Args:
        interval: As for a known difficulty; percent.
        rate: The win rate, in percent.
        absorbed: The model's of `absorbed_shares`.

    Returns:
        (low, high) in percent.
    """
    centre = logit(np.array(rate / 100))
    ends = logit(np.array(interval) / 100)
    low, high = 100 * sigmoid(centre + (ends - centre) / (1 - absorbed))
    return min(float(low), interval[0]), max(float(high), interval[1])


def _fit(
    preference: ArrayLike, len_model: ArrayLike, len_baseline: ArrayLike, spread: float
) -> tuple[Floats, Floats]:
    """Difficulties [prompts], and each model's share in them [models]."""
    y, a = (np.atleast_2d(np.asarray(each, dtype=np.float64)) for each in (preference, len_model))
    b = np.asarray(len_baseline, dtype=np.float64)
    _check(y, a, b, spread)
    told = ~np.isnan(y)
    t = np.zeros_like(y)
    for row, seen in enumerate(told):
        t[row, seen] = standardised_length(a[row, seen], b[seen])
    x = np.stack([t, np.ones_like(t)], axis=2)
    w, d = np.zeros((len(y), 2)), np.zeros(y.shape[1])
    for _ in range(_MAX_ROUNDS):
        before = d
        for row, seen in enumerate(told):
            w[row] += _newton(x[row, seen], y[row, seen], w[row], d[seen])
        p = sigmoid((x * w[:, None]).sum(axis=2) + d)
        slope = np.where(told, y - p, 0.0).sum(axis=0) - d / spread**2
        d = d + slope / (np.where(told, p * (1 - p), 0.0).sum(axis=0) + 1 / spread**2)
        shift = d.mean()
        d, w[:, 1] = d - shift, w[:, 1] + shift
        if np.abs(d - before).max() < _SMALL:
            break
    v = np.where(told, p * (1 - p), 0.0)
    leverage = v / (v.sum(axis=0) + 1 / spread**2)
    return d, leverage.sum(axis=1) / told.sum(axis=1)


def _newton(x: Floats, y: Floats, w: Floats, d: Floats) -> Floats:
    """One step of a model's own two weights; a weak ridge holds models that always win."""
    p = sigmoid(x @ w + d)
    ridge = 0.01
    bread = (x * (p * (1 - p))[:, None]).T @ x + ridge * np.eye(x.shape[1])
    return np.asarray(np.linalg.solve(bread, x.T @ (y - p) - ridge * w), dtype=np.float64)


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
    place = dict[str, int]()
    baseline = list[int]()
    for result in results.values():
        for each in result.verdicts:
            if each.prompt_id not in place:
                place[each.prompt_id] = len(place)
                baseline.append(len(each.baseline_answer))
    y = np.full((len(results), len(place)), np.nan)
    lengths = np.ones_like(y)
    for row, result in enumerate(results.values()):
        for each in result.verdicts:
            y[row, place[each.prompt_id]] = each.preference
            lengths[row, place[each.prompt_id]] = len(each.model_answer)
    d, shares = _fit(y, lengths, baseline, 1.0)
    note = f"difficulty estimated from the verdicts on these {len(results)} models"
    return {
        name: _controlled(
            result, d[[place[each.prompt_id] for each in result.verdicts]], share, config, note
        )
        for (name, result), share in zip(results.items(), shares, strict=True)
    }


def _controlled(
    result: WinRate, difficulty: Floats, absorbed: float, config: WinRateConfig, note: str
) -> WinRate:
    """Control the length again; what was said of the fit without difficulty is said no more."""
    rows: dict[str, Any] = {
        "preference": [each.preference for each in result.verdicts],
        "len_model": [len(each.model_answer) for each in result.verdicts],
        "len_baseline": [len(each.baseline_answer) for each in result.verdicts],
    }
    if np.count_nonzero(~np.isnan(rows["preference"])) < FEWEST_CONTROLLED:
        return result
    found = length_controlled_win_rate(**rows, difficulty=difficulty, regularise=False)
    interval = length_controlled_interval(
        **rows,
        difficulty=difficulty,
        regularise=False,
        C=found.C if found.C > 0 else None,
        confidence=confidence_at_stop(
            config.confidence, result.looks, early=result.stopped == "decided"
        ),
        resamples=config.resamples,
        seed=config.seed,
    )
    before = result.controlled.notes if result.controlled else ()
    kept = [each for each in result.notes if each not in before and not each.endswith(LEFT_OUT)]
    return replace(
        result,
        controlled=found,
        controlled_interval=widened(
            interval, found.length_controlled_win_rate, absorbed=float(absorbed)
        ),
        notes=(*kept, *found.notes, note),
    )


def check_models(count: int) -> None:
    """Refuse to estimate difficulty from too few models.

    Args:
        count: Models that are to be judged.

    Raises:
        InputError: If they are fewer than `FEWEST_MODELS`.
    """
    if count < FEWEST_MODELS:
        raise InputError.of(
            saw=f"--joint-difficulty with {count} model{'s' if count > 1 else ''}",
            expected=f"at least {FEWEST_MODELS}: fewer cannot tell a prompt from a chance",
            cure="give more --answers or --policy, or leave --joint-difficulty out",
        )


def _check(y: Floats, len_model: Floats, len_baseline: Floats, spread: float) -> None:
    if y.shape != len_model.shape or y.shape[1:] != len_baseline.shape:
        raise InputError.of(
            saw=f"preferences {list(y.shape)}, lengths {list(len_model.shape)} and "
            f"{list(len_baseline.shape)}",
            expected="[models, prompts] twice, and [prompts]",
            cure="give one row a model, and its prompts in one order",
        )
    if len(y) < FEWEST_MODELS or not (~np.isnan(y)).any(axis=1).all():
        raise InputError.of(
            saw=f"{int((~np.isnan(y)).any(axis=1).sum())} models with verdicts",
            expected=f"at least {FEWEST_MODELS}: fewer cannot tell a prompt from a chance",
            cure="add models, or leave the difficulty out",
        )
    outside = (y < 0) | (y > 1)
    if outside.any() or not 0 < spread < np.inf:
        raise InputError.of(
            saw=f"spread {spread}" if not outside.any() else f"a preference {y[outside][0]:g}",
            expected="preferences in [0, 1], a positive spread",
            cure="subtract 1 from AlpacaEval's 1 to 2, 0 being a draw",
        )
