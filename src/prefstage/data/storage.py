"""Canonical rows and numbers on disk: memory-mapped while they are used, saved to keep."""

import atexit
import gzip
import hashlib
import json
import math
import os
import sys
import tempfile
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import cache
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

import datasets
import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, Json, List, Value
from datasets.arrow_writer import ArrowWriter

from prefstage.core import PARTIAL, InputError, atomic_path, scratch_folder
from prefstage.data.messages import KEY_ORDER, in_order
from prefstage.data.raw_rows import BATCH_ROWS, arrow_reader
from prefstage.data.records import (
    Candidates,
    Conversation,
    Generation,
    Message,
    Pair,
    Record,
    Unpaired,
    Vote,
    without_nulls,
)

Row = dict[str, Any]
Numbers = np.ndarray[Any, Any]
MESSAGE_COLUMNS = ("prompt", "chosen", "rejected", "completion", "gold")
# Of few sets: a column of those that have it, so that all others stay as they are.
_RARE = ("gold",)
_MOST_PIECES = 128
_PIECE = 1 << 14

R = TypeVar("R", bound=Record)
_TEXT, _NUMBER, _MESSAGES = Value("string"), Value("float64"), "messages"
# Canonical columns of every kind of record, in the order in which they are stored.
COLUMNS: Mapping[type[Any], Mapping[str, Any]] = {
    Pair: {
        **{"prompt_id": _TEXT, "prompt": _MESSAGES, "chosen": _MESSAGES, "rejected": _MESSAGES},
        **{"score_chosen": _NUMBER, "score_rejected": _NUMBER},
        **{"source_chosen": _TEXT, "source_rejected": _TEXT},
        **{"agreement": _NUMBER, "annotator": _TEXT, "judge_probability": _NUMBER},
        "votes": List({"annotator": _TEXT, "preference": _NUMBER}),
        "gold": _MESSAGES,
    },
    Candidates: {
        **{"prompt_id": _TEXT, "prompt": _MESSAGES},
        **{"responses": List(_TEXT), "sources": List(_TEXT), "scores": List(_NUMBER)},
        "generations": List(
            {"thought": _TEXT, "token_ids": List(Value("int32")), "tokenizer": _TEXT}
        ),
    },
    Unpaired: {
        **{"prompt_id": _TEXT, "prompt": _MESSAGES, "completion": _MESSAGES},
        **{"label": Value("bool"), "score": _NUMBER, "source": _TEXT},
    },
    Conversation: {"prompt_id": _TEXT, "prompt": _MESSAGES, "completion": _MESSAGES},
}


# One a process, removed when that ends: datasets are memory-mapped from it, and views of them that
# a user makes may outlive the set they came from.
@cache
def _scratch() -> Path:
    stack, owner = ExitStack(), os.getpid()

    def remove() -> None:
        if os.getpid() == owner:  # a forked child must leave it to its parent
            stack.close()

    atexit.register(remove)
    return stack.enter_context(scratch_folder())


def scratch_file(suffix: str) -> Path:
    """A new name in this process's scratch folder."""
    return _scratch() / f"{uuid.uuid4().hex}.{suffix}"


@contextmanager
def quiet() -> Iterator[None]:
    """Keep progress bars of `datasets` out of pipes and log files."""
    shown = not datasets.are_progress_bars_disabled()
    if shown and not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


def build_dataset(
    rows: Iterable[Row], types_of: Callable[[Mapping[str, bool]], Features]
) -> tuple[Dataset, str]:
    """Write rows to a memory-mapped Arrow file as they come, and hash them.

    The files stand in the system's temporary folder (TMPDIR) and go when the process ends.

    Args:
        rows: Canonical rows.
        types_of: Arrow types, from the messages' fields and whether each is text.

    Returns:
        The dataset, and the hash of its content.
    """
    # Arrow needs its columns beforehand, and the last row may have a field that no other has:
    # the rows wait in a file of JSON lines until all fields are known, so that memory is flat.
    arrow = scratch_file("arrow")
    fields, orders, count = dict[str, bool](), set[tuple[str, ...]](), 0
    rare = set[str]()
    with tempfile.TemporaryFile(prefix="prefstage-") as waiting:
        for row in rows:
            count += 1
            rare |= row.keys() & set(_RARE)
            for message in chain.from_iterable(row.get(name, ()) for name in MESSAGE_COLUMNS):
                orders.add(tuple(message))
                for name, value in message.items():
                    fields[name] = fields.get(name, True) and isinstance(value, str)
            waiting.write(_line(row))
        # A struct has one order for all rows: whoever differs says so in a field of its row.
        others = {order for order in orders if order != tuple(n for n in fields if n in order)}
        if others:
            fields[KEY_ORDER] = True
        waiting.seek(0)
        fingerprint = hashlib.file_digest(waiting, "sha256").hexdigest()[:16]
        waiting.seek(0)
        stored = (_stored(json.loads(line), fields, others) for line in waiting)
        # JSON is text at first, which the writer casts: Arrow makes none from Python objects.
        text, types = (
            Features({n: kind for n, kind in kinds.items() if n not in _RARE or n in rare})
            for kinds in map(types_of, (dict.fromkeys(fields, True), fields))
        )
        schema = text.arrow_schema
        tables = (
            pa.Table.from_pylist(batch, schema)
            for batch in iter(lambda: list(islice(stored, BATCH_ROWS)), [])
        )
        with ArrowWriter(path=str(arrow), features=types) as writer:
            # Rows as Python objects take several times their size in Arrow. So few are held as
            # objects, and their tables are gathered into larger pieces, since every reader maps
            # piece by piece.
            while piece := list(islice(tables, math.ceil(piece_rows(count) / BATCH_ROWS))):
                whole = pa.concat_tables(piece)
                writer.write_table(whole, len(whole))
            writer.finalize()
    return Dataset.from_file(str(arrow)), fingerprint


def hash_rows(rows: Iterable[Row]) -> str:
    """Hash rows as `build_dataset` does: equal content in equal order gives equal hashes."""
    hasher = hashlib.sha256()
    for row in rows:
        hasher.update(_line(row))
    return hasher.hexdigest()[:16]


def _line(row: Row) -> bytes:
    # Keys in the source's order, not sorted: templates write tools and calls in that order, so
    # another order is another text to train on.
    return json.dumps(row).encode() + b"\n"


def _stored(row: Row, fields: Mapping[str, bool], others: Collection[tuple[str, ...]]) -> Row:
    # The row as Arrow stores it: fields that are no text as JSON text, orders noted.
    def stored(message: Message) -> Message:
        texts = {name: v if fields[name] else json.dumps(v) for name, v in message.items()}
        if tuple(message) in others:
            texts[KEY_ORDER] = json.dumps(list(message))
        return texts

    if all(fields.values()) and not others:
        return row
    return row | {
        column: list(map(stored, row[column])) for column in MESSAGE_COLUMNS if column in row
    }


def stored_messages(value: Iterable[Message] | None) -> tuple[Message, ...]:
    """Messages as they were before Arrow stored them: padding goes, their order comes back."""
    return tuple(in_order(without_nulls(message)) for message in value or ())


def to_row(record: Record) -> Row:
    """A record as a mapping of its canonical columns.

    Numbers become floats and empty fields of messages go, as storing makes them: what is
    built in memory hashes as what is read back.
    """
    cells = ((name, getattr(record, name)) for name in COLUMNS[type(record)])
    return {
        name: _WRITE[name](cell) if name in _WRITE else cell
        for name, cell in cells
        if cell or name not in _RARE
    }


def _number(value: float | None) -> float | None:
    return None if value is None else float(value)


_WRITE: Mapping[str, Callable[[Any], Any]] = {
    **dict.fromkeys(
        MESSAGE_COLUMNS,
        lambda messages: [
            without_nulls(message) if None in message.values() else message for message in messages
        ],
    ),
    **dict.fromkeys(("responses", "sources"), list),
    "scores": lambda scores: list(map(_number, scores)),
    **{
        name: _number
        for cells in COLUMNS.values()
        for name, cell in cells.items()
        if cell is _NUMBER
    },
    "votes": lambda votes: [vars(vote) | {"preference": float(vote.preference)} for vote in votes],
    "generations": lambda generations: [
        how and vars(how) | {"token_ids": list(how.token_ids)} for how in generations
    ],
}


def from_row(kind: type[R], row: Mapping[str, Any]) -> R:
    """The record that a canonical row holds; null fields that Arrow added to messages go."""
    cells: dict[str, Any] = {name: row.get(name) for name in COLUMNS[kind]}
    return kind(
        **{name: _READ[name](cell) if name in _READ else cell for name, cell in cells.items()}
    )


_READ: Mapping[str, Callable[[Any], Any]] = {
    **dict.fromkeys(MESSAGE_COLUMNS, stored_messages),
    **dict.fromkeys(("responses", "sources", "scores"), tuple),
    "votes": lambda cell: tuple(Vote(**vote) for vote in cell or ()),
    # Arrow's struct that holds nothing but nulls comes back without its fields.
    "generations": lambda cell: tuple(
        None if stored is None else Generation.of(stored) for stored in cell or ()
    ),
}


def features_of(kind: type[Record], fields: Mapping[str, bool]) -> Features:
    """Arrow types of the columns of a kind of record.

    Args:
        kind: Of record.
        fields: The messages' fields in their order, and whether each is text; others (tool
            calls and the like) are stored as JSON, since their shapes differ.
    """
    messages = List(
        {
            name: _TEXT if is_text else Json()
            for name, is_text in (fields or {"role": True, "content": True}).items()
        }
    )
    return Features(
        {name: messages if cell is _MESSAGES else cell for name, cell in COLUMNS[kind].items()}
    )


class CanonicalRows:
    """Rows of a canonical dataset, exactly: `datasets` rounds numbers when it decodes JSON.

    Args:
        dataset: With the canonical columns.
    """

    def __init__(self, dataset: Dataset) -> None:
        self._tables = dataset.with_format("arrow")
        self._read = arrow_reader(self._tables.data.schema, dataset.features)

    def __getitem__(self, index: int) -> Row:
        """The row at a position."""
        return next(self._read(self._tables[index]))

    def __iter__(self) -> Iterator[Row]:
        """The rows in order."""
        return chain.from_iterable(map(self._read, self._tables.iter(BATCH_ROWS)))


def piece_rows(rows: int) -> int:
    """How many rows to write at once, so that neither a piece nor all pieces need much memory.

    Readers and writers hold a piece whole, and remember something of every piece and column.

    Args:
        rows: Of the dataset.

    Returns:
        Rows a piece: at most 128 pieces, of at least 256 rows each.
    """
    return max(BATCH_ROWS, math.ceil(rows / _MOST_PIECES))


def save_dataset(dataset: Dataset, path: str | Path) -> None:
    """Write a canonical dataset; `load_pairs` and `load_candidates` read it back exactly.

    Args:
        dataset: The dataset of a record set.
        path: A .parquet or .jsonl file, each perhaps .gz, or a folder (no suffix), which
            is written by `save_to_disk`. Files are whole or absent; one that exists is
            replaced. A folder must not exist.

    Raises:
        InputError: If the suffix is another, or the folder exists.
    """
    target = Path(path)
    bare = target.name.removesuffix(".gz")
    opener: Any = gzip.open if target.suffix == ".gz" else open
    if bare.endswith(".parquet"):
        with quiet(), atomic_path(target) as temporary, opener(temporary, "wb") as stream:
            dataset.to_parquet(stream, batch_size=piece_rows(len(dataset)))
    elif bare.endswith(".jsonl"):
        with (
            atomic_path(target) as temporary,
            opener(temporary, "wt", encoding="utf-8") as stream,
        ):
            for row in CanonicalRows(dataset):
                for column in row.keys() & set(MESSAGE_COLUMNS):
                    row[column] = stored_messages(row[column])
                stream.write(json.dumps(row, ensure_ascii=False) + "\n")
    else:
        InputError.unless(
            "." not in target.name,
            saw=f"{target}, whose ending says nothing that can be written",
            expected=".parquet or .jsonl, each perhaps with .gz, or a folder without an ending",
            cure="rename it",
        )
        InputError.unless(
            not target.exists(),
            saw=f"{target}, which exists",
            expected="a new folder",
            cure="name another, or remove it first",
        )
        # In the target's parent: the last step is then a rename on one file system, after which
        # the folder is whole.
        target.parent.mkdir(parents=True, exist_ok=True)
        with (
            tempfile.TemporaryDirectory(
                dir=target.parent, prefix=f"{PARTIAL}{target.name}-"
            ) as folder,
            quiet(),
        ):
            dataset.save_to_disk(f"{folder}/data")
            Path(folder, "data").replace(target)


class DiskNumbers(AbstractContextManager["DiskNumbers"]):
    """Numbers that stand in a temporary file and are memory-mapped to be looked at.

    What is mapped is the kernel's cache of the file, which goes when memory is needed. A
    context manager: the file goes at the end of the block.

    Args:
        dtype: A numpy type of numbers.
        values: The first numbers; read once, some at a time.
    """

    def __init__(self, dtype: str = "float64", values: Iterable[Any] = ()) -> None:
        self._dtype = np.dtype(dtype)
        self._stream = tempfile.TemporaryFile(prefix="prefstage-")  # noqa: SIM115 - see __exit__
        self.extend(values)

    def __exit__(self, *_: object) -> None:
        """Remove the file."""
        self._stream.close()

    def __len__(self) -> int:
        """How many numbers there are."""
        return self._stream.tell() // self._dtype.itemsize

    def extend(self, values: Iterable[Any]) -> None:
        """Add numbers at the end.

        Args:
            values: Read once, some at a time.
        """
        rest = iter(values)
        while len(piece := np.fromiter(islice(rest, _PIECE), self._dtype)):
            self._stream.write(piece.tobytes())

    def sort(self) -> Numbers:
        """Sort in place, on disk; NaN stand last.

        Returns:
            The numbers, least first, memory-mapped. [rows].
        """
        self._stream.flush()
        # An empty file cannot be mapped.
        numbers = (
            np.memmap(self._stream, self._dtype, "r+") if len(self) else np.zeros(0, self._dtype)
        )
        numbers.sort()
        return numbers


def pieces(values: Numbers) -> Iterator[Numbers]:
    """Cut numbers into pieces that fit a processor's cache.

    Args:
        values: Numbers, perhaps memory-mapped. [rows].

    Returns:
        Views of them, in order.
    """
    return (values[start : start + _PIECE] for start in range(0, len(values), _PIECE))


def text_number(text: str) -> int:
    """A text's hash of 64 bits, the same on every machine.

    Args:
        text: Any text.

    Returns:
        An integer in [0, 2**64).
    """
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def count_different(numbers: DiskNumbers) -> int:
    """How many different numbers there are; sorts them.

    Args:
        numbers: Hashes of texts, say. Two different texts have the same hash once in 2**64.

    Returns:
        The count.
    """
    return sum(map(len, different(numbers)))


def different(numbers: DiskNumbers) -> Iterator[Numbers]:
    """Every different number once, least first; sorts them.

    Args:
        numbers: The numbers.

    Yields:
        Pieces of the different numbers.
    """
    last: Any = None
    for piece in pieces(numbers.sort()):
        # After sorting, equal numbers are neighbours, perhaps from one piece to the next.
        fresh = np.unique(piece)
        yield fresh[int(fresh[0] == last) :]
        last = fresh[-1]
