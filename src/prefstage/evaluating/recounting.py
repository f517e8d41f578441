"""The win rates of verdicts that exist: AlpacaEval's annotations.json."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from prefstage.core.errors import InputError
from prefstage.core.files import write_json
from prefstage.core.outcome import Outcome
from prefstage.evaluating.alpaca_files import (
    Annotation,
    leaderboard_row,
    read_annotations,
    read_prompt_numbers,
    write_leaderboard,
)
from prefstage.evaluating.length_controlled import length_controlled_win_rate
from prefstage.evaluating.length_interval import length_controlled_interval
from prefstage.evaluating.rates import rates_of
from prefstage.evaluating.settings import EvaluateSettings
from prefstage.evaluating.win_rates import FEWEST_CONTROLLED


def recount(settings: EvaluateSettings, out: Path | None) -> Outcome:
    """Compute the win rates of an annotations.json.

    Gamed rows take part for AlpacaEval's prompts alone. On other prompts, few verdicts are too
    few to control for length; the raw rates are computed all the same.

    Args:
        settings: With `annotations`.
        out: Folder for the results; None writes nothing.

    Returns:
        The figures.

    Raises:
        InputError: If the file has several models or baselines.
    """
    rows = read_annotations(Path(str(settings.annotations)))
    if len({row.generator_2 for row in rows}) > 1 or len({row.generator_1 for row in rows}) > 1:
        raise InputError.of(
            saw=f"{settings.annotations} has verdicts on several models or baselines",
            expected="one model and one baseline",
            cure="write one file a model",
        )
    numbers = read_prompt_numbers(settings.prompt_order)
    known = [None if numbers is None else numbers.get(row.instruction) for row in rows]
    strange = known.count(None) if numbers is not None else 0
    notes = [f"{strange} prompts are none of AlpacaEval's"] if strange else []
    if any(row.error_share != 1 for row in rows):
        notes.append("judging might have stopped early: intervals are wider, and hold there")
    official = None not in known or settings.lookup != "instruction"
    verdicts = sum(row.preference == row.preference for row in rows)  # NaN differs from itself
    if official or verdicts >= FEWEST_CONTROLLED:
        numbered = None if None in known else known
        result, lines, written = _controlled(settings, out, rows, numbered, regularise=official)
    else:
        result, lines, written = _raw(settings, out, rows)
        notes.append(f"{verdicts} verdicts are too few to control for length")
    model, baseline = rows[0].generator_2, rows[0].generator_1
    notes += result.get("notes", ())
    summary = [
        f"{model} over {baseline}, {verdicts} verdicts by {rows[0].annotator or '?'}",
        *lines,
        *(f"note: {note}" for note in notes),
    ]
    result |= {"model": model, "baseline": baseline, "notes": notes}
    return Outcome("\n".join(summary), result, written)


def _confidence(settings: EvaluateSettings, rows: Sequence[Annotation]) -> float:
    """Confidence of an interval that holds as asked, also where judging might have stopped."""
    return float(1 - (1 - settings.confidence) * min(row.error_share for row in rows))


def _controlled(
    settings: EvaluateSettings,
    out: Path | None,
    rows: Sequence[Annotation],
    numbers: Sequence[int | None] | None,
    *,
    regularise: bool,
) -> tuple[dict[str, Any], list[str], list[Path]]:
    columns: dict[str, Any] = {
        "preference": [row.preference for row in rows],
        "len_model": [len(row.output_2) for row in rows],
        "len_baseline": [len(row.output_1) for row in rows],
        "instruction": numbers,
        "lookup": settings.lookup,
        "regularise": regularise,
    }
    rates = length_controlled_win_rate(**columns)
    low, high = length_controlled_interval(
        **columns, confidence=_confidence(settings, rows), seed=settings.seed
    )
    written = []
    if out is not None:
        written = [out / "leaderboard.csv", out / "results.json"]
        line = leaderboard_row(columns["preference"], columns["len_model"], controlled=rates)
        write_leaderboard(written[0], {rows[0].generator_2: line})
        write_json(written[1], rates.as_dict())
    lines = [
        f"win rate {rates.win_rate:.2f} % ± {rates.standard_error:.2f}"
        f", discrete {rates.discrete_win_rate:.2f} %",
        f"length-controlled {rates.length_controlled_win_rate:.2f} % [{low:.2f}, {high:.2f}]"
        f" (difficulty: {rates.difficulty})",
    ]
    return rates.as_dict() | {"interval": [low, high]}, lines, written


def _raw(
    settings: EvaluateSettings, out: Path | None, rows: Sequence[Annotation]
) -> tuple[dict[str, Any], list[str], list[Path]]:
    rates = rates_of(
        [row.preference for row in rows],
        confidence=_confidence(settings, rows),
        seed=settings.seed,
    )
    rates = replace(rates, confidence=settings.confidence)
    written = []
    if out is not None:
        written = [out / "results.json"]
        write_json(written[0], rates.as_dict())
    low, high = rates.interval
    lines = [
        f"win rate {rates.win_rate:.2f} % ± {rates.standard_error:.2f} [{low:.2f}, {high:.2f}]"
        f", discrete {rates.discrete_win_rate:.2f} %"
    ]
    return rates.as_dict(), lines, written
