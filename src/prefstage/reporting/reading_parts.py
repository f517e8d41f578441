"""The parts that several kinds of run have: a measurement, a training, an evaluation, pairs."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from prefstage.measuring.sequential import ConfidenceSequence
from prefstage.reporting.files import read_json
from prefstage.reporting.pairs import PairRows, pairs_of_annotations
from prefstage.reporting.results import Decision, Dynamics, Evaluation, Look, Training
from prefstage.training.dynamics_store import ABOUT, read_dynamics, read_metrics
from prefstage.training.recipe_run import DYNAMICS, HISTORY, RESULT

_LOOKS = 60


def read_decision(folder: Path, stage: Mapping[str, Any], *, iteration: int) -> Decision:
    """A measurement, and how its interval narrowed.

    Args:
        folder: Holds ``prompts.parquet``, or does not.
        stage: As in stage.json.
        iteration: From 1.

    Returns:
        The decision.
    """
    path = folder / "prompts.parquet"
    scores: list[float] = []
    if path.is_file():
        table = pq.read_table(path, columns=["order", "score"]).sort_by("order")
        scores = table["score"].to_pylist()
    if len(scores) != stage["prompts_used"]:  # another measurement's prompts
        scores = []
    finite = stage.get("population", "these prompts") == "these prompts"
    available = stage["prompts_available"] if finite else None
    return Decision(
        iteration, stage, looks_of(scores, available=available, confidence=stage["confidence"])
    )


def looks_of(
    scores: Sequence[float], *, available: int | None, confidence: float
) -> tuple[Look, ...]:
    """The interval after growing numbers of prompts, at most 60 of them.

    Args:
        scores: Score of each prompt, in the order of use. [prompts], in [0, 1].
        available: Prompts that there are; None if the interval is about new ones.
        confidence: Of the interval.

    Returns:
        The looks, the last one after all prompts.
    """
    sequence = ConfidenceSequence(available=available, confidence=confidence)
    counts = sorted({math.ceil(len(scores) * (k + 1) / _LOOKS) for k in range(_LOOKS)} - {0})
    found = list[Look]()
    for count in counts:
        sequence.update(scores[sequence.count : count])
        low, high = sequence.interval
        found.append(Look(count, sequence.mean, low, high))
    return tuple(found)


def read_training(folder: Path, *, iteration: int) -> Training:
    """A training's results.

    Args:
        folder: As `train_recipe` leaves it.
        iteration: From 1; 0 before the loop.

    Returns:
        The training.
    """
    history = folder / HISTORY
    lines = read_json(history)["history"] if history.is_file() else []
    result, place = read_json(folder / RESULT), folder / DYNAMICS
    exported = result.get("exported_step", result["steps"])
    dynamics = _dynamics(place, exported) if (place / ABOUT).is_file() else None
    return Training(iteration, result, tuple(lines), dynamics)


def _dynamics(folder: Path, exported: int) -> Dynamics | None:
    """Up to the model that was exported, or the last record before it."""
    about, table = read_json(folder / ABOUT), read_dynamics(folder)
    table = table.filter(pc.less_equal(table["step"], exported))
    last = table.filter(pc.equal(table["step"], pc.max(table["step"])))
    metrics = tuple(each for each in read_metrics(folder) if each["step"] <= exported)
    return Dynamics(float(about["beta"]), tuple(about["sets"]), metrics, last)


def read_evaluation(
    result: Mapping[str, Any], annotations: Path, *, iteration: int
) -> tuple[Evaluation, PairRows | None]:
    """An evaluation, and the answers that were compared.

    Args:
        result: As in evaluation.json.
        annotations: annotations.json, or no file.
        iteration: From 1.

    Returns:
        The evaluation, and its pairs of answers; None if they are not on file.
    """
    model, baseline = result["model"], result["baseline"]
    distinct: dict[str, tuple[float, float]] = {}
    pairs = None
    if annotations.is_file():
        rows: Any = read_json(annotations)
        for side in ("1", "2"):
            answers = [row[f"output_{side}"] for row in rows]
            name = rows[0][f"generator_{side}"] if rows else ""
            distinct[name] = (distinct_share(answers, 1), distinct_share(answers, 2))
        pairs = pairs_of_annotations(rows, f"evaluation: {model} against {baseline}")
    return Evaluation(iteration, model, baseline, result, distinct), pairs


def distinct_share(texts: Sequence[str], size: int) -> float:
    """Share of different n-grams among all n-grams of words in several texts (distinct-n).

    Args:
        texts: The texts, taken together.
        size: n.

    Returns:
        In [0, 1]; 0 without n-grams.
    """
    words = [text.lower().split() for text in texts]
    grams = [tuple(w[i : i + size]) for w in words for i in range(len(w) - size + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0
