"""Pairs for the explorer: columns, and each different text once."""

import base64
import gzip
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from prefstage.core.errors import DataError
from prefstage.judging.base import content_of, plain_prompt

NUMBERS = ("gap", "ratio", "loss", "disagreement")
NAMES = ("group", "source_chosen", "source_rejected")
TEXTS = ("prompt", "chosen", "rejected")
_BLOCK_CHARACTERS = 4_000_000
_DIGITS = 6
_DRAW = 1.5  # AlpacaEval's preference, between 1 and 2

Row = dict[str, Any]


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
    try:
        table = pq.read_table(path)
        prompts, chosen, rejected = (table[name].to_pylist() for name in TEXTS)
    except (OSError, pa.ArrowInvalid, KeyError) as error:
        raise DataError.of(
            saw=f"{path}: {error}",
            expected="a Parquet file of pairs with prompt, chosen and rejected",
            cure="build the pairs again; the same command does it",
        ) from error
    texts = {
        "prompt": [plain_prompt(tuple(each)) for each in prompts],
        "chosen": [answer_text(each) for each in chosen],
        "rejected": [answer_text(each) for each in rejected],
    }
    numbers = {"gap": _gaps(table), "disagreement": _disagreements(table)}
    names = {name: _column(table, name) for name in NAMES[1:]}
    return PairRows(part, texts, numbers, names)


def answer_text(messages: Sequence[Mapping[str, Any]]) -> str:
    """The text of a response: of one message its content, of several one paragraph each."""
    return "\n\n".join(content_of(dict(each)) for each in messages)


def _column(table: pa.Table, name: str) -> list[Any]:
    known = name in table.column_names
    return list(table[name].to_pylist()) if known else [None] * table.num_rows


def _gaps(table: pa.Table) -> list[float | None]:
    sides = (_column(table, "score_chosen"), _column(table, "score_rejected"))
    scored = [None if None in both else both[0] - both[1] for both in zip(*sides, strict=True)]
    given = _column(table, "gap")
    return [own if own is not None else gap for own, gap in zip(given, scored, strict=True)]


def _disagreements(table: pa.Table) -> list[float | None]:
    """Share of votes against the label; of a pair that a judge labelled anew, 1 if it turned."""
    votes, turned = _column(table, "agreement"), _column(table, "label_flipped")
    return [
        1.0 - share if share is not None else None if flip is None else float(flip)
        for share, flip in zip(votes, turned, strict=True)
    ]


def with_dynamics(rows: PairRows, dynamics: pa.Table) -> PairRows:
    """Add what training's dynamics say of the pairs that were followed.

    Args:
        rows: Pairs, in the order of the training data.
        dynamics: A row a followed pair of that set: `pair`, `reference_log_ratio`, `loss`,
            `group`.

    Returns:
        The pairs with log-ratio, loss and group where known.
    """
    numbers = {name: [None] * len(rows) for name in ("ratio", "loss")}
    found: dict[str, list[Any]] = {**numbers, "group": [None] * len(rows)}
    columns = {"ratio": "reference_log_ratio", "loss": "loss", "group": "group"}
    places = dynamics["pair"].to_pylist()
    for name, column in columns.items():
        for place, value in zip(places, dynamics[column].to_pylist(), strict=True):
            found[name][place] = value
    group = found.pop("group")
    return PairRows(
        rows.part, rows.texts, {**rows.numbers, **found}, {**rows.names, "group": group}
    )


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
    texts, names = _Numbered(), _Numbered()
    columns: dict[str, list[Any]] = {name: [] for name in ("run", "part", *TEXTS, *NUMBERS, *NAMES)}
    for run, rows in parts:
        count = len(rows)
        columns["run"] += [names.number(run)] * count
        columns["part"] += [names.number(rows.part)] * count
        for row in zip(*(rows.texts[name] for name in TEXTS), strict=True):
            for name, text in zip(TEXTS, row, strict=True):
                columns[name].append(texts.number(text))
        for name in NUMBERS:
            columns[name] += [_rounded(each) for each in rows.numbers.get(name, [None] * count)]
        for name in NAMES:
            columns[name] += [
                -1 if each is None else names.number(each)
                for each in rows.names.get(name, [None] * count)
            ]
    blocks = tuple(map(_encoded, texts.blocks(_BLOCK_CHARACTERS)))
    total = len(columns["run"])
    table = {"names": names.all, "columns": columns, "pairs": total, "texts": len(texts.all)}
    return Packed(_encoded(table), blocks, total, len(texts.all))


class _Numbered:
    """Different strings in the order in which they come."""

    def __init__(self) -> None:
        self._places: dict[str, int] = {}

    @property
    def all(self) -> list[str]:
        return list(self._places)

    def number(self, text: str) -> int:
        return self._places.setdefault(text, len(self._places))

    def blocks(self, characters: int) -> list[list[str]]:
        found, size = [list[str]()], 0
        for text in self._places:
            if size >= characters:
                found.append([])
                size = 0
            found[-1].append(text)
            size += len(text)
        return found


def _rounded(value: float | None) -> float | None:
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.{_DIGITS}g}")


def _encoded(value: Any) -> str:
    """ASCII JSON, so that lone surrogates survive; zipped without a time, so that it is fixed."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(gzip.compress(text.encode("ascii"), 6, mtime=0)).decode("ascii")


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
    wins = [row["preference"] >= _DRAW for row in decided]

    def side(name: str, chosen: bool) -> list[Any]:
        places = [2 if win == chosen else 1 for win in wins]
        return [row[f"{name}_{place}"] for row, place in zip(decided, places, strict=True)]

    texts = {
        "prompt": [row["instruction"] for row in decided],
        "chosen": side("output", True),
        "rejected": side("output", False),
    }
    gaps = [2.0 * abs(row["preference"] - _DRAW) for row in decided]
    names = {
        "source_chosen": side("generator", True),
        "source_rejected": side("generator", False),
    }
    return PairRows(part, texts, {"gap": gaps}, names)
