"""The regression of the length-controlled win rate: its rows, its C, its error."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prefstage.core.errors import InputError
from prefstage.evaluating.l1_logistic import fit_l1_logistic
from prefstage.evaluating.length_rows import Rows
from prefstage.evaluating.length_tables import LengthTables, standardised_length

Floats = NDArray[np.float64]

GRID = np.logspace(-4, 4, 10)
FOLDS = 5
GAMED_WEIGHT = 0.2 / 2
_HALF = 0.5


@dataclass(frozen=True)
class LengthProblem:
    """Rows of the regression: [gamed verbose, gamed concise, model with a preference]."""

    features: Floats
    labels: Floats
    weights: Floats
    test: Floats  # features of all the model's rows at equal lengths


def is_baseline(rows: Rows) -> bool:
    """Whether every answer is the baseline's own, as its row on the leaderboard is.

    Args:
        rows: The model's rows.

    Returns:
        True where all lengths are equal and all verdicts drawn.
    """
    same = (rows.len_model == rows.len_baseline).all()
    return bool(same and (rows.preference == _HALF).all())


def problem_of(rows: Rows, tables: LengthTables, *, regularise: bool) -> LengthProblem:
    """Make the regression's features.

    Args:
        rows: The model's rows.
        tables: Difficulties and gamed rows.
        regularise: Whether the gamed rows take part.

    Returns:
        Features t, d (where there is a difficulty) and z, labels and weights.

    Raises:
        InputError: If too few rows have a preference.
    """
    t = standardised_length(rows.len_model, rows.len_baseline)
    ours = [t, np.ones(len(t))]
    gamed = [tables.gamed_t, np.zeros(len(tables.gamed_t))]
    test = [np.zeros(len(t)), np.ones(len(t))]
    if rows.difficulty is not None:
        ours.insert(1, rows.difficulty)
        # Difficulties of other prompts say nothing of the gamed rows' prompts.
        official = rows.origin == "official"
        of_gamed = tables.difficulty[tables.gamed_index]
        gamed.insert(1, of_gamed if official else np.zeros(len(of_gamed)))
        test.insert(1, rows.difficulty)
    kept = ~np.isnan(rows.preference)
    x, y, v = np.stack(ours, 1)[kept], rows.preference[kept], np.ones(int(kept.sum()))
    if regularise:
        x = np.concatenate([np.stack(gamed, 1), x])
        y = np.concatenate([tables.gamed_preference, y])
        v = np.concatenate([np.full(len(tables.gamed_t), GAMED_WEIGHT), v])
    if len(y) < FOLDS:
        raise InputError.of(
            saw=f"{len(y)} rows with a preference",
            expected=f"at least {FOLDS} for {FOLDS}-fold cross-validation",
            cure="judge more prompts, or leave regularise=True",
        )
    return LengthProblem(features=x, labels=y, weights=v, test=np.stack(test, 1))


def choose_c(problem: LengthProblem) -> float:
    """The C of the best cross-validated likelihood; the smallest among equals.

    Args:
        problem: The regression's rows.

    Returns:
        One of `GRID`.
    """
    n = len(problem.labels)
    fold = (n - 1 - np.arange(n)) % FOLDS
    held_out = fold[:, None] == np.arange(FOLDS)
    v = np.where(held_out, 0.0, problem.weights[:, None])
    y = problem.labels[:, None]
    scores, w = [], None
    for c in GRID:
        w = fit_l1_logistic(problem.features, problem.labels, v, c=float(c), start=w).weights
        p = np.clip(sigmoid(problem.features @ w.T), 1e-15, 1 - 1e-15)
        loss = -problem.weights[:, None] * (y * np.log(p) + (1 - y) * np.log1p(-p))
        scores.append(-(loss * held_out).sum(axis=0) / held_out.sum(axis=0))
    return float(GRID[np.mean(scores, axis=1).argmax()])


def sandwich_error(problem: LengthProblem, w: Floats) -> float:
    """Standard error of the prediction at equal lengths, from the spread of the scores.

    Args:
        problem: The regression's rows.
        w: The fitted weights. [features].

    Returns:
        The error, as a share.

    Source:
        Huber 1967, Proc. Fifth Berkeley Symposium; by the delta method.
    """
    x, v = problem.features, problem.weights
    p = sigmoid(x @ w)
    bread = np.linalg.pinv((x * (v * p * (1 - p))[:, None]).T @ x)
    scores = x * (v * (p - problem.labels))[:, None]
    q = sigmoid(problem.test @ w)
    slope = ((q * (1 - q))[:, None] * problem.test).mean(axis=0) @ bread
    return float(np.sqrt(slope @ (scores.T @ scores) @ slope))


def sigmoid(z: Floats) -> Floats:
    """The logistic function, without overflow."""
    small = np.exp(-np.abs(z))
    return np.where(z >= 0, 1.0, small) / (1.0 + small)
