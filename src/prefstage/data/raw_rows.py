"""Raw rows out of one file, one at a time; what cannot be read is a fault of its row."""

import csv
import gzip
import json
import re
import shutil
import sys
import tempfile
import zlib
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from itertools import islice
from pathlib import Path
from typing import IO, Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from prefstage.core.errors import DataError
from prefstage.data.arrow_rows import BATCH_ROWS, arrow_rows
from prefstage.data.rows import (
    DuplicatedKey,
    RawRow,
    RowFault,
    not_an_object,
    not_utf8,
    parse_json,
    show,
    unique_keys,
)

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical lines"}
_CHUNK_BYTES = 1 << 16
_GZIP_MAGIC, _BOM = b"\x1f\x8b", b"\xef\xbb\xbf"
_HEADER_LINES = 20
_SEPARATION = re.compile(r"[ \t\r\n,]*")
_STRICT, _LENIENT = json.JSONDecoder(object_pairs_hook=unique_keys), json.JSONDecoder()


def data_suffix(name: str) -> str | None:
    """The suffix that says how to read a file (``.jsonl`` of ``a.jsonl.gz``), or None."""
    bare = name.lower().removesuffix(".gz")
    return next((suffix for suffix in SUFFIXES if bare.endswith(suffix)), None)


def read_file(path: Path, name: str) -> Generator[RawRow]:
    """Read the rows of one file, gzipped or not, keeping memory flat.

    Args:
        path: Where the bytes are.
        name: The file's name for messages; its suffix says how to read it.

    Yields:
        One `RawRow` per row, good or bad; empty lines are no rows.

    Raises:
        DataError: If the file cannot be read on: damaged gzip or Parquet, or a JSON list
            that is malformed at one place (its later rows cannot be found).
    """
    suffix = data_suffix(name)
    read = {".csv": _read_csv, ".tsv": _read_csv, ".parquet": _read_parquet}.get(
        suffix or "", _read_json
    )
    number = 0
    try:
        for row in read(path, name):
            number = row.number
            yield row
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError.of(
            saw=f"{name}: damaged gzip data after row {number} ({error})",
            expected="a whole gzip file",
            cure="fetch or compress the file again",
        ) from None
    except OSError as error:
        raise DataError.of(
            saw=f"{name}: {error.strerror or error}",
            expected="a readable file",
            cure="check the file and its permissions",
        ) from None


@contextmanager
def _open(path: Path) -> Iterator[IO[bytes]]:
    with path.open("rb") as stream:
        zipped = stream.read(2) == _GZIP_MAGIC or path.suffix == ".gz"
        stream.seek(0)
        yield cast("IO[bytes]", gzip.GzipFile(fileobj=stream) if zipped else stream)


@contextmanager
def _open_text(path: Path) -> Iterator[IO[str]]:
    # Bytes that are no UTF-8 come in as lone surrogates: they are the fault of their row, and
    # the rows after it can still be read. Line ends stay, since quoted texts of CSV hold them.
    with (
        _open(path) as stream,
        TextIOWrapper(stream, "utf-8-sig", errors="surrogateescape", newline="") as text,
    ):
        yield text


def _read_json(path: Path, name: str) -> Iterator[RawRow]:
    with _open(path) as stream:
        chunks = iter(lambda: stream.read(_CHUNK_BYTES).removeprefix(_BOM), b"")
        start = next(filter(None, map(bytes.strip, chunks)), b"")
    if start[:1] == b"[":
        with _open_text(path) as text:
            yield from _read_list(text, name)
        return
    with _open(path) as stream:
        for number, line in enumerate(stream, start=1):
            data = line.removeprefix(_BOM).strip() if number == 1 else line.strip()
            if data:
                yield _json_line(name, number, data)


def _json_line(name: str, number: int, data: bytes) -> RawRow:
    try:
        values = parse_json(data.decode("utf-8"))
    except DuplicatedKey as error:
        fault = error.fault()
    except UnicodeDecodeError as error:
        fault = not_utf8(f"byte {data[error.start : error.start + 1]!r} at {error.start}")
    except json.JSONDecodeError as error:
        whole = number == 1 and data in (b"{", b"{}")
        fault = RowFault(
            "(line)",
            saw=f"malformed JSON ({error.msg} at character {error.pos + 1}): "
            + show(data.decode("utf-8", "backslashreplace")),
            expected="one JSON object a line" + (", or a list of them" if whole else ""),
            cure="mend the line; an object over several lines must stand in a list [...]"
            if whole
            else "mend or remove the line",
        )
    except RecursionError:
        fault = RowFault(
            "(line)", saw="JSON nested too deep", expected="a row", cure="remove the line"
        )
    else:
        return RawRow(name, number, values, not_an_object(values))
    return RawRow(name, number, data.decode("utf-8", "backslashreplace"), fault)


def _read_list(text: IO[str], name: str) -> Iterator[RawRow]:
    # Rows of a JSON list, decoded one by one as the text comes in: no more than a row is held.
    number, step = 0, _CHUNK_BYTES
    buffer = text.read(step)
    position = buffer.index("[") + 1
    while True:
        position = _SEPARATION.match(buffer, position).end()  # type: ignore[union-attr]  # any text
        if buffer[position : position + 1] == "]":
            rest = (buffer[position + 1 :] + text.read(step)).strip()
            if rest:
                raise _malformed_list(name, number, f"{show(rest)} after the closing ]")
            return
        try:
            values, end, twice = _decode_one(buffer, position)
        except RecursionError:
            raise _malformed_list(name, number, "an object nested too deep") from None
        except json.JSONDecodeError as error:
            more = text.read(step)
            if not more:
                raise _malformed_list(name, number, error.msg) from None
            # A row that is cut is decoded anew with more text: doubling what is read bounds
            # the work for a long row by twice its length.
            buffer, position, step = buffer[position:] + more, 0, 2 * step
            continue
        number, step = number + 1, _CHUNK_BYTES
        escaped = _unencodable(buffer[position:end])
        yield RawRow(name, number, values, escaped or twice or not_an_object(values))
        position = end


def _decode_one(buffer: str, position: int) -> tuple[Any, int, RowFault | None]:
    # An object with a key that stands twice must still be passed: where it ends, the next begins.
    try:
        return (*_STRICT.raw_decode(buffer, position), None)
    except DuplicatedKey as error:
        return (*_LENIENT.raw_decode(buffer, position), error.fault())


def _malformed_list(name: str, number: int, what: str) -> DataError:
    return DataError.of(
        saw=f"{name}: malformed JSON after row {number} ({what})",
        expected="a list of objects, closed by ]",
        cure="mend the file there; rows after that place cannot be found",
    )


def _read_csv(path: Path, name: str) -> Iterator[RawRow]:
    csv.field_size_limit(sys.maxsize)  # the default refuses long responses
    separator = csv_separator(path, name)
    with _open_text(path) as text:
        reader = csv.DictReader(text, strict=True, delimiter=separator)
        try:
            columns = reader.fieldnames or ()
            _check_header(columns, name)
            for values in reader:
                fault = _csv_fault(values, len(columns), separator)
                whole = {str(key): value for key, value in values.items()}
                yield RawRow(name, reader.line_num, whole, fault)
        except csv.Error as error:
            raise DataError.of(
                saw=f"{name}: malformed CSV at line {reader.line_num} ({error})",
                expected="quotes that close, doubled inside quoted text",
                cure="write the file again with a CSV library",
            ) from None


def _csv_fault(values: dict[Any, Any], columns: int, separator: str) -> RowFault | None:
    # The csv module puts surplus fields under None, and None under columns without a field.
    extra = values.get(None)
    if extra is not None or None in values.values():
        count = columns + len(extra) if extra else sum(v is not None for v in values.values())
        return RowFault(
            "(row)",
            saw=f"{count} fields under {columns} column names",
            expected="as many fields as columns",
            cure=f"quote texts that hold {SEPARATORS[separator]} or line breaks",
        )
    return next((fault for text in values.values() if (fault := _unencodable(text))), None)


def csv_separator(path: Path, name: str) -> str:
    """What separates the columns of a CSV file: the sign that makes most columns of its header.

    Args:
        path: Where the bytes are.
        name: The file's name; .tsv is separated by tabs.

    Returns:
        A comma, or (where it makes more columns) a semicolon, a tab or a vertical line.

    Raises:
        OSError: If the file cannot be read; EOFError for damaged gzip data.
    """
    if data_suffix(name) == ".tsv":
        return "\t"
    with _open_text(path) as text:
        header = list(islice(text, _HEADER_LINES))  # a quoted name may hold line breaks

    def columns(separator: str) -> int:
        return len(next(csv.reader(header, delimiter=separator), ()))

    return max(SEPARATORS, key=columns)  # the first of equals


def _check_header(names: Sequence[str], file: str) -> None:
    twice = next((name for name in names if name and names.count(name) > 1), None)
    if twice is not None:
        raise DataError.of(
            saw=f"{file}: the column {twice!r} twice",
            expected="every column once",
            cure="rename or remove one of the two: only one of their values could be kept",
        )


def _read_parquet(path: Path, name: str) -> Iterator[RawRow]:
    with tempfile.TemporaryFile(prefix="prefstage-") as unzipped, _open(path) as stream:
        seekable: Any = stream
        if isinstance(stream, gzip.GzipFile):
            shutil.copyfileobj(stream, unzipped)
            seekable = unzipped
        try:
            file = pq.ParquetFile(seekable)
            _check_header(file.schema_arrow.names, name)
            # Group by group: one iteration over all groups keeps something of each in memory.
            batches = (
                batch
                for group in range(file.num_row_groups)
                for batch in file.iter_batches(batch_size=BATCH_ROWS, row_groups=[group])
            )
            yield from arrow_rows(name, batches)
        except pa.ArrowException as error:
            raise DataError.of(
                saw=f"{name}: no readable Parquet file ({str(error).splitlines()[0]})",
                expected="a whole Parquet file",
                cure="fetch or write the file again",
            ) from None


def _unencodable(text: str) -> RowFault | None:
    # What UTF-8 cannot hold: an undecodable byte, or a lone surrogate that JSON escaped.
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return not_utf8(f"byte {text[error.start]!a} at character {error.start}")
    return None
