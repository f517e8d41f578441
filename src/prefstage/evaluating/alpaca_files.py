"""AlpacaEval's ``annotations.json`` and leaderboard CSV, read and written."""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefstage.core.errors import DataError, InputError
from prefstage.core.files import write_json, write_text
from prefstage.evaluating.alpaca_tables import cached_file
from prefstage.evaluating.length_controlled import LengthControlledWinRate
from prefstage.evaluating.rates import HALF

LEADERBOARD_COLUMNS = (
    "win_rate",
    "standard_error",
    "n_wins",
    "n_wins_base",
    "n_draws",
    "n_total",
    "discrete_win_rate",
    "mode",
    "avg_length",
    "length_controlled_winrate",
    "lc_standard_error",
)
_TEXTS = ("instruction", "output_1", "generator_1", "output_2", "generator_2")
_INTEGERS = {"n_wins", "n_wins_base", "n_draws", "n_total", "avg_length"}


@dataclass(frozen=True)
class Annotation:
    """One judged row, the baseline's answer first.

    Attributes:
        instruction: The prompt.
        output_1: The baseline's answer.
        output_2: The model's.
        generator_1: The baseline's name.
        generator_2: The model's.
        annotator: The judge's.
        preference: For the model, in [0, 1]; NaN where the judge gave none.
        error_share: Of the chance to miss, what an interval over all rows may use: less than 1
            where judging might have stopped early. AlpacaEval has no such field.
    """

    instruction: str
    output_1: str
    output_2: str
    generator_1: str
    generator_2: str
    annotator: str
    preference: float
    error_share: float = 1.0


def read_annotations(path: Path) -> list[Annotation]:
    """Read AlpacaEval's ``annotations.json``, in the file's order (the published row).

    Args:
        path: The file; its preferences are 1 (baseline) to 2 (model), 0 a draw, null none.

    Returns:
        The rows, with preferences in [0, 1].

    Raises:
        DataError: If the file is no list of annotations, a preference is out of range, or an
            instruction stands twice.
    """
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError.of(
            saw=f"{path}: {error}", expected="a JSON list of annotations", cure="check the file"
        ) from None
    if not isinstance(rows, list) or not rows:
        raise DataError.of(
            saw=f"{path} holds no list of rows", expected="annotations", cure="check the file"
        )
    annotations = [_annotation(f"{path} row {number}", row) for number, row in enumerate(rows)]
    numbers: dict[str, int] = {}
    for number, row in enumerate(annotations):
        first = numbers.setdefault(row.instruction, number)
        if first != number:
            raise DataError.of(
                saw=f"{path} rows {first} and {number} have the same instruction",
                expected="each instruction once",
                cure="keep one of them",
            )
    return annotations


def write_annotations(path: Path, rows: Sequence[Annotation]) -> None:
    """Write ``annotations.json`` as AlpacaEval does.

    Args:
        path: The file.
        rows: What to write; NaN becomes null, ½ becomes 1.5.
    """
    write_json(
        path,
        [
            {
                **{name: getattr(row, name) for name in _TEXTS},
                "annotator": row.annotator,
                "preference": row.preference + 1,
                **({} if row.error_share == 1 else {"error_share": row.error_share}),
            }
            for row in rows
        ],
    )


def read_prompt_numbers(path: Path | None = None) -> dict[str, int] | None:
    """Number AlpacaEval's instructions in the official order.

    Args:
        path: The official ``alpaca_eval.json`` or any ``model_outputs.json`` in its order;
            None looks into the local Hub cache.

    Returns:
        instruction → number; None where the cache does not have the file.

    Raises:
        DataError: If the file is no list of rows with `instruction`, or one stands twice.
    """
    path = path or cached_file("alpaca_eval.json")
    if path is None:
        return None
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        numbers = {row["instruction"]: number for number, row in enumerate(rows)}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError.of(
            saw=f"{path}: {type(error).__name__} {error}",
            expected="a JSON list of rows with `instruction`, in AlpacaEval's order",
            cure="give the official alpaca_eval.json",
        ) from None
    if len(numbers) != len(rows):
        raise DataError.of(
            saw=f"{path} repeats {len(rows) - len(numbers)} instructions",
            expected="each once",
            cure="give the official alpaca_eval.json",
        )
    return numbers


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


def read_leaderboard(path: Path) -> dict[str, dict[str, Any]]:
    """Read a leaderboard CSV.

    Args:
        path: The file; its first column names the model.

    Returns:
        model → column → number (or text; None where empty).

    Raises:
        DataError: If a model stands twice or the file has no columns.
    """
    with path.open(encoding="utf-8", newline="") as stream:
        header, *lines = [line for line in csv.reader(stream) if line] or [[]]
    names = [line[0] for line in lines]
    if len(header) < 2 or len(set(names)) != len(names):  # noqa: PLR2004 - a name and a value
        raise DataError.of(
            saw=f"{path}, {len(header)} columns, {len(names)} rows of {len(set(names))} models",
            expected="a model's name and its values in each row, each model once",
            cure="check the file",
        )
    return {
        name: {
            column: _value(column, text) for column, text in zip(header[1:], values, strict=False)
        }
        for name, *values in lines
    }


def write_leaderboard(path: Path, rows: Mapping[str, Mapping[str, Any]]) -> None:
    """Write a leaderboard CSV, the best length-controlled win rate first.

    Args:
        path: The file.
        rows: model → column → value, as from `leaderboard_row`.
    """
    columns = dict.fromkeys(
        (*LEADERBOARD_COLUMNS, *(name for row in rows.values() for name in row))
    )

    def worst_last(item: tuple[str, Mapping[str, Any]]) -> float:
        rate = item[1].get("length_controlled_winrate")
        return -rate if isinstance(rate, float | int) else math.inf

    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["", *columns])
    for model, row in sorted(rows.items(), key=worst_last):
        writer.writerow([model, *("" if row.get(c) is None else row[c] for c in columns)])
    write_text(path, stream.getvalue())


def _value(column: str, text: str) -> float | int | str | None:
    try:
        return (int(text) if column in _INTEGERS else float(text)) if text else None
    except ValueError:
        return text


def _annotation(where: str, row: Any) -> Annotation:
    if not isinstance(row, dict) or any(not isinstance(row.get(name), str) for name in _TEXTS):
        raise DataError.of(
            saw=f"{where} lacks text in one of {', '.join(_TEXTS)}",
            expected="all of them",
            cure="repair or drop the row",
        )
    raw, share = row.get("preference"), row.get("error_share", 1.0)
    try:
        value = math.nan if raw is None else float(raw)
    except (TypeError, ValueError):
        value = math.inf
    value = 1.5 if value == 0 else value  # a draw, in AlpacaEval's files
    if not math.isnan(value) and not 1 <= value <= 2:  # noqa: PLR2004 - baseline to model
        raise InputError.of(
            saw=f"{where}: preference {raw!r}",
            expected="1 (baseline) to 2 (model), 0 for a draw, or null",
            cure="repair or drop the row",
        )
    if not isinstance(share, int | float) or not 0 < share <= 1:
        raise InputError.of(
            saw=f"{where}: error_share {share!r}",
            expected="a number in (0, 1]",
            cure="leave it as prefstage wrote it, or drop the field",
        )
    return Annotation(
        **{name: row[name] for name in _TEXTS},
        annotator=str(row.get("annotator", "")),
        preference=value - 1,
        error_share=float(share),
    )
