"""Raw rows out of one file, one at a time; what cannot be read is a fault of its row."""

import csv
import gzip
import json
import shutil
import sys
import tempfile
import zlib
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import TextIOWrapper
from itertools import islice
from pathlib import Path
from typing import IO, Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from prefstage.core.errors import DataError
from prefstage.data.arrow_rows import ArrowReader
from prefstage.data.faults import RowFault, show
from prefstage.data.json_text import DuplicatedKey, parse_json, unique_keys

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical lines"}
_CHUNK_BYTES = 1 << 16
_BATCH_ROWS = 256
_GZIP_MAGIC = b"\x1f\x8b"
_HEADER_LINES = 20
_STRICT, _LENIENT = json.JSONDecoder(object_pairs_hook=unique_keys), json.JSONDecoder()


@dataclass(frozen=True)
class RawRow:
    """One row as it stands in its file: a mapping, or why it is none.

    Attributes:
        file: The file's name (or the dataset's).
        number: Its place, from 1; for lines of JSON the line's number.
        values: The row, or its text where it could not be parsed.
        fault: Why it could not be parsed, or None.
    """

    file: str
    number: int
    values: Any
    fault: RowFault | None = None


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


def _read_json(path: Path, name: str) -> Iterator[RawRow]:
    with _open(path) as stream:
        is_list = _first_byte(stream) == b"["
    with _open(path) as stream:
        if not is_list:
            yield from _read_lines(stream, name)
            return
        with TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape") as text:
            yield from _read_list(text, name)


def _first_byte(stream: IO[bytes]) -> bytes:
    while chunk := stream.read(_CHUNK_BYTES):
        text = chunk.removeprefix(b"\xef\xbb\xbf").strip()
        if text:
            return text[:1]
    return b""


def _read_lines(stream: IO[bytes], name: str) -> Iterator[RawRow]:
    for number, line in enumerate(stream, start=1):
        data = line.removeprefix(b"\xef\xbb\xbf").strip() if number == 1 else line.strip()
        if data:
            yield _json_line(name, number, data)


def _json_line(name: str, number: int, data: bytes) -> RawRow:
    try:
        values = parse_json(data.decode("utf-8"))
    except DuplicatedKey as error:
        fault = error.fault()
    except UnicodeDecodeError as error:
        fault = _not_utf8(f"byte {data[error.start : error.start + 1]!r} at {error.start}")
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
    """Rows of a JSON list, decoded one by one as the text comes in."""
    number, step = 0, _CHUNK_BYTES
    buffer = text.read(step)
    position = buffer.index("[") + 1
    while True:
        position = _skip(buffer, position)
        if buffer[position : position + 1] == "]":
            _check_nothing_follows(buffer[position + 1 :] + text.read(step), name, number)
            return
        try:
            values, end, twice = _decode_one(buffer, position)
        except RecursionError:
            raise _malformed_list(name, number, "an object nested too deep") from None
        except json.JSONDecodeError as error:
            more = text.read(step)
            if not more:
                raise _malformed_list(name, number, error.msg) from None
            buffer, position, step = buffer[position:] + more, 0, 2 * step
            continue
        number, step = number + 1, _CHUNK_BYTES
        escaped = _unencodable(buffer[position:end])
        fault = _not_utf8(escaped) if escaped else twice or not_an_object(values)
        yield RawRow(name, number, values, fault)
        position = end


def _decode_one(buffer: str, position: int) -> tuple[Any, int, RowFault | None]:
    """The value that begins at a position, where it ends, and its key that stands twice."""
    try:
        return (*_STRICT.raw_decode(buffer, position), None)
    except DuplicatedKey as error:
        return (*_LENIENT.raw_decode(buffer, position), error.fault())


def _check_nothing_follows(rest: str, name: str, number: int) -> None:
    if rest.strip():
        raise _malformed_list(name, number, f"{show(rest.strip())} after the closing ]")


def _malformed_list(name: str, number: int, what: str) -> DataError:
    return DataError.of(
        saw=f"{name}: malformed JSON after row {number} ({what})",
        expected="a list of objects, closed by ]",
        cure="mend the file there; rows after that place cannot be found",
    )


def _skip(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\r\n,":
        position += 1
    return position


def _read_csv(path: Path, name: str) -> Iterator[RawRow]:
    csv.field_size_limit(sys.maxsize)  # the default refuses long responses
    with (
        _open(path) as stream,
        TextIOWrapper(stream, "utf-8-sig", errors="surrogateescape", newline="") as text,
    ):
        separator = csv_separator(path, name)
        reader = csv.DictReader(text, strict=True, delimiter=separator)
        try:
            _check_header(reader.fieldnames or (), name)
            for values in reader:
                columns = len(reader.fieldnames or ())
                yield _csv_row(name, reader.line_num, values, columns, separator)
        except csv.Error as error:
            raise DataError.of(
                saw=f"{name}: malformed CSV at line {reader.line_num} ({error})",
                expected="quotes that close, doubled inside quoted text",
                cure="write the file again with a CSV library",
            ) from None


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
    with (
        _open(path) as stream,
        TextIOWrapper(stream, "utf-8-sig", errors="surrogateescape", newline="") as text,
    ):
        header = list(islice(text, _HEADER_LINES))  # a quoted name may hold line breaks

    def columns(separator: str) -> int:
        return len(next(csv.reader(header, delimiter=separator), ()))

    return max(SEPARATORS, key=columns)  # the first of equals


def _check_header(names: Sequence[str], file: str) -> None:
    """Refuse a column that stands twice, of which only the last would be kept.

    Raises:
        DataError: Naming the column.
    """
    twice = next((name for name in names if name and names.count(name) > 1), None)
    if twice is not None:
        raise DataError.of(
            saw=f"{file}: the column {twice!r} twice",
            expected="every column once",
            cure="rename or remove one of the two: only one of their values could be kept",
        )


def _csv_row(
    name: str, number: int, values: dict[Any, Any], columns: int, separator: str
) -> RawRow:
    extra = values.get(None)
    if extra is not None or None in values.values():
        count = columns + len(extra) if extra else sum(v is not None for v in values.values())
        fault = RowFault(
            "(row)",
            saw=f"{count} fields under {columns} column names",
            expected="as many fields as columns",
            cure=f"quote texts that hold {SEPARATORS[separator]} or line breaks",
        )
        return RawRow(name, number, {str(key): value for key, value in values.items()}, fault)
    escaped = next((place for text in values.values() if (place := _unencodable(text))), None)
    return RawRow(name, number, values, _not_utf8(escaped) if escaped else None)


def _read_parquet(path: Path, name: str) -> Iterator[RawRow]:
    with tempfile.TemporaryFile(prefix="prefstage-") as unzipped, _open(path) as stream:
        seekable: Any = stream
        if isinstance(stream, gzip.GzipFile):
            shutil.copyfileobj(stream, unzipped)
            seekable = unzipped
        try:
            file = pq.ParquetFile(seekable)
            _check_header(file.schema_arrow.names, name)
            reader, number = ArrowReader(file.schema_arrow), 0
            batches = (
                batch
                for group in range(file.num_row_groups)  # all at once keep something of each
                for batch in file.iter_batches(batch_size=_BATCH_ROWS, row_groups=[group])
            )
            for batch in batches:
                for index in range(batch.num_rows):
                    number += 1
                    yield arrow_row(name, number, reader, batch, index)
        except pa.ArrowException as error:
            raise DataError.of(
                saw=f"{name}: no readable Parquet file ({str(error).splitlines()[0]})",
                expected="a whole Parquet file",
                cure="fetch or write the file again",
            ) from None


def arrow_row(
    name: str, number: int, reader: ArrowReader, table: pa.Table | pa.RecordBatch, index: int
) -> RawRow:
    """A row of an Arrow table.

    Args:
        name: The file's or dataset's name.
        number: The row's number, from 1.
        reader: Of the table's schema.
        table: The table.
        index: The row's index in the table.

    Returns:
        The row, with a fault if a text of it cannot be read.
    """
    try:
        return RawRow(name, number, reader.row(table, index))
    except UnicodeDecodeError as error:
        fault = _not_utf8(f"byte at {error.start}")
        return RawRow(name, number, repr(error.object), fault)
    except DuplicatedKey as error:
        return RawRow(name, number, None, error.fault())
    except json.JSONDecodeError as error:
        fault = RowFault(
            "(row)",
            saw=f"{show(error.doc)}, which is no JSON ({error.msg})",
            expected="JSON in a column of JSON",
            cure="write the file again",
        )
        return RawRow(name, number, None, fault)


def _unencodable(text: str) -> str | None:
    """Where a text holds what UTF-8 cannot (an undecodable byte, a lone surrogate)."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return f"byte {text[error.start]!a} at character {error.start}"
    return None


def _not_utf8(what: str) -> RowFault:
    return RowFault(
        "(row)",
        saw=f"{what}, which is not UTF-8",
        expected="UTF-8 text",
        cure="convert the file, e.g. iconv -f latin1 -t utf-8",
    )


def not_an_object(values: Any) -> RowFault | None:
    """What is wrong with a row that is no mapping; None for one that is."""
    if isinstance(values, Mapping):
        return None
    return RowFault(
        "(row)",
        saw=show(values),
        expected="an object with named fields",
        cure="write each row as {column: value}",
    )
