"""The regression of length control: its constant tables, and its fit.

The fit is a weighted logistic regression on soft labels with an l1 penalty, solved to the optimum.
Only for few features: the quadratic model of each Newton step is minimised exactly, by trying
every pattern of signs. Many problems with the same features and other weights (the folds of a
cross-validation, the resamples of a bootstrap) are solved side by side.
"""

import gzip
import io
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import product
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.csv
from numpy.typing import NDArray

from prefstage.core import DataError

Floats = NDArray[np.float64]

_MAX_STEPS = 100
_MAX_HALVINGS = 40
_SMALL_STEP = 1e-7  # Newton converges quadratically: what is left is about its square
_ROUNDING = 1e-12
N_PROMPTS = 805
_NEEDED = ("index", "preference", "std_delta_len", "instruction_difficulty")


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
    folder = files("prefstage.evaluating") / "tables"
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
