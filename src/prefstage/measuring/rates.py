"""Win rates: the rate, its error, intervals that hold; and the regression that controls for length.

Its fit is a weighted logistic regression on soft labels with an l1 penalty, solved to the optimum.
Only for few features: the quadratic model of each Newton step is minimised exactly, by trying
every pattern of signs. Many problems with the same features and other weights (the folds of a
cross-validation, the resamples of a bootstrap) are solved side by side.
"""

import gzip
import io
from dataclasses import asdict, dataclass
from functools import cache
from importlib.resources import files
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.csv
from numpy.typing import ArrayLike, NDArray
from scipy.special import betaincinv

from prefstage.core import DataError, InputError, seed_for

Floats = NDArray[np.float64]

HALF = 0.5
_DRAWS_AT_ONCE = 1 << 21
_MAX_STEPS = 100
_MAX_HALVINGS = 40
_SMALL_STEP = 1e-7  # Newton converges quadratically: what is left is about its square
_ROUNDING = 1e-12
N_PROMPTS = 805
_NEEDED = ("index", "preference", "std_delta_len", "instruction_difficulty")


class Figures:
    """A dataclass whose fields are figures and names."""

    def as_dict(self: Any) -> dict[str, Any]:
        """The figures as JSON-serialisable values."""
        return asdict(self)


@dataclass(frozen=True)
class Rates(Figures):
    """How often a model wins; all rates and errors in percent.

    Attributes:
        win_rate: 100 · mean preference.
        standard_error: Of it (ddof 1).
        interval: Of the win rate (see `mean_interval`).
        discrete_win_rate: 100 · (wins + ½·draws) / n_total.
        discrete_interval: Likewise of the discrete win rate.
        confidence: Of both intervals.
        wins: Preferences above ½.
        losses: Below ½.
        draws: Exactly ½.
        n_total: Rows with a preference.
        n_missing: Rows without one (NaN).
    """

    win_rate: float
    standard_error: float
    interval: tuple[float, float]
    discrete_win_rate: float
    discrete_interval: tuple[float, float]
    confidence: float
    wins: int
    losses: int
    draws: int
    n_total: int
    n_missing: int


def rates_of(
    preference: ArrayLike, *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Rates:
    """Summarise preferences.

    Args:
        preference: For the model, in [0, 1]; NaN where there is none. [rows].
        confidence: Of the intervals, in (0, 1).
        resamples: Bootstrap resamples, >= 1.
        seed: Of the resamples.

    Returns:
        The rates.

    Raises:
        InputError: If fewer than two rows have a preference, or a value is out of range.
    """
    values = np.asarray(preference, dtype=np.float64)
    usable = values[~np.isnan(values)]
    InputError.unless(
        len(usable) >= 2 and usable.min() >= 0 and usable.max() <= 1,  # noqa: PLR2004 - for an error
        saw=f"{len(usable)} preferences"
        + (f" from {usable.min():g} to {usable.max():g}" if len(usable) else ""),
        expected="at least two, each in [0, 1]",
        cure="judge more prompts; AlpacaEval's files store 1 + preference",
    )
    outcomes = (usable > HALF) + HALF * (usable == HALF)
    low, high, discrete_low, discrete_high = (
        100 * end
        for column in (usable, outcomes)
        for end in mean_interval(column, confidence=confidence, resamples=resamples, seed=seed)
    )
    return Rates(
        win_rate=100 * float(usable.mean()),
        standard_error=100 * standard_error(usable),
        interval=(low, high),
        discrete_win_rate=100 * float(outcomes.mean()),
        discrete_interval=(discrete_low, discrete_high),
        confidence=confidence,
        wins=int((usable > HALF).sum()),
        losses=int((usable < HALF).sum()),
        draws=int((usable == HALF).sum()),
        n_total=len(usable),
        n_missing=len(values) - len(usable),
    )


def standard_error(values: Floats) -> float:
    """Standard error of the mean (ddof 1)."""
    return float(values.std(ddof=1) / np.sqrt(len(values)))


def check_bootstrap(confidence: float, resamples: int) -> None:
    """Refuse settings that no bootstrap interval can have.

    Args:
        confidence: In (0, 1).
        resamples: At least 1.

    Raises:
        InputError: If one is out of range.
    """
    InputError.unless(
        0 < confidence < 1 and resamples >= 1,
        saw=f"confidence {confidence}, {resamples} resamples",
        expected="confidence in (0, 1), at least one resample",
        cure="write confidence=0.95, resamples=1000",
    )


def batches(draws: int, at_once: int) -> list[int]:
    """How many of a bootstrap's draws to make next: memory must not grow with all of them.

    Args:
        draws: In all.
        at_once: At most.

    Returns:
        Numbers that sum to `draws`.
    """
    return [min(at_once, draws - begin) for begin in range(0, draws, at_once)]


def mean_interval(
    values: Floats, *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Interval of a mean in [0, 1] that holds for skewed and few values too.

    The union of two: the studentised bootstrap, and `effective_interval`, which does not
    rely on what the rows at hand happen to show of rare wins.

    Args:
        values: In [0, 1]. [rows], at least two.
        confidence: In (0, 1).
        resamples: How many, >= 1.
        seed: Of the draws.

    Returns:
        (low, high) within [0, 1].

    Raises:
        InputError: If a setting is out of range.

    Source:
        Efron and Tibshirani 1993, An Introduction to the Bootstrap, §12.5.
    """
    check_bootstrap(confidence, resamples)
    n = len(values)
    rng = np.random.default_rng(seed_for(seed, "win rate"))
    mean, error = float(values.mean()), _error(values.mean(), (values**2).mean(), n)
    t = list[Floats]()
    for size in batches(resamples, max(1, _DRAWS_AT_ONCE // n)):  # 16 MB, whatever n
        drawn = values[rng.integers(n, size=(size, n))]
        means = drawn.mean(axis=1)
        t.append((means - mean) / _error(means, (drawn**2).mean(axis=1), n))
    # The upper quantile of t gives the lower end: a mean that was drawn too high has its truth
    # below it.
    ends = np.quantile(np.concatenate(t), [(1 + confidence) / 2, (1 - confidence) / 2])
    low, high = effective_interval(values, confidence=confidence)
    return max(0.0, min(low, mean - ends[0] * error)), min(1.0, max(high, mean - ends[1] * error))


def _error(mean: Any, mean_square: Any, n: int) -> Any:
    # With one more row at 0 and one at 1 the error is never zero: equal verdicts on few prompts
    # do not prove that all verdicts are equal, and t would be infinite.
    m, s = (n * mean + 1) / (n + 2), (n * mean_square + 1) / (n + 2)
    return np.sqrt((s - m**2) / (n + 1))


def effective_interval(values: Floats, *, confidence: float) -> tuple[float, float]:
    """Clopper-Pearson's interval with an effective number of rows.

    With wins and losses alone it is the exact binomial interval. Graded outcomes spread less
    than wins and losses of the same mean p: they count as p(1-p)/s² rows each.

    Args:
        values: In [0, 1]. [rows], at least two.
        confidence: In (0, 1).

    Returns:
        (low, high) within [0, 1].

    Source:
        Clopper and Pearson 1934, Biometrika 26; effective size: Korn and Graubard 1998,
        Survey Methodology 24(2).
    """
    # The ratio too is taken with one more row at 0 and one at 1: few rows do not show how far
    # they spread.
    padded, mean = np.concatenate([values, [0.0, 1.0]]), float(values.mean())
    size = len(values) * float(padded.mean() * (1 - padded.mean()) / padded.var())
    wins, tail = size * mean, (1 - confidence) / 2
    # scipy's function of the beta distribution itself: scipy.stats, which wraps it, takes a
    # second to import. It does not know the parameter 0, where the end is 0 or 1.
    return (
        0.0 if wins <= 0 else float(betaincinv(wins, size - wins + 1, tail)),
        1.0 if wins >= size else float(betaincinv(wins + 1, size - wins, 1 - tail)),
    )


# --- The regression of length control: its constant tables, and its fit --------------------------


@dataclass(frozen=True)
class LengthTables:
    """The constants of the length-controlled regression.

    Attributes:
        difficulty: Of each prompt in the official order; larger: models win more often.
            [prompts].
        gamed_t: tanh of the standardised length difference of the gamed rows, verbose first,
            then concise. [rows].
        gamed_index: Prompt of each gamed row. [rows].
        gamed_preference: In [0, 1]. [rows].
        baseline_lengths: Characters of the official baseline's answers. [prompts].
    """

    difficulty: Floats
    gamed_t: Floats
    gamed_index: NDArray[np.int64]
    gamed_preference: Floats
    baseline_lengths: Floats


def standardised_length(len_model: Floats, len_baseline: Floats) -> Floats:
    """``tanh(δ / std(δ))`` with δ = len_baseline - len_model, not centred.

    Args:
        len_model: Characters of the model's answers. [rows].
        len_baseline: Characters of the baseline's. [rows].

    Returns:
        In [-1, 1]; where all δ are equal the limit: the sign of δ. [rows].

    Source:
        Dubois et al. 2024, arXiv:2404.04475, Eq. 2; std with ddof 1 as in `alpaca-eval`.
    """
    delta = len_baseline - len_model
    if len(delta) and (delta == delta[0]).all():
        return np.asarray(np.sign(delta))
    return np.asarray(np.tanh(delta / delta.std(ddof=1)))


@cache
def length_tables() -> LengthTables:
    """The official tables where the local Hub cache has them, and the package's otherwise.

    Returns:
        The tables, read once a process.

    Raises:
        DataError: If the cached official file has another form than the known one.
    """
    folder = files("prefstage.measuring") / "tables"
    difficulty = _columns((folder / "instruction_difficulty.csv").read_bytes())["difficulty"]
    rows = _columns(gzip.decompress((folder / "gamed_rows.csv.gz").read_bytes()))
    index, lengths = rows["index"].astype(np.int64), np.empty(len(difficulty))
    lengths[index] = rows["len_baseline"]
    path = cached_file("df_gamed.csv")
    if path is not None:
        return _official(path, lengths)
    t = np.empty(len(index))
    for group in (0, 1):  # each gamed baseline is standardised by itself, as one model
        mine = rows["group"] == group
        t[mine] = standardised_length(rows["len_model"][mine], rows["len_baseline"][mine])
    return LengthTables(difficulty, t, index, rows["preference"], lengths)


def cached_file(name: str) -> Path | None:
    """A file of AlpacaEval's data set in the local Hub cache; None if it is not there."""
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache("tatsu-lab/alpaca_eval", name, repo_type="dataset")
    return Path(path) if isinstance(path, str) else None


# The tables in the layout of the official df_gamed.csv, which holds no lengths.
def _official(path: Path, baseline_lengths: Floats) -> LengthTables:
    try:
        rows = _columns(path.read_bytes())
    except pyarrow.ArrowInvalid:
        rows = {}
    missing, count = sorted({*_NEEDED} - {*rows}), len(next(iter(rows.values()), ()))
    DataError.unless(
        not missing and count == 2 * N_PROMPTS,
        saw=f"{path} with {count} rows, without columns {missing}",
        expected=f"{2 * N_PROMPTS} rows with {sorted(_NEEDED)}",
        cure="fetch the file again, or delete it to use the tables of the package",
    )
    index, difficulty = rows["index"].astype(np.int64), np.empty(N_PROMPTS)
    # Every prompt stands in two rows, of which alpaca-eval takes the first: of several values that
    # are assigned to one index numpy keeps the last, so they are assigned backwards.
    difficulty[index[::-1]] = rows["instruction_difficulty"][::-1]
    return LengthTables(
        difficulty, np.tanh(rows["std_delta_len"]), index, rows["preference"], baseline_lengths
    )


def _columns(text: bytes) -> dict[str, Floats]:
    table = pyarrow.csv.read_csv(io.BytesIO(text))
    return {
        name: column.to_numpy().astype(np.float64)
        for name, column in zip(table.column_names, table.columns, strict=True)
        if not pyarrow.types.is_string(column.type)
    }


def fit_l1_logistic(
    features: Floats,
    labels: Floats,
    row_weights: Floats,
    *,
    c: float,
    start: Floats | None = None,
) -> Floats:
    """Minimise ``‖w‖₁ + C·Σ_i v_i·CE(y_i, σ(w·x_i))`` without an intercept.

    Args:
        features: x. [rows, features], at most about four features.
        labels: y, in [0, 1]. [rows].
        row_weights: v ≥ 0, one column a problem. [rows, problems].
        c: C > 0: how much the rows count against the penalty.
        start: Where to begin, such as the solution for a nearby C. [problems, features].

    Returns:
        The optimum w of each problem. [problems, features].

    Source:
        The problem as liblinear's L1R_LR, Fan et al. 2008, JMLR 9; the steps as the proximal
        Newton method of Lee, Sun and Saunders 2014, SIAM J. Optim. 24(3), with exact steps.
    """
    w = np.zeros((row_weights.shape[1], features.shape[1])) if start is None else start.copy()
    v = c * row_weights
    # The rows' outer products do not change with w: with them the Hessians of all problems are
    # one matrix product a step, which is what makes a bootstrap of a thousand fits take seconds.
    products = outer_products(features)
    value, p = _objective(features, labels, v, w)
    for _ in range(_MAX_STEPS):
        vp = v * p
        gradient = (features.T @ (vp - v * labels[:, None])).T
        step = _newton_target(hessians(products, vp - vp * p), gradient, w) - w
        w, value, p, moved = _line_search(features, labels, v, w, step=step, value=value, p=p)
        if (np.abs(moved).max(axis=1) <= _SMALL_STEP * (1.0 + np.abs(w).max(axis=1))).all():
            break
    return w


def outer_products(x: Floats) -> Floats:
    """``x_i x_iᵀ`` of each row, flattened. [rows, features²]."""
    return (x[:, :, None] * x[:, None, :]).reshape(len(x), -1)


def hessians(products: Floats, weights: Floats) -> Floats:
    """``Σ_i v_i x_i x_iᵀ`` of each problem.

    Args:
        products: As of `outer_products`. [rows, features²].
        weights: v, one column a problem. [rows, problems].

    Returns:
        [problems, features, features].
    """
    size = round(products.shape[1] ** 0.5)
    return (products.T @ weights).T.reshape(-1, size, size)


def cross_entropy(z: Floats, y: Floats) -> tuple[Floats, Floats]:
    """``CE(y, σ(z))`` and σ(z), without overflow.

    Args:
        z: Logits, one column a problem. [rows, problems].
        y: Labels in [0, 1]. [rows].

    Returns:
        Both [rows, problems].
    """
    # One exponential, of a number that is never positive, serves the sigmoid and the softplus:
    # exponentials are most of a fit's time. CE is the logit's softplus less its share of the label.
    small = np.exp(-np.abs(z))
    p = np.where(z >= 0, 1.0, small) / (1.0 + small)
    return np.maximum(z, 0.0) + np.log1p(small) - y[:, None] * z, p


# The value of each problem [problems] and its probabilities [rows, problems].
def _objective(x: Floats, y: Floats, v: Floats, w: Floats) -> tuple[Floats, Floats]:
    loss, p = cross_entropy(x @ w.T, y)
    return np.abs(w).sum(axis=1) + np.einsum("rp,rp->p", v, loss), p


# The minimum of ½(u-w)ᵀH(u-w) + g·(u-w) + ‖u‖₁, exactly. [problems, features].
def _newton_target(hessian: Floats, gradient: Floats, w: Floats) -> Floats:
    # For a given pattern of signs (with zeros) the minimiser solves linear equations. The true
    # minimiser is that of its pattern, so the best of all 3^features candidates is exact: no
    # coordinate descent, which converges slowly where length and difficulty are correlated.
    size = w.shape[1]
    signs = np.array(list(product((0.0, 1.0, -1.0), repeat=size)))
    active = signs != 0
    # A ridge of rounding size keeps the equations solvable where a feature is zero in all rows.
    ridge = _ROUNDING * (np.einsum("pii->pi", hessian).max(axis=1) + _ROUNDING)
    h = hessian + ridge[:, None, None] * np.eye(size)
    b = np.einsum("pij,pj->pi", h, w) - gradient
    both = active[:, :, None] & active[:, None, :]
    systems = np.where(both[None], h[:, None], 0.0) + np.eye(size) * ~active[None, :, None, :]
    sides = np.where(active[None], b[:, None] - signs[None], 0.0)
    u = np.linalg.solve(systems, sides[..., None])[..., 0]
    value = 0.5 * np.einsum("psi,pij,psj->ps", u, h, u) - np.einsum("psi,pi->ps", u, b)
    best = (value + np.abs(u).sum(axis=2)).argmin(axis=1)
    return np.asarray(u[np.arange(len(w)), best])


def _line_search(
    x: Floats, y: Floats, v: Floats, w: Floats, *, step: Floats, value: Floats, p: Floats
) -> tuple[Floats, Floats, Floats, Floats]:
    # Newton's step may overshoot where the curvature is small: it is halved, for those problems
    # alone whose objective would rise.
    scale = np.ones(len(w))
    for _ in range(_MAX_HALVINGS):
        moved = scale[:, None] * step
        new_value, new_p = _objective(x, y, v, w + moved)
        # At the optimum the value may rise by a rounding error, which is no reason to halve.
        rises = new_value > value + _ROUNDING * np.abs(value)
        if not rises.any():
            return w + moved, new_value, new_p, moved
        scale = np.where(rises, 0.5 * scale, scale)
    return w, value, p, np.zeros_like(w)
