"""AlpacaEval 2's length-controlled win rate, as a function on arrays."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit

from prefstage.core import InputError
from prefstage.measuring.rates import (
    HALF,
    N_PROMPTS,
    Figures,
    Floats,
    fit_l1_logistic,
    length_tables,
    standard_error,
    standardised_length,
)

Integers = NDArray[np.int64]
Lookup = Literal["instruction", "as-published"]
Origin = Literal["official", "given", "none"]

GRID = np.logspace(-4, 4, 10)
FOLDS = 5
FEWEST_CONTROLLED = 30
"""Verdicts below which length is not controlled for: the fit has two coefficients and a penalty."""
GAMED_WEIGHT = 0.2 / 2
_ALL_ZERO = (
    "the penalty set every weight to zero: the length-controlled rate is 50 % whatever the"
    " verdicts, so read the win rate"
)
_ALIGN = "align preferences, lengths and prompts by instruction"


@dataclass(frozen=True)
class LengthWeights:
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
class LengthControlledWinRate(Figures):
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
    difficulty: Origin
    lookup: Lookup
    notes: tuple[str, ...]

    def as_text(self, interval: tuple[float, float]) -> str:
        """The length-controlled rate in a line, with its interval."""
        return (
            f"length-controlled {self.length_controlled_win_rate:.2f} % "
            f"[{interval[0]:.2f}, {interval[1]:.2f}] (difficulty: {self.difficulty})"
        )


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
    does not matter as long as `instruction` (or, as published, `row`) moves with them. Where the
    penalty sets every weight to zero the result is 50 % whatever the verdicts, with a note.

    Args:
        preference: The judge's preference for the model, in [0, 1]; NaN where it gave none.
            AlpacaEval stores 1 + this, and 0 for a draw: see `read_annotations`. [rows].
        len_model: Characters of the model's answers. [rows].
        len_baseline: Characters of the baseline's answers to the same prompts. [rows].
        instruction: Each prompt's number in AlpacaEval's order, 0 to 804, each at most once;
            None for other prompts: difficulty is then left out, with a note. [rows].
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
    InputError.unless(
        C is None or 0 < C < np.inf,
        saw=f"C={C}",
        expected="a positive number",
        cure="leave C out",
    )
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
    w, notes = np.zeros(3), problem.notes
    if problem.is_baseline:
        # No fit: the penalty alone would decide, and the leaderboard's row says 50 as well.
        predicted, c = np.full(len(problem.preference), HALF), float("nan") if C is None else C
        error, notes = 0.0, (*notes, "the model is the baseline itself: 50 % by construction")
    else:
        c = choose_c(problem) if C is None else float(C)
        w = fit_l1_logistic(problem.features, problem.labels, problem.weights[:, None], c=c)[0]
        predicted = expit(problem.test @ w)
        error = standard_error(predicted)
        if problem.origin == "none":  # without difficulty all predictions are equal
            error = _sandwich_error(problem, w)
        if not w.any():
            notes = (*notes, _ALL_ZERO)
    usable = problem.preference[~np.isnan(problem.preference)]
    draws = usable == HALF
    return LengthControlledWinRate(
        length_controlled_win_rate=100 * float(predicted.mean()),
        lc_standard_error=100 * error,
        win_rate=100 * float(usable.mean()),
        standard_error=100 * standard_error(usable),
        discrete_win_rate=100 * float((usable > HALF).mean() + HALF * draws.mean()),
        avg_length=float(np.asarray(len_model, np.float64).mean()),
        n_total=len(usable),
        n_draws=int(draws.sum()),
        n_missing=len(problem.preference) - len(usable),
        weights=LengthWeights(float(w[0]), float(w[1:-1].sum()), float(w[-1])),
        C=c,
        difficulty=problem.origin,
        lookup=lookup,
        notes=notes,
    )


def leaderboard_row(
    preferences: Sequence[float], lengths: Sequence[int], *, controlled: LengthControlledWinRate
) -> dict[str, float | int | str]:
    """One model's line of the leaderboard, with AlpacaEval's columns.

    Args:
        preferences: For the model, in [0, 1]; NaN where missing. [rows].
        lengths: Characters of its answers. [rows].
        controlled: Its length-controlled result.

    Returns:
        The columns by name; `avg_length` is cut to a whole number, as published.
    """
    known = [preference for preference in preferences if not math.isnan(preference)]
    return {
        "win_rate": controlled.win_rate,
        "standard_error": controlled.standard_error,
        "n_wins": sum(preference > HALF for preference in known),
        "n_wins_base": sum(preference < HALF for preference in known),
        "n_draws": known.count(HALF),
        "n_total": len(known),
        "discrete_win_rate": controlled.discrete_win_rate,
        "mode": "community",
        "avg_length": int(sum(lengths) / len(lengths)),
        "length_controlled_winrate": controlled.length_controlled_win_rate,
        "lc_standard_error": controlled.lc_standard_error,
    }


@dataclass(frozen=True)
class LengthProblem:
    """The regression: rows of the gamed verbose and concise baselines, then the model's.

    Attributes:
        features: t, d (where there is a difficulty) and z. [rows, features].
        labels: Preferences, in [0, 1]. [rows].
        weights: How much a row counts. [rows].
        model: Which rows are the model's: those with a preference, in their prompts' order, or
            by lengths and preference where no number names the prompts.
        preference: Of all the model's answers, NaN where missing. [prompts].
        test: Features of all the model's answers at equal lengths. [prompts, features].
        is_baseline: Whether every answer is the baseline's, as in its row on the leaderboard:
            all lengths are equal and all verdicts drawn.
        origin: Where d is from.
        notes: What a reader should know.
    """

    features: Floats
    labels: Floats
    weights: Floats
    model: slice
    preference: Floats
    test: Floats
    is_baseline: bool
    origin: Origin
    notes: tuple[str, ...]


def length_problem(
    preference: ArrayLike,
    len_model: ArrayLike,
    len_baseline: ArrayLike,
    *,
    instruction: ArrayLike | None = None,
    row: ArrayLike | None = None,
    lookup: str = "instruction",
    difficulty: ArrayLike | None = None,
    regularise: bool = True,
) -> LengthProblem:
    """Check the arguments of `length_controlled_win_rate`, and make the regression's rows.

    Args:
        preference: As there, and so the others.
        len_model: Likewise.
        len_baseline: Likewise.
        instruction: Likewise.
        row: Likewise.
        lookup: Likewise.
        difficulty: Likewise.
        regularise: Likewise.

    Returns:
        The regression, the model's rows in the order of their prompts or, as published, of
        their row numbers.

    Raises:
        InputError: As there.
    """
    y = _column("preference", preference, None, low=0.0, high=1.0, missing=True)
    a = _column("len_model", len_model, len(y), low=0.0)
    b = _column("len_baseline", len_baseline, len(y), low=0.0)
    judged = int((~np.isnan(y)).sum())
    InputError.unless(
        lookup in get_args(Lookup),
        saw=f"lookup={lookup!r}",
        expected="'instruction' or 'as-published'",
        cure="choose one of the two",
    )
    InputError.unless(
        judged >= 2,  # noqa: PLR2004 - a standard error needs two
        saw=f"{judged} of {len(y)} rows with a preference",
        expected="at least two",
        cure="judge more prompts",
    )
    order, d, origin, notes = _difficulty(b, instruction, row, lookup, difficulty)
    # The folds of the cross-validation go by position: in the prompts' order, or by what stands in
    # the rows where no number names them, the same verdicts choose the same C in whatever order.
    order = np.lexsort((*d, b, a, y)) if order is None else order
    y, a, b, *d = (column[order] for column in (y, a, b, *d))
    known, ones = ~np.isnan(y), np.ones(len(y))
    x = np.stack([standardised_length(a, b), *d, ones], 1)[known]
    labels, weights = y[known], ones[known]
    if regularise:
        tables = length_tables()
        # Difficulties of other prompts say nothing of the gamed rows' prompts.
        gamed_d = np.zeros_like(tables.gamed_t)
        if origin == "official":
            gamed_d = tables.difficulty[tables.gamed_index]
        gamed = [tables.gamed_t, *([gamed_d] if d else []), np.zeros(len(gamed_d))]
        x = np.concatenate([np.stack(gamed, 1), x])
        labels = np.concatenate([tables.gamed_preference, labels])
        weights = np.concatenate([np.full(len(gamed_d), GAMED_WEIGHT), weights])
    is_baseline = bool((a == b).all() and (y == HALF).all())
    InputError.unless(
        len(labels) >= FOLDS or is_baseline,
        saw=f"{len(labels)} rows with a preference",
        expected=f"at least {FOLDS} for {FOLDS}-fold cross-validation",
        cure="judge more prompts, or leave regularise=True",
    )
    model, test = slice(len(labels) - judged, None), np.stack([0 * ones, *d, ones], 1)
    return LengthProblem(x, labels, weights, model, y, test, is_baseline, origin, notes)


# The order of the rows by their numbers, or None where nothing numbers them; their difficulty (one
# column or none), where it is from, and notes.
def _difficulty(
    len_baseline: Floats,
    instruction: ArrayLike | None,
    row: ArrayLike | None,
    lookup: str,
    difficulty: ArrayLike | None,
) -> tuple[Integers | None, list[Floats], Origin, tuple[str, ...]]:
    size, notes = len(len_baseline), tuple[str, ...]()
    prompts = None if instruction is None else _numbers("instruction", instruction, size)
    positions = prompts
    if lookup == "as-published" and difficulty is None:
        positions = _numbers("row", np.arange(size) if row is None else row, size)
        notes = ("difficulty taken by row number, as published",)
    if prompts is not None:
        notes += _check_baseline(prompts, len_baseline)
    order = None if positions is None else np.argsort(positions)
    if difficulty is not None:
        return order, [_column("difficulty", difficulty, size)], "given", notes
    if positions is None:
        notes += ("no prompt numbers of AlpacaEval given: fitted without difficulty",)
        return order, [], "none", notes
    return order, [length_tables().difficulty[positions]], "official", notes


def _column(
    name: str,
    values: ArrayLike,
    length: int | None,
    *,
    low: float = -np.inf,
    high: float = np.inf,
    missing: bool = False,
) -> Floats:
    try:
        column = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        column = np.empty(0)
    InputError.unless(
        column.ndim == 1 and column.size and (length is None or len(column) == length),
        saw=f"{name} of shape {list(np.shape(values))}",
        expected=f"numbers, one a row{'' if length is None else f', {length} of them'}",
        cure=_ALIGN,
    )
    known = np.isfinite(column) | (missing & np.isnan(column))
    bad = ~known | (column < low) | (column > high)  # NaN is neither below nor above
    InputError.unless(
        not bad.any(),
        saw=f"{name}[{bad.argmax()}] = {column[bad.argmax()]}",
        expected=f"a number from {low:g} to {high:g}",
        cure="subtract 1 from AlpacaEval's 1 to 2, 0 being a draw"
        if name == "preference"
        else "drop or repair the row",
    )
    return column


def _numbers(name: str, values: ArrayLike, length: int) -> Integers:
    floats = _column(name, values, length)
    numbers = floats.astype(np.int64)
    outside = (numbers != floats) | (numbers < 0) | (numbers >= N_PROMPTS)
    InputError.unless(
        not outside.any(),
        saw=f"{name}[{int(outside.argmax())}] = {floats[outside.argmax()]:g}",
        expected=f"a number of AlpacaEval's prompts, 0 to {N_PROMPTS - 1}",
        cure="leave `instruction` out for other prompts: difficulty is then left out",
    )
    unique, counts = np.unique(numbers, return_counts=True)
    if len(twice := unique[counts > 1]):
        raise InputError.of(
            saw=f"{name} {int(twice[0])} stands in {int(counts.max())} rows"
            f" ({len(twice)} such numbers)",
            expected="each prompt at most once",
            cure="keep one row a prompt",
        )
    return numbers


# Another baseline is a note, shifted prompts are an error; the lengths tell them apart. Those of
# the official baseline are known: where they are there, but at other prompts, rows are shifted
# against their numbers, and every difficulty would be another prompt's.
def _check_baseline(prompts: Integers, len_baseline: Floats) -> tuple[str, ...]:
    known = length_tables().baseline_lengths
    expected = known[prompts]
    wrong = len_baseline != expected
    count, first = int(wrong.sum()), int(wrong.argmax())
    if not count:
        return ()
    same_lengths = np.array_equal(np.sort(len_baseline[wrong]), np.sort(expected[wrong]))
    share = np.isin(len_baseline[wrong], known).mean()
    InputError.unless(
        count <= 1 or (not same_lengths and (count < 10 or share < 0.95)),  # noqa: PLR2004 - no chance
        saw=f"{count} rows whose baseline answers have the lengths of other prompts' answers"
        f" (first: instruction {prompts[first]}, {len_baseline[first]:g} characters,"
        f" not {expected[first]:g})",
        expected="each row's `instruction` to be the prompt that its lengths belong to",
        cure=_ALIGN,
    )
    return (
        f"{count} of {len(prompts)} baseline answers differ in length from gpt4_1106_preview's: "
        "another baseline; difficulty and gamed rows are those of AlpacaEval's own baseline",
    )


def choose_c(problem: LengthProblem) -> float:
    """The C of the best cross-validated likelihood; the smallest among equals.

    Args:
        problem: The regression's rows.

    Returns:
        One of `GRID`.
    """
    n = len(problem.labels)
    # The folds of alpaca-eval, so that C is the one that it chooses.
    held_out = ((n - 1 - np.arange(n)) % FOLDS)[:, None] == np.arange(FOLDS)
    v = np.where(held_out, 0.0, problem.weights[:, None])
    y = problem.labels[:, None]
    scores, w = list[Floats](), None
    for c in GRID:  # all folds at once, from the solution for the C before
        w = fit_l1_logistic(problem.features, problem.labels, v, c=float(c), start=w)
        p = np.clip(expit(problem.features @ w.T), 1e-15, 1 - 1e-15)
        loss = -problem.weights[:, None] * (y * np.log(p) + (1 - y) * np.log1p(-p))
        scores.append(-(loss * held_out).sum(axis=0) / held_out.sum(axis=0))
    return float(GRID[np.mean(scores, axis=1).argmax()])


# Standard error of the prediction at equal lengths, as a share, from the spread of the scores:
# Huber 1967, Proc. Fifth Berkeley Symposium; by the delta method.
def _sandwich_error(problem: LengthProblem, w: Floats) -> float:
    x, v = problem.features, problem.weights
    p, q = expit(x @ w), expit(problem.test @ w)
    # a pseudo-inverse: where all lengths are equal t is zero in every row
    bread = np.linalg.pinv((x * (v * p * (1 - p))[:, None]).T @ x)
    scores = x * (v * (p - problem.labels))[:, None]
    slope = ((q * (1 - q))[:, None] * problem.test).mean(axis=0) @ bread
    return float(np.sqrt(slope @ (scores.T @ scores) @ slope))
