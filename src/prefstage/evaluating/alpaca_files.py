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
from prefstage.evaluating.length_controlled import LengthControlledWinRate

HUB_PROMPTS = "alpaca_eval.json"
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
_HALF = 0.5
_DRAW, _LOWEST, _HIGHEST = 0.0, 1.0, 2.0
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
    found = [_annotation(path, place, row) for place, row in enumerate(rows)]
    seen: dict[str, int] = {}
    for place, one in enumerate(found):
        first = seen.setdefault(one.instruction, place)
        if first != place:
            raise DataError.of(
                saw=f"{path} rows {first} and {place} have the same instruction",
                expected="each instruction once",
                cure="keep one of them",
            )
    return found


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
                "instruction": row.instruction,
                "output_1": row.output_1,
                "generator_1": row.generator_1,
                "output_2": row.output_2,
                "generator_2": row.generator_2,
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
    if path is None:
        from huggingface_hub import try_to_load_from_cache

        from prefstage.evaluating.length_tables import HUB_DATASET

        cached = try_to_load_from_cache(HUB_DATASET, HUB_PROMPTS, repo_type="dataset")
        if not isinstance(cached, str):
            return None
        path = Path(cached)
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        numbers = {row["instruction"]: place for place, row in enumerate(rows)}
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
    told = [each for each in preferences if not math.isnan(each)]
    return {
        "win_rate": controlled.win_rate,
        "standard_error": controlled.standard_error,
        "n_wins": sum(each > _HALF for each in told),
        "n_wins_base": sum(each < _HALF for each in told),
        "n_draws": sum(each == _HALF for each in told),
        "n_total": len(told),
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
        reader = csv.reader(stream)
        header = next(reader, [])
        lines = [line for line in reader if line]
    names = [line[0] for line in lines]
    if len(header) < 2 or len(set(names)) != len(names):  # noqa: PLR2004 - a name and a value
        raise DataError.of(
            saw=f"{path}, {len(header)} columns, {len(names)} rows of {len(set(names))} models",
            expected="a model's name and its values in each row, each model once",
            cure="check the file",
        )
    return {
        line[0]: {
            name: _value(name, text) for name, text in zip(header[1:], line[1:], strict=False)
        }
        for line in lines
    }


def write_leaderboard(path: Path, rows: Mapping[str, Mapping[str, Any]]) -> None:
    """Write a leaderboard CSV, the best length-controlled win rate first.

    Args:
        path: The file.
        rows: model → column → value, as from `leaderboard_row`.
    """
    extra = [name for row in rows.values() for name in row if name not in LEADERBOARD_COLUMNS]
    columns = [*LEADERBOARD_COLUMNS, *dict.fromkeys(extra)]
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["", *columns])
    for model, row in sorted(rows.items(), key=_by_controlled_rate):
        writer.writerow([model, *("" if row.get(c) is None else row[c] for c in columns)])
    write_text(path, stream.getvalue())


def _by_controlled_rate(item: tuple[str, Mapping[str, Any]]) -> float:
    rate = item[1].get("length_controlled_winrate")
    return -rate if isinstance(rate, float | int) else math.inf


def _value(name: str, text: str) -> Any:
    if not text:
        return None
    try:
        return int(text) if name in _INTEGERS else float(text)
    except ValueError:
        return text


def _annotation(path: Path, place: int, row: Any) -> Annotation:
    fields = ("instruction", "output_1", "output_2", "generator_1", "generator_2")
    where = f"{path} row {place}"
    if not isinstance(row, dict) or any(not isinstance(row.get(name), str) for name in fields):
        raise DataError.of(
            saw=f"{where} lacks text in one of {', '.join(fields)}",
            expected="all of them",
            cure="repair or drop the row",
        )
    raw = row.get("preference")
    try:
        value = math.nan if raw is None else float(raw)
    except (TypeError, ValueError):
        value = math.inf
    if value == _DRAW:
        value = _LOWEST + _HALF
    if not math.isnan(value) and not _LOWEST <= value <= _HIGHEST:
        raise InputError.of(
            saw=f"{where}: preference {raw!r}",
            expected="1 (baseline) to 2 (model), 0 for a draw, or null",
            cure="repair or drop the row",
        )
    share = row.get("error_share", 1.0)
    if not isinstance(share, int | float) or not 0 < share <= 1:
        raise InputError.of(
            saw=f"{where}: error_share {share!r}",
            expected="a number in (0, 1]",
            cure="leave it as prefstage wrote it, or drop the field",
        )
    return Annotation(
        instruction=row["instruction"],
        output_1=row["output_1"],
        output_2=row["output_2"],
        generator_1=row["generator_1"],
        generator_2=row["generator_2"],
        annotator=str(row.get("annotator", "")),
        preference=value - 1,
        error_share=float(share),
    )
