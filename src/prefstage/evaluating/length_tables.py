"""What AlpacaEval 2 knows of its 805 prompts: their difficulty, and two gamed baselines."""

import csv
import gzip
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from prefstage.core.errors import DataError

Floats = NDArray[np.float64]

N_PROMPTS = 805
HUB_DATASET = "tatsu-lab/alpaca_eval"
_HUB_FILE = "df_gamed.csv"


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
        baseline_lengths: Characters of the official baseline's answers; None where the
            tables do not tell. [prompts].
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
        t: Floats = np.sign(delta)
    else:
        t = np.tanh(delta / delta.std(ddof=1))
    return t


@cache
def length_tables() -> LengthTables:
    """The official tables where the local Hub cache has them, and the package's otherwise.

    Returns:
        The tables, read once a process.

    Raises:
        DataError: If the cached official file has another form than the known one.
    """
    shipped = _shipped()
    cached = _cached_file()
    return shipped if cached is None else _official(cached, shipped)


def _shipped() -> LengthTables:
    folder = files("prefstage.evaluating") / "tables"
    text = (folder / "instruction_difficulty.csv").read_text(encoding="utf-8")
    difficulty = np.array([row["difficulty"] for row in _rows(text)], dtype=np.float64)
    packed = (folder / "gamed_rows.csv.gz").read_bytes()
    rows = _rows(gzip.decompress(packed).decode())
    group, index = (_column(rows, name).astype(np.int64) for name in ("group", "index"))
    len_model, len_baseline = (_column(rows, name) for name in ("len_model", "len_baseline"))
    t = np.empty(len(rows))
    for one in (0, 1):
        t[group == one] = standardised_length(len_model[group == one], len_baseline[group == one])
    lengths = np.empty(len(difficulty))
    lengths[index] = len_baseline
    return LengthTables(difficulty, t, index, _column(rows, "preference"), lengths, "package")


def _cached_file() -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(HUB_DATASET, _HUB_FILE, repo_type="dataset")
    return Path(found) if isinstance(found, str) else None


def _official(path: Path, shipped: LengthTables) -> LengthTables:
    """The tables in the layout of the official ``df_gamed.csv``."""
    rows = _rows(path.read_text(encoding="utf-8"))
    needed = {"index", "preference", "std_delta_len", "instruction_difficulty"}
    missing = needed - set(rows[0] if rows else ())
    if missing or len(rows) != 2 * N_PROMPTS:
        raise DataError.of(
            saw=f"{path} with {len(rows)} rows, without columns {sorted(missing)}",
            expected=f"{2 * N_PROMPTS} rows with {sorted(needed)}",
            cure="fetch the file again, or delete it to use the tables of the package",
        )
    index = _column(rows, "index").astype(np.int64)
    difficulty = np.empty(N_PROMPTS)
    difficulty[index[::-1]] = _column(rows, "instruction_difficulty")[::-1]  # the first one wins
    return LengthTables(
        difficulty,
        np.tanh(_column(rows, "std_delta_len")),
        index,
        _column(rows, "preference"),
        shipped.baseline_lengths,
        "hub cache",
    )


def _rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def _column(rows: Iterable[Mapping[str, str]], name: str) -> Floats:
    return np.array([row[name] for row in rows], dtype=np.float64)
