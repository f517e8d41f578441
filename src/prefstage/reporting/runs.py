"""A run that a report shows, its parts, and its pairs: columns, and each different text once."""

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

from prefstage.core import DataError, read_json
from prefstage.judging.base import content_of, plain_prompt
from prefstage.reporting.blocks import Row
from prefstage.training.dynamics.criterion import Criterion

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


@dataclass(frozen=True)
class Dynamics:
    """What a training did to the rankings of fixed pairs.

    Attributes:
        criterion: The loss that the pairs were followed by, with its threshold.
        best: The step of the lowest loss on held-out pairs; None without such pairs.
        sets: Names of the sets of pairs.
        metrics: The aggregates of each recorded step, up to the model that was exported.
        last: A row a pair, at the last of these steps.
    """

    criterion: Criterion
    best: int | None
    sets: Sequence[str]
    metrics: Sequence[Mapping[str, float]]
    last: pa.Table

    def of(self, name: str) -> pa.Table:
        """The rows of one set at the last step."""
        return self.last.filter(pc.equal(self.last["set"], name))


@dataclass(frozen=True, kw_only=True)
class Part:
    """What one command, or one step of the loop, left in its folder.

    Attributes:
        kind: Which command writes such a folder: "measure", "train" and so on.
        iteration: From 1; 0 before the loop.
        folder: Where it lies.
        result: The JSON file of that kind, such as stage.json; empty where a page shows nothing
            of the kind but its costs.
        looks: Of a measurement, how the interval narrowed: "prompts", "score", "low" and
            "high"; empty where the prompts' scores are not on file.
        history: Of a training, what the trainer logged.
        dynamics: Of a training's pairs, if they were recorded.
        pairs: Of a build, by its parts ("" for the one part of a step of the loop); of an
            evaluation, the answers that were compared. What is not on file is not there.
        distinct: Of an evaluation, share of different 1-grams and 2-grams in all answers, by
            model.
        seconds: What a step took when it was done; None where that is not on file, or counted
            with an earlier iteration.
        costs: Judgments, answers and tokens that it bought then.
    """

    kind: str
    iteration: int
    folder: Path
    result: Row = field(default_factory=dict)
    looks: Sequence[Row] = ()
    history: Sequence[Row] = ()
    dynamics: Dynamics | None = None
    pairs: Sequence[tuple[str, PairRows]] = ()
    distinct: Mapping[str, Sequence[float]] = field(default_factory=dict)
    seconds: float | None = None
    costs: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """All that a report shows of one run.

    Attributes:
        name: What it is called on the page; different from the other runs'.
        command: Which command made it.
        folder: Where it lies.
        facts: Short statements, by what they are about.
        parts: Its parts, in the order of their making.
        config: The resolved configuration, YAML; "" if there is none on file.
        manifest: Versions and so on.
    """

    name: str
    command: str
    folder: Path
    facts: Mapping[str, str]
    parts: Sequence[Part]
    config: str
    manifest: Row

    def of(self, kind: str) -> list[Part]:
        """The parts of one kind that have a result, in order."""
        return [part for part in self.parts if part.kind == kind and part.result]

    @property
    def iterations(self) -> list[Row]:
        """The rows of align.json; nothing of other commands."""
        return [row for part in self.of("align") for row in part.result["iterations"]]


def label(run: Run, part: Part, runs: Sequence[Run]) -> str:
    """What a part is called: its iteration, with the run where there are several.

    Args:
        run: The run.
        part: Its part.
        runs: All runs of the page.

    Returns:
        Such as "iteration 2", "run: iteration 2", or the run's name alone.
    """
    if run.command != "align":
        return run.name
    what = f"iteration {part.iteration}" if part.iteration else "before the loop"
    return f"{run.name}: {what}" if len(runs) > 1 else what


def labelled(runs: Sequence[Run], kind: str) -> list[tuple[str, Part]]:
    """All parts of a kind that have a result, with their labels."""
    return [(label(run, part, runs), part) for run in runs for part in run.of(kind)]


def read_if_there(path: Path, kind: Any = dict) -> Any:
    """Read a JSON file; an empty value of its kind if it is not there."""
    return read_json(path, kind) if path.is_file() else kind()


# --- Pairs -------------------------------------------------------------------------------------


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
    places = dict(zip(positions, range(len(dynamics)), strict=True))
    # None, where a pair was not followed, takes a row of nulls.
    known = dynamics.take(pa.array(map(places.get, range(len(rows))), pa.int64()))
    ratio, loss, group = (
        known[name].to_pylist() for name in ("reference_log_ratio", "loss", "group")
    )
    return replace(
        rows,
        numbers={**rows.numbers, "ratio": ratio, "loss": loss},
        names={**rows.names, "group": group},
    )


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
    first = [(row, 2 if row["preference"] >= _DRAW else 1) for row in decided]
    second = [(row, 3 - number) for row, number in first]
    return PairRows(
        part,
        {
            "prompt": [row["instruction"] for row in decided],
            "chosen": [row[f"output_{number}"] for row, number in first],
            "rejected": [row[f"output_{number}"] for row, number in second],
        },
        {"gap": [2.0 * abs(row["preference"] - _DRAW) for row in decided]},
        {
            "source_chosen": [row[f"generator_{number}"] for row, number in first],
            "source_rejected": [row[f"generator_{number}"] for row, number in second],
        },
    )


def pack(parts: Sequence[tuple[str, PairRows]]) -> dict[str, Any]:
    """Encode pairs compactly; no text is shortened, and equal texts are kept once.

    Args:
        parts: Name of the run, and its pairs.

    Returns:
        What the page carries of the explorer: "table", columns and the names that they count
        through, base64 of gzip of JSON; "blocks", the texts in order, a part each, encoded
        likewise; and how many "pairs" and different "texts" there are.
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
            columns[name] += [
                None if value is None or not math.isfinite(value) else float(f"{value:.6g}")
                for value in rows.numbers.get(name, [None] * count)
            ]
        for name in NAMES:
            columns[name] += [
                -1 if value is None else names.setdefault(value, len(names))
                for value in rows.names.get(name, [None] * count)
            ]
    counts = {"pairs": len(columns["run"]), "texts": len(texts)}
    # The browser unpacks a block at a time, and shows the first pairs meanwhile.
    by_block = groupby(
        zip(texts, accumulate(map(len, texts), initial=0), strict=False),
        lambda row: row[1] // _BLOCK_CHARACTERS,
    )
    return counts | {
        "table": _encoded({"names": list(names), "columns": columns, **counts}),
        "blocks": [_encoded([text for text, _ in block]) for _, block in by_block],
    }


def _encoded(value: Any) -> str:
    # ASCII, so that lone surrogates, which UTF-8 has not, survive; zipped without a time, so that
    # the same runs make the same page.
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(gzip.compress(text.encode("ascii"), 6, mtime=0)).decode("ascii")
