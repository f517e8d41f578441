"""`prefstage evaluate --annotations`: the win rates of verdicts that exist."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from prefstage.core.errors import InputError
from prefstage.core.files import write_json

if TYPE_CHECKING:
    from prefstage.evaluating import Annotation


def recount(given: Mapping[str, Any]) -> dict[str, Any]:
    """Tell the win rates of an annotations.json.

    Gamed rows take part for AlpacaEval's prompts alone. On other prompts, few verdicts are too
    few to control for length; the raw rates are told all the same.

    Args:
        given: The command's options.

    Returns:
        The figures, `summary`, and the files `written`.

    Raises:
        InputError: If the file has several models or baselines.
    """
    from prefstage.evaluating import read_annotations, read_prompt_numbers
    from prefstage.evaluating.win_rates import FEWEST_CONTROLLED

    rows = read_annotations(given["annotations"])
    if len({row.generator_2 for row in rows}) > 1 or len({row.generator_1 for row in rows}) > 1:
        raise InputError.of(
            saw=f"{given['annotations']} has verdicts on several models or baselines",
            expected="one model and one baseline",
            cure="write one file a model",
        )
    numbers = read_prompt_numbers(given["prompt_order"])
    known = [None if numbers is None else numbers.get(row.instruction) for row in rows]
    strange = known.count(None) if numbers is not None else 0
    notes = [f"{strange} prompts are none of AlpacaEval's"] if strange else []
    if any(row.error_share != 1 for row in rows):
        notes.append("judging might have stopped early: intervals are wider, and hold there")
    official = None not in known or given["lookup"] != "instruction"
    told = sum(row.preference == row.preference for row in rows)  # NaN differs from itself
    if official or told >= FEWEST_CONTROLLED:
        numbered = None if None in known else known
        result, lines = _controlled(given, rows, numbered, regularise=official)
    else:
        result, lines = _raw(given, rows)
        notes.append(f"{told} verdicts are too few to control for length")
    model, baseline = rows[0].generator_2, rows[0].generator_1
    notes += result.get("notes", ())
    summary = [
        f"{model} over {baseline}, {told} verdicts by {rows[0].annotator or '?'}",
        *lines,
        *(f"note: {note}" for note in notes),
    ]
    told_too = {"model": model, "baseline": baseline, "notes": notes}
    return result | told_too | {"summary": "\n".join(summary)}


def _confidence(given: Mapping[str, Any], rows: Sequence["Annotation"]) -> float:
    """Confidence of an interval that holds as asked, also where judging might have stopped."""
    asked = given["confidence"] or 0.95
    return float(1 - (1 - asked) * min(row.error_share for row in rows))


def _controlled(
    given: Mapping[str, Any],
    rows: Sequence["Annotation"],
    numbers: Sequence[int | None] | None,
    *,
    regularise: bool,
) -> tuple[dict[str, Any], list[str]]:
    from prefstage.evaluating import (
        leaderboard_row,
        length_controlled_interval,
        length_controlled_win_rate,
        write_leaderboard,
    )

    columns: dict[str, Any] = {
        "preference": [row.preference for row in rows],
        "len_model": [len(row.output_2) for row in rows],
        "len_baseline": [len(row.output_1) for row in rows],
        "instruction": numbers,
        "lookup": given["lookup"],
        "regularise": regularise,
    }
    found = length_controlled_win_rate(**columns)
    low, high = length_controlled_interval(
        **columns, confidence=_confidence(given, rows), seed=given["seed"] or 0
    )
    line = leaderboard_row(columns["preference"], columns["len_model"], controlled=found)
    written = []
    if given["out"] is not None:
        written = [given["out"] / "leaderboard.csv", given["out"] / "results.json"]
        write_leaderboard(written[0], {rows[0].generator_2: line})
        write_json(written[1], found.as_dict())
    lines = [
        f"win rate {found.win_rate:.2f} % ± {found.standard_error:.2f}"
        f", discrete {found.discrete_win_rate:.2f} %",
        f"length-controlled {found.length_controlled_win_rate:.2f} % [{low:.2f}, {high:.2f}]"
        f" (difficulty: {found.difficulty})",
    ]
    return found.as_dict() | {"interval": [low, high], "written": written}, lines


def _raw(
    given: Mapping[str, Any], rows: Sequence["Annotation"]
) -> tuple[dict[str, Any], list[str]]:
    from prefstage.evaluating.rates import rates_of

    found = rates_of(
        [row.preference for row in rows],
        confidence=_confidence(given, rows),
        seed=given["seed"] or 0,
    )
    found = replace(found, confidence=given["confidence"] or 0.95)
    written = []
    if given["out"] is not None:
        written = [given["out"] / "results.json"]
        write_json(written[0], found.as_dict())
    low, high = found.interval
    lines = [
        f"win rate {found.win_rate:.2f} % ± {found.standard_error:.2f} [{low:.2f}, {high:.2f}]"
        f", discrete {found.discrete_win_rate:.2f} %"
    ]
    return found.as_dict() | {"written": written}, lines
