"""AlpacaEval's leaderboards: models with their columns, the best first."""

import math
import re
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.csv

from prefstage.core import DataError, csv_text, write_text

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


def read_leaderboard(path: Path) -> dict[str, dict[str, Any]]:
    """Read a leaderboard CSV.

    Args:
        path: The file; its first column names the model.

    Returns:
        model → column → number (or text; None where empty).

    Raises:
        DataError: If a model stands twice, or the file is no table of two columns or more.
    """
    expected = "a model's name and its values in each row, each model once"
    with DataError.instead_of(
        pyarrow.ArrowInvalid, saw=f"{path}: {{error}}", expected=expected, cure="check the file"
    ):
        table = pyarrow.csv.read_csv(
            path,
            convert_options=pyarrow.csv.ConvertOptions(null_values=[""], strings_can_be_null=True),
        )
    # as written: a name that begins like a formula stands behind an apostrophe
    names = [re.sub(r"^'(?=[=+\-@])", "", str(name)) for name in table.column(0).to_pylist()]
    DataError.unless(
        table.num_columns >= 2 and len(set(names)) == len(names),  # noqa: PLR2004 - a name and a value
        saw=f"{path}, {table.num_columns} columns, {len(names)} rows of {len(set(names))} models",
        expected=expected,
        cure="check the file",
    )
    return dict(zip(names, table.remove_column(0).to_pylist(), strict=True))


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
    # What a row lacks is an empty cell, and so is None.
    ordered = sorted(rows.items(), key=worst_last)
    table = [[model, *(row.get(name) for name in columns)] for model, row in ordered]
    write_text(path, csv_text([["", *columns], *table]))
