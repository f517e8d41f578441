"""AlpacaEval's files: its length tables, ``annotations.json`` and leaderboard CSV."""

import csv
import gzip
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.csv
from numpy.typing import NDArray

from prefstage.core import DataError, InputError, write_json, write_text
from prefstage.evaluating.l1_logistic import Floats

N_PROMPTS = 805
_NEEDED = ("index", "preference", "std_delta_len", "instruction_difficulty")
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
    with DataError.instead_of(
        OSError,
        ValueError,
        saw=f"{path}: {{error}}",
        expected="a JSON list of annotations",
        cure="check the file",
    ):
        rows = json.loads(path.read_text(encoding="utf-8"))
    DataError.unless(
        isinstance(rows, list) and rows,
        saw=f"{path} holds no list of rows",
        expected="annotations",
        cure="check the file",
    )
    annotations = [_annotation(f"{path} row {number}", row) for number, row in enumerate(rows)]
    numbers: dict[str, int] = {}
    for number, row in enumerate(annotations):
        first = numbers.setdefault(row.instruction, number)
        DataError.unless(
            first == number,
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
    DataError.unless(
        len(numbers) == len(rows),
        saw=f"{path} repeats {len(rows) - len(numbers)} instructions",
        expected="each once",
        cure="give the official alpaca_eval.json",
    )
    return numbers


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
    DataError.unless(
        len(header) >= 2 and len(set(names)) == len(names),  # noqa: PLR2004 - a name and a value
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

    def worst_last(item: tuple[str, Mapping[str, Any]]) -> float:
        rate = item[1].get("length_controlled_winrate")
        return -rate if isinstance(rate, float | int) else math.inf

    columns = dict.fromkeys((*LEADERBOARD_COLUMNS, *chain.from_iterable(rows.values())))
    stream = io.StringIO()
    # What a row lacks is an empty cell, and so is None.
    table = csv.DictWriter(stream, ["", *columns], lineterminator="\n")
    table.writeheader()
    table.writerows({"": model, **row} for model, row in sorted(rows.items(), key=worst_last))
    write_text(path, stream.getvalue())


def _value(column: str, text: str) -> float | int | str | None:
    try:
        return (int(text) if column in _INTEGERS else float(text)) if text else None
    except ValueError:
        return text


def _annotation(where: str, row: Any) -> Annotation:
    DataError.unless(
        isinstance(row, dict) and all(isinstance(row.get(name), str) for name in _TEXTS),
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
    InputError.unless(
        math.isnan(value) or 1 <= value <= 2,  # noqa: PLR2004 - baseline to model
        saw=f"{where}: preference {raw!r}",
        expected="1 (baseline) to 2 (model), 0 for a draw, or null",
        cure="repair or drop the row",
    )
    InputError.unless(
        isinstance(share, int | float) and 0 < share <= 1,
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
