"""What AlpacaEval 2 knows of its 805 prompts: their difficulty, and two gamed baselines."""

import gzip
import io
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow
import pyarrow.csv
from numpy.typing import NDArray

from prefstage.core.errors import DataError
from prefstage.evaluating.l1_logistic import Floats

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
        origin: "package", or "hub cache" for the official files.
    """

    difficulty: Floats
    gamed_t: Floats
    gamed_index: NDArray[np.int64]
    gamed_preference: Floats
    baseline_lengths: Floats
    origin: Literal["package", "hub cache"]


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
    return LengthTables(difficulty, t, index, rows["preference"], lengths, "package")


def cached_file(name: str) -> Path | None:
    """A file of AlpacaEval's data set in the local Hub cache; None if it is not there."""
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache("tatsu-lab/alpaca_eval", name, repo_type="dataset")
    return Path(path) if isinstance(path, str) else None


def _official(path: Path, baseline_lengths: Floats) -> LengthTables:
    """The tables in the layout of the official ``df_gamed.csv``, which holds no lengths."""
    try:
        rows = _columns(path.read_bytes())
    except pyarrow.ArrowInvalid:
        rows = {}
    missing, count = sorted({*_NEEDED} - {*rows}), len(next(iter(rows.values()), ()))
    if missing or count != 2 * N_PROMPTS:
        raise DataError.of(
            saw=f"{path} with {count} rows, without columns {missing}",
            expected=f"{2 * N_PROMPTS} rows with {sorted(_NEEDED)}",
            cure="fetch the file again, or delete it to use the tables of the package",
        )
    index, difficulty = rows["index"].astype(np.int64), np.empty(N_PROMPTS)
    # Every prompt stands in two rows, of which alpaca-eval takes the first: of several values that
    # are assigned to one index numpy keeps the last, so they are assigned backwards.
    difficulty[index[::-1]] = rows["instruction_difficulty"][::-1]
    t = np.tanh(rows["std_delta_len"])
    return LengthTables(difficulty, t, index, rows["preference"], baseline_lengths, "hub cache")


def _columns(text: bytes) -> dict[str, Floats]:
    table = pyarrow.csv.read_csv(io.BytesIO(text))
    columns = zip(table.column_names, table.columns, strict=True)
    return {
        name: column.to_numpy().astype(np.float64)
        for name, column in columns
        if not pyarrow.types.is_string(column.type)
    }
