"""AlpacaEval 2's length-controlled win rate, as a function on arrays."""

from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from prefstage.core.errors import InputError
from prefstage.evaluating.l1_logistic import fit_l1_logistic
from prefstage.evaluating.length_fit import (
    choose_c,
    is_baseline,
    problem_of,
    sandwich_error,
    sigmoid,
)
from prefstage.evaluating.length_rows import Rows, read_rows
from prefstage.evaluating.length_tables import length_tables

Floats = NDArray[np.float64]
Lookup = Literal["instruction", "as-published"]

_HALF = 0.5


class LengthWeights(NamedTuple):
    """Coefficients of the regression, in nats.

    Attributes:
        length: w1 of tanh of the standardised length difference.
        difficulty: w2 of the prompt's difficulty; 0 where it was left out.
        model: w3 of the model itself.
    """

    length: float
    difficulty: float
    model: float


@dataclass(frozen=True)
class LengthControlledWinRate:
    """Win rates of a model over a baseline; all rates and errors in percent.

    Attributes:
        length_controlled_win_rate: 100 · mean σ(w2·d + w3).
        lc_standard_error: Standard error of that mean over prompts, as AlpacaEval gives it:
            it knows nothing of the uncertainty of w (see `length_controlled_interval`).
            Without difficulty all predictions are equal and that error is nothing; then it
            is the error of the fit (sandwich estimate).
        win_rate: 100 · mean preference.
        standard_error: Of the win rate (ddof 1).
        discrete_win_rate: 100 · (wins + ½·draws) / n_total.
        avg_length: Mean characters of the model's answers.
        n_total: Rows with a preference.
        n_draws: Rows whose preference is exactly ½.
        n_missing: Rows without a preference (NaN): they count in the lengths and in the
            prediction, as in AlpacaEval, and in nothing else.
        weights: (w1, w2, w3).
        C: How much the rows count against the l1 penalty.
        difficulty: Where d is from: "official", "given", or "none" where it was left out.
        lookup: How the official difficulty was found.
        notes: What a reader should know besides.
    """

    length_controlled_win_rate: float
    lc_standard_error: float
    win_rate: float
    standard_error: float
    discrete_win_rate: float
    avg_length: float
    n_total: int
    n_draws: int
    n_missing: int
    weights: LengthWeights
    C: float
    difficulty: Literal["official", "given", "none"]
    lookup: Lookup
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """The result as JSON-serialisable values."""
        return {**asdict(self), "weights": self.weights._asdict(), "notes": list(self.notes)}


def length_controlled_win_rate(
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
) -> LengthControlledWinRate:
    """Win rate that the model would have if its answers were as long as the baseline's.

    ``P(model wins) = σ(w1·t + w2·d + w3·z)`` with t = tanh(δ/std δ), d the prompt's
    difficulty, z = 1 on the model's rows and 0 on those of two gamed baselines; minimises
    ``‖w‖₁ + C·Σ weight·CE``; the result is ``100·mean σ(w2·d + w3)``. The order of the rows
    does not matter as long as `instruction` (or, as published, `row`) moves with them.

    Args:
        preference: The judge's preference for the model, in [0, 1]; NaN where it gave none.
            AlpacaEval stores 1 + this, and 0 for a draw: see `read_annotations`. [rows].
        len_model: Characters of the model's answers. [rows].
        len_baseline: Characters of the baseline's answers to the same prompts. [rows].
        instruction: Each prompt's number in AlpacaEval's order, 0 to 804, each at most once;
            None for other prompts: difficulty is then left out, which is said. [rows].
        row: Position of each row in the published annotations; None: as given. Read only
            with ``lookup="as-published"``. [rows].
        lookup: "instruction" takes the difficulty of the prompt; "as-published" that of the
            row's number, as the leaderboard does, which shifts difficulties where a model's
            file lacks prompts or has them in another order.
        C: How much the rows count against the penalty; None chooses it from ten values by
            5-fold cross-validation, as AlpacaEval does.
        difficulty: Of each row, for other prompts, from a fit of your own. [rows].
        regularise: Fit with the gamed rows, as AlpacaEval does; False leaves them out (its
            `length_controlled_noreg`), for judges with another taste for length.

    Returns:
        The win rates with their standard errors, the coefficients and C.

    Raises:
        InputError: If lengths differ, a value is out of range, a prompt is named twice or
            unknown, the baseline's lengths show that the prompts' numbers are shifted, or
            fewer than two rows have a preference.

    Source:
        Dubois et al. 2024, arXiv:2404.04475, Eq. 2, Sec. 3; constants, folds and row lookup as
        in `alpaca-eval` 0.6.6, but at the exact optimum: liblinear stops at a tolerance of 1e-4.
    """
    rows = read_rows(
        preference,
        len_model,
        len_baseline,
        instruction=instruction,
        row=row,
        lookup=lookup,
        difficulty=difficulty,
    )
    return _result(rows, _fit(rows, C, regularise=regularise), lookup)


@dataclass(frozen=True)
class _Fit:
    """What the regression says: predictions at equal lengths, coefficients and C."""

    predicted: Floats
    weights: LengthWeights
    c: float
    error: float | None = None
    notes: tuple[str, ...] = ()


def _fit(rows: Rows, c: float | None, *, regularise: bool) -> _Fit:
    if c is not None and not 0 < c < np.inf:
        raise InputError.of(saw=f"C={c}", expected="a positive number", cure="leave C out")
    if is_baseline(rows):
        note = "the model is the baseline itself: 50 % by construction"
        even = np.full(len(rows.preference), _HALF)
        given = float("nan") if c is None else c
        return _Fit(even, LengthWeights(0.0, 0.0, 0.0), given, notes=(note,))
    problem = problem_of(rows, length_tables(), regularise=regularise)
    chosen = float(c) if c is not None else choose_c(problem)
    w = fit_l1_logistic(problem.features, problem.labels, problem.weights[:, None], c=chosen)
    fitted = w.weights[0]
    error = sandwich_error(problem, fitted) if rows.origin == "none" else None
    return _Fit(sigmoid(problem.test @ fitted), _named(fitted), chosen, error)


def _result(rows: Rows, fit: _Fit, lookup: Lookup) -> LengthControlledWinRate:
    error = _standard_error(fit.predicted) if fit.error is None else fit.error
    usable = rows.preference[~np.isnan(rows.preference)]
    return LengthControlledWinRate(
        length_controlled_win_rate=100 * float(fit.predicted.mean()),
        lc_standard_error=100 * error,
        win_rate=100 * float(usable.mean()),
        standard_error=100 * _standard_error(usable),
        discrete_win_rate=100 * float((usable > _HALF).mean() + _HALF * (usable == _HALF).mean()),
        avg_length=float(rows.len_model.mean()),
        n_total=len(usable),
        n_draws=int((usable == _HALF).sum()),
        n_missing=len(rows.preference) - len(usable),
        weights=fit.weights,
        C=fit.c,
        difficulty=rows.origin,
        lookup=lookup,
        notes=(*rows.notes, *fit.notes),
    )


def _named(w: Floats) -> LengthWeights:
    length, model = float(w[0]), float(w[-1])
    return LengthWeights(length, float(w[1]) if len(w) > 2 else 0.0, model)  # noqa: PLR2004 - t, d, z


def _standard_error(values: Floats) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values)))
