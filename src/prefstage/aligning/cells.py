"""The cells of an experiment: what a finished one has found, and which figures one can have."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from prefstage.aligning.loop import EVEN
from prefstage.aligning.recipe import Recipe, train_settings
from prefstage.aligning.runs import ALIGNED, in_sample_lines, reversal_lines
from prefstage.aligning.steps import STEPS, read_answers
from prefstage.aligning.tables import BUILT_IN, TRAINING
from prefstage.building.build import RESULT as BUILT
from prefstage.core import ConfigError, did_you_mean, read_json
from prefstage.data import Prompt
from prefstage.training.export import metrics_at
from prefstage.training.recipe import UNNAMED
from prefstage.training.recipe_run import HISTORY

RUNTIME = "runtime"
_DYNAMICS = "dynamics/"
_RATES = ("win_rate", "length_controlled_win_rate", "avg_length")
# Of a training itself; and what is measured of the pairs that it follows (`train.dynamics`), of
# the pairs of a held-out set too, or of the loss on a held-out set (`train.eval`).
_OF_TRAINING = ("steps", "exported_step", "epochs", "tokens", "first_loss", "last_loss", RUNTIME)
_FOLLOWED_ONCE = ("weight_distance", "win_rate", "grad_norm/mean", "grad_norm/max")
_SIDES = ("chosen", "rejected")
_EVALUATED = (
    *("loss", "rewards/margins", "rewards/accuracies", "trust"),
    *(f"{name}/{side}" for name in ("rewards", "logps", "lengths") for side in _SIDES),
)
_FOLLOWED = (
    *("rankings/accuracy", "rankings/normalised_accuracy", "rankings/at_threshold"),
    *(f"displacement/{name}" for name in (*_SIDES, "both_fell")),
    *(f"intra_diversity/{name}" for name in ("mean", "std", "q05", "q25", "q50", "q75", "q95")),
    "lengths/margin_correlation",
    *(
        f"flips/{before}_to_{after}/{figure}"
        for before in ("correct", "incorrect")
        for after in ("correct", "incorrect")
        for figure in ("share", "loss", "margins")
    ),
)

Metric = Callable[[Prompt, str], float]
"""(prompt, response) -> figure."""


@dataclass(frozen=True)
class Cell:
    """One combination.

    Attributes:
        name: Of its folder.
        values: The label of each axis's value.
        recipe: What it does.
    """

    name: str
    values: Mapping[str, str]
    recipe: Recipe


# --- Which figures there can be ------------------------------------------------------------------


def needs_dynamics(column: str) -> bool:
    """Whether a column is of pairs that a training follows, as `train.dynamics` says.

    Args:
        column: Such as ``training.eval_rankings/accuracy``.

    Returns:
        Whether there is nothing in it without.
    """
    name = column.removeprefix(TRAINING)
    return column.startswith(TRAINING) and (
        name in _FOLLOWED_ONCE or name.endswith(_FOLLOWED) or _DYNAMICS in name
    )


def check_columns(columns: Iterable[str], cells: Sequence[Cell], metrics: Iterable[str]) -> None:
    """Refuse columns that no cell can fill.

    Args:
        columns: Of all tables.
        cells: Of the experiment.
        metrics: Names of the experiment's own metrics.

    Raises:
        ConfigError: If there is one; the message lists the columns that there are.
    """
    metrics = [*metrics]
    recipes = [cell.recipe for cell in cells]
    evaluated = [recipe.evaluate for recipe in recipes if recipe.evaluate is not None]
    controlled = any(evaluate.win_rate.length_controlled for evaluate in evaluated)
    # Whether there is a figure, and which setting makes it.
    made = {
        **dict.fromkeys((*_RATES, *metrics), (bool(evaluated), "set evaluate")),
        "length_controlled_win_rate": (
            controlled,
            "set evaluate, and win_rate.length_controlled: true in it",
        ),
        "boundary_score": (any(r.measure is not False for r in recipes), "remove measure: false"),
    }
    sets = {name: None for r in recipes for name in train_settings(r, policy="", data="").eval}
    starts = ["eval_" if name == UNNAMED else f"eval_{name}_" for name in sets]
    named = ["", *starts]
    of_training = {
        *(*_OF_TRAINING, *_FOLLOWED_ONCE, *map(_DYNAMICS.__add__, _FOLLOWED_ONCE)),
        *(f"{start}{name}" for start in starts for name in _EVALUATED),
        *(f"{start}{name}" for start in named for name in _FOLLOWED),
        *(f"{start}{_DYNAMICS}{name}" for start in named for name in (*_EVALUATED, *_FOLLOWED)),
    }
    for column in columns:
        is_made, cure = made.get(column, (True, ""))
        name = column.removeprefix(TRAINING)
        if column.startswith(TRAINING):
            is_made = name in of_training
            held_out = name.startswith("eval_") and not sets
            cure = "set train.eval" if held_out else did_you_mean(name, of_training, "change it")
        elif column not in (*BUILT_IN, *metrics):
            is_made, cure = False, did_you_mean(column, (*BUILT_IN, *metrics), "change it")
        whose = "" if column in made else _known_columns(metrics, starts)
        ConfigError.unless(
            is_made,
            saw=f"a table with column {column!r}",
            expected=whose or "a column that a cell of the experiment can fill",
            cure=cure,
        )


def _known_columns(metrics: Sequence[str], starts: Sequence[str]) -> str:
    own = ", ".join([*_OF_TRAINING, *_FOLLOWED_ONCE, *_FOLLOWED])
    held_out = " or ".join(starts) or "eval_ (with train.eval)"
    return (
        f"one of {', '.join([*BUILT_IN, *metrics])}; or {TRAINING}NAME with one of {own}; of "
        f"held-out pairs these and {', '.join(_EVALUATED)} behind {held_out}"
    )


# --- What a cell has found -----------------------------------------------------------------------


def read_cell(
    cell: Cell, folder: Path, metrics: Mapping[str, Metric], *, timed: bool = False
) -> dict[str, Any]:
    """The figures of a finished cell.

    Args:
        cell: The cell.
        folder: Its run folder.
        metrics: What else is computed of each answer to a held-out prompt, and averaged.
        timed: Whether to tell how long trainings took: of all figures the only ones that are
            not the same when the experiment is run again.

    Returns:
        The cell's name and values, the bad rows that it put aside, how often its judge reversed
        labels that it replaced, and its policies in order: the start, and after each iteration;
        each with the data trained on so far and its figures.
    """
    result = read_json(folder / ALIGNED)
    steps, rows = folder / STEPS, result["iterations"]
    done = [row for row in rows if row["stopped"] is None]
    policies: list[dict[str, float | None]] = [{}]
    first = result.get("start_evaluation")  # over a baseline; unknown to runs of older versions
    if first is not None:
        policies[0] |= {name: first[name] for name in _RATES}
        policies[0] |= _averages(steps / result["start_answers"], metrics)
    elif rows and (rates := rows[0]["evaluation"]) is not None:
        controlled = rates["length_controlled_win_rate"]
        policies[0] |= {
            "win_rate": EVEN,
            "length_controlled_win_rate": None if controlled is None else EVEN,
            "avg_length": rates["avg_length_start"],
            **_averages(steps / result["start_answers"], metrics),
        }
    for row in done:
        figures = {"pairs": row["pairs"]}
        if (rates := row["evaluation"]) is not None:
            figures |= {name: rates[name] for name in _RATES}
            figures |= _averages(steps / row["steps"]["answer"], metrics)
        figures |= _training(row["training"], steps / row["steps"]["train"], timed=timed)
        policies.append(figures | _quality(steps / row["steps"]["build"] / BUILT))
    if done:
        # What the first training saw of held-out pairs before its first step is the start's.
        history = read_json(steps / done[0]["steps"]["train"] / HISTORY)["history"]
        before = _without_prefix(metrics_at(history, 0))
        policies[0] |= {n: v for n, v in before.items() if n.startswith(f"{TRAINING}eval_")}
    # A policy's boundary score is measured in the iteration that it goes into.
    for figures, row in zip(policies, rows, strict=False):
        if row["stage"] is not None:
            figures["boundary_score"] = row["stage"]["boundary_score"]
    return {
        "cell": cell.name,
        "values": dict(cell.values),
        "put_aside": result["put_aside"],
        "stopped": result["stopped"],
        "reversals": reversal_lines(result),
        "in_sample": in_sample_lines(result),
        "policies": [
            {
                "path": [row["data"] for row in done[:number]],
                "figures": {name: v for name, v in figures.items() if v is not None},
            }
            for number, figures in enumerate(policies)
        ],
    }


# Of the exported step, be it the best or the last; the pairs followed need no word "dynamics".
def _training(training: Mapping[str, Any], step: Path, *, timed: bool) -> dict[str, float | None]:
    figures = {f"{TRAINING}{name}": training[name] for name in _OF_TRAINING if name != RUNTIME}
    if timed:
        history = read_json(step / HISTORY)["history"]
        taken = (entry["train_runtime"] for entry in history if "train_runtime" in entry)
        figures[TRAINING + RUNTIME] = next(taken, None)
    return figures | _without_prefix(training["metrics"])


def _without_prefix(metrics: Mapping[str, float]) -> dict[str, float | None]:
    # Loss and rewards of an evaluation are the training's own, those of pairs that are followed
    # DPO's or IPO's: these stay behind "dynamics/".
    short = {
        name.replace(_DYNAMICS, ""): value
        for name, value in metrics.items()
        if name.endswith((*_FOLLOWED, *_FOLLOWED_ONCE))
    }
    return {f"{TRAINING}{name}": value for name, value in (short | dict(metrics)).items()}


def _averages(answers: Path, metrics: Mapping[str, Metric]) -> dict[str, float]:
    rows = read_answers(answers) if metrics else []
    return {name: mean(metric(*row) for row in rows) for name, metric in metrics.items()}


# Mean score of the chosen responses, and mean gap, where all pairs have scores of one kind.
def _quality(built: Path) -> dict[str, float]:
    (known,) = read_json(built)["statistics"].values()
    names = {"avg_chosen": "average_chosen", "avg_gap": "average_difference"}
    return {} if known["gap"]["missing"] else {new: known[old] for new, old in names.items()}
