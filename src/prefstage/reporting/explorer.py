"""Pairs for the explorer: columns, and each different text once."""

import base64
import gzip
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from prefstage.core import DataError
from prefstage.judging.base import content_of, plain_prompt

NUMBERS = ("gap", "ratio", "loss", "disagreement")
NAMES = ("group", "source_chosen", "source_rejected")
TEXTS = ("prompt", "chosen", "rejected")
_BLOCK_CHARACTERS = 4_000_000
_DRAW = 1.5  # AlpacaEval's preference, between 1 and 2


@dataclass(frozen=True)
class PairRows:
    """Pairs of one origin, as columns of equal length.

    Attributes:
        part: What they are, e.g. "iteration 1: trained on".
        texts: "prompt", "chosen" and "rejected".
        numbers: By name of `NUMBERS`: score gap; reference log-ratio c, nats; DPO loss at the
            last recorded step, nats; share of votes against the label, in [0, 1]. None where
            unknown.
        names: By name of `NAMES`: flip group, and who wrote each response.
    """

    part: str
    texts: Mapping[str, Sequence[str]]
    numbers: Mapping[str, Sequence[float | None]] = field(default_factory=dict)
    names: Mapping[str, Sequence[str | None]] = field(default_factory=dict)

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.texts["prompt"])


def read_pairs(path: Path, part: str) -> PairRows:
    """Read a Parquet file of pairs.

    Args:
        path: The file, with the canonical columns and, if they are there, those of a build.
        part: What the pairs are.

    Returns:
        Its pairs, in order.

    Raises:
        DataError: If it is no such file.
    """
    # The file is what a build wrote and verified: Arrow's columns alone are read, since checking
    # 100,000 rows again as records would take longer than making the rest of the page.
    try:
        return rows_of(pq.read_table(path), part)
    except (OSError, pa.ArrowInvalid, KeyError) as error:
        raise DataError.of(
            saw=f"{path}: {error}",
            expected="a Parquet file of pairs with prompt, chosen and rejected",
            cure="build the pairs again; the same command does it",
        ) from error


def rows_of(table: pa.Table, part: str) -> PairRows:
    """The explorer's columns of a table of pairs.

    Args:
        table: With the canonical columns; "gap" and "label_flipped", as a build adds them, are
            read where they are there.
        part: What the pairs are.

    Returns:
        Its pairs, in order.
    """

    def column(name: str) -> pa.ChunkedArray:
        return table[name] if name in table.column_names else pa.nulls(table.num_rows)

    gap, chosen, rejected, agreement, flipped = (
        pc.cast(column(name), pa.float64())
        for name in ("gap", "score_chosen", "score_rejected", "agreement", "label_flipped")
    )
    prompts, *responses = (table[name].to_pylist() for name in TEXTS)
    texts = [[plain_prompt(tuple(prompt)) for prompt in prompts]]
    texts += [["\n\n".join(content_of(dict(m)) for m in r) for r in side] for side in responses]
    return PairRows(
        part,
        dict(zip(TEXTS, texts, strict=True)),
        {
            "gap": pc.coalesce(gap, pc.subtract(chosen, rejected)).to_pylist(),
            # of a pair that a judge labelled anew there are no votes: all of them, if it turned
            # the label
            "disagreement": pc.coalesce(pc.subtract(1.0, agreement), flipped).to_pylist(),
        },
        {name: column(name).to_pylist() for name in NAMES[1:]},
    )


def with_dynamics(rows: PairRows, dynamics: pa.Table, positions: Sequence[int]) -> PairRows:
    """Add what training's dynamics say of the pairs that were followed.

    Args:
        rows: Pairs.
        dynamics: A row a followed pair: `reference_log_ratio`, `loss`, `group`.
        positions: Where each of them stands among `rows`.

    Returns:
        The pairs with log-ratio, loss and group where known.
    """
    full = dict[str, list[Any]]()
    for name, column in (("ratio", "reference_log_ratio"), ("loss", "loss"), ("group", "group")):
        known = dict(zip(positions, dynamics[column].to_pylist(), strict=True))
        full[name] = [known.get(position) for position in range(len(rows))]
    names = {**rows.names, "group": full.pop("group")}
    return replace(rows, numbers={**rows.numbers, **full}, names=names)


def pairs_of_annotations(rows: Sequence[Mapping[str, Any]], part: str) -> PairRows:
    """Judged answers as pairs: the preferred one is the chosen one.

    Args:
        rows: As in AlpacaEval's annotations.json: preference in [1, 2], above 1.5 for the
            second output.
        part: What they are.

    Returns:
        The pairs that were decided; their gap is |2p - 1|, p the judge's preference.
    """
    decided = [row for row in rows if row.get("preference") is not None]
    chosen = [2 if row["preference"] >= _DRAW else 1 for row in decided]
    texts = {"prompt": [row["instruction"] for row in decided]}
    writers = dict[str, list[str]]()
    for side, numbers in (("chosen", chosen), ("rejected", [3 - number for number in chosen])):
        of = list(zip(decided, numbers, strict=True))
        texts[side] = [row[f"output_{number}"] for row, number in of]
        writers[f"source_{side}"] = [row[f"generator_{number}"] for row, number in of]
    gaps = [2.0 * abs(row["preference"] - _DRAW) for row in decided]
    return PairRows(part, texts, {"gap": gaps}, writers)


@dataclass(frozen=True)
class Packed:
    """The explorer's data as the page carries them.

    Attributes:
        table: Columns and the names that they count through, base64 of gzip of JSON.
        blocks: The texts in order, a part each, encoded likewise.
        pairs: Number of pairs.
        texts: Number of different texts.
    """

    table: str
    blocks: tuple[str, ...]
    pairs: int
    texts: int


def pack(parts: Sequence[tuple[str, PairRows]]) -> Packed:
    """Encode pairs compactly; no text is shortened, and equal texts are kept once.

    Args:
        parts: Name of the run, and its pairs.

    Returns:
        What the page carries.
    """
    # Texts and names are numbered by their first appearance, and columns hold numbers: prompts
    # repeat over iterations, answers over pairs, and a page of 100,000 pairs must still open.
    texts, names = dict[str, int](), dict[str, int]()
    columns: dict[str, list[Any]] = {name: [] for name in ("run", "part", *TEXTS, *NUMBERS, *NAMES)}
    for run, rows in parts:
        count = len(rows)
        columns["run"] += [names.setdefault(run, len(names))] * count
        columns["part"] += [names.setdefault(rows.part, len(names))] * count
        for row in zip(*(rows.texts[name] for name in TEXTS), strict=True):
            for name, text in zip(TEXTS, row, strict=True):
                columns[name].append(texts.setdefault(text, len(texts)))
        for name in NUMBERS:
            columns[name] += map(_rounded, rows.numbers.get(name, [None] * count))
        for name in NAMES:
            values = rows.names.get(name, [None] * count)
            columns[name] += [-1 if v is None else names.setdefault(v, len(names)) for v in values]
    total = len(columns["run"])
    table = {"names": list(names), "columns": columns, "pairs": total, "texts": len(texts)}
    # The browser unpacks a block at a time, and shows the first pairs meanwhile.
    begins = accumulate(map(len, texts), initial=0)
    by_block = groupby(zip(texts, begins, strict=False), lambda row: row[1] // _BLOCK_CHARACTERS)
    blocks = tuple(_encoded([text for text, _ in block]) for _, block in by_block)
    return Packed(_encoded(table), blocks, total, len(texts))


def _rounded(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(f"{value:.6g}")


def _encoded(value: Any) -> str:
    # ASCII, so that lone surrogates, which UTF-8 has not, survive; zipped without a time, so that
    # the same runs make the same page.
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(gzip.compress(text.encode("ascii"), 6, mtime=0)).decode("ascii")
