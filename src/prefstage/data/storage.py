"""Canonical rows on disk: a memory-mapped file while they are used, a saved one to keep."""

import gzip
import hashlib
import json
import math
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import pyarrow as pa
from datasets import Dataset, Features
from datasets.arrow_writer import ArrowWriter

from prefstage.core.errors import InputError
from prefstage.core.files import atomic_path
from prefstage.data.arrow_rows import ArrowReader
from prefstage.data.columns import MessageShapes, Row, without_nulls
from prefstage.data.scratch import scratch_folder
from prefstage.data.sources import quiet

_BATCH_ROWS = 256
_MOST_PIECES = 128


def build_dataset(
    rows: Iterable[Row], features_of: Callable[[Mapping[str, bool]], Features]
) -> tuple[Dataset, str]:
    """Write rows to a memory-mapped Arrow file as they come, and hash them.

    The rows wait in a JSON-lines file until all message fields are known, since Arrow
    needs its columns beforehand; memory stays flat. The files stand in the system's
    temporary folder (TMPDIR) and go when the process ends.

    Args:
        rows: Canonical rows.
        features_of: Arrow types, given the messages' fields and whether each is text.

    Returns:
        The dataset, and the hash of its content.
    """
    name = uuid.uuid4().hex
    waiting, arrow = scratch_folder() / f"{name}.jsonl", scratch_folder() / f"{name}.arrow"
    hasher, shapes, count = hashlib.sha256(), MessageShapes(), 0
    try:
        with waiting.open("wb") as stream:
            for row in rows:
                shapes.add(row)
                line = json.dumps(row).encode() + b"\n"  # in the source's order: it is trained on
                hasher.update(line)
                stream.write(line)
                count += 1
        shapes.close()
        features, size = features_of(shapes.fields), piece_rows(count)
        with (
            _PieceWriter(arrow, features, size) as writer,
            waiting.open("rb") as stream,
        ):
            for line in stream:
                writer.write(shapes.encode(json.loads(line)))
            writer.finalize()
    finally:
        waiting.unlink()
    return Dataset.from_file(str(arrow)), hasher.hexdigest()[:16]


class CanonicalRows:
    """Rows of a canonical dataset, exactly: `datasets` rounds numbers when it decodes JSON.

    Args:
        dataset: With the canonical columns.
    """

    def __init__(self, dataset: Dataset) -> None:
        self._tables = dataset.with_format("arrow")
        self._reader = ArrowReader(self._tables.data.schema, dataset.features)

    def __getitem__(self, index: int) -> Row:
        """The row at a position."""
        return self._reader.row(self._tables[index])

    def __iter__(self) -> Iterator[Row]:
        """The rows in order."""
        for table in self._tables.iter(_BATCH_ROWS):
            yield from self._reader.rows(table)


class _PieceWriter(ArrowWriter):  # type: ignore[misc]  # untyped in datasets
    """Writes larger pieces than it holds as Python objects, which are several times Arrow's size.

    Args:
        path: The file.
        features: Of the rows.
        rows: A piece.
    """

    def __init__(self, path: Path, features: Features, rows: int) -> None:
        super().__init__(path=str(path), features=features, writer_batch_size=_BATCH_ROWS)
        self._piece, self._gathered = rows, list[pa.Table]()

    def write_table(self, pa_table: pa.Table, writer_batch_size: int | None = None) -> None:
        """Gather a table; write what is gathered once it is a piece."""
        self._gathered.append(pa_table)
        if sum(map(len, self._gathered)) >= self._piece:
            self._write_piece()

    def finalize(self, close_stream: bool = True) -> tuple[int, int]:
        """Write the rest and close."""
        self.write_examples_on_file()
        self._write_piece()
        done: tuple[int, int] = super().finalize(close_stream=close_stream)
        return done

    def _write_piece(self) -> None:
        if self._gathered:
            rows = sum(map(len, self._gathered))
            super().write_table(pa.concat_tables(self._gathered), writer_batch_size=rows)
            self._gathered = []


def piece_rows(rows: int) -> int:
    """How many rows to write at once, so that neither a piece nor all pieces need much memory.

    Readers and writers hold a piece whole, and remember something of every piece and column.

    Args:
        rows: Of the dataset.

    Returns:
        Rows a piece: at most 128 pieces, of at least 256 rows each.
    """
    return max(_BATCH_ROWS, math.ceil(rows / _MOST_PIECES))


def save_dataset(dataset: Dataset, path: str | Path) -> None:
    """Write a canonical dataset; `load_pairs` and `load_candidates` read it back exactly.

    Args:
        dataset: The dataset of a `PairSet` or `CandidateSet`.
        path: A .parquet or .jsonl file, each perhaps .gz, or a folder (no suffix), which
            is written by `save_to_disk`. Files are whole or absent; one that exists is
            replaced. A folder must not exist.

    Raises:
        InputError: If the suffix is another, or the folder exists.
    """
    target = Path(path)
    rows = piece_rows(len(dataset))
    bare = target.name.removesuffix(".gz")
    if bare.endswith(".parquet"):
        with quiet(), atomic_path(target) as temporary:
            if target.suffix == ".gz":
                with gzip.open(temporary, "wb") as stream:
                    dataset.to_parquet(stream, batch_size=rows)
            else:
                dataset.to_parquet(str(temporary), batch_size=rows)
    elif bare.endswith(".jsonl"):
        _save_lines(dataset, target)
    elif "." not in target.name:
        _save_folder(dataset, target)
    else:
        raise InputError.of(
            saw=f"{target}, whose ending says nothing that can be written",
            expected=".parquet or .jsonl, each perhaps with .gz, or a folder without an ending",
            cure="rename it",
        )


def _save_lines(dataset: Dataset, target: Path) -> None:
    with atomic_path(target) as temporary:
        opener = gzip.open if target.suffix == ".gz" else open
        with opener(temporary, "wt", encoding="utf-8") as stream:
            for row in CanonicalRows(dataset):
                stream.write(json.dumps(without_nulls(row), ensure_ascii=False) + "\n")


def _save_folder(dataset: Dataset, target: Path) -> None:
    if target.exists():
        raise InputError.of(
            saw=f"{target}, which exists",
            expected="a new folder",
            cure="name another, or remove it first",
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-"))
    try:
        with quiet():
            dataset.save_to_disk(str(temporary / "data"))
        (temporary / "data").replace(target)
    finally:
        shutil.rmtree(temporary)
