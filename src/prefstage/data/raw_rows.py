"""Raw rows out of one file, one at a time; what cannot be read is a fault of its row."""

import csv
import gzip
import json
import shutil
import sys
import tempfile
import zlib
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import IO, Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features

from prefstage.core.errors import DataError
from prefstage.data.faults import RowFault, show
from prefstage.data.messages import is_messages

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".parquet")
_CHUNK_BYTES = 1 << 16
_BATCH_ROWS = 256
_GZIP_MAGIC = b"\x1f\x8b"


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
    read = {".csv": _read_csv, ".parquet": _read_parquet}.get(suffix or "", _read_json)
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
        values = json.loads(data.decode("utf-8"))
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
        return RawRow(name, number, values, _not_an_object(values))
    return RawRow(name, number, data.decode("utf-8", "backslashreplace"), fault)


def _read_list(text: IO[str], name: str) -> Iterator[RawRow]:
    """Rows of a JSON list, decoded one by one as the text comes in."""
    decoder, number, step = json.JSONDecoder(), 0, _CHUNK_BYTES
    buffer = text.read(step)
    position = buffer.index("[") + 1
    while True:
        position = _skip(buffer, position)
        if buffer[position : position + 1] == "]":
            _check_nothing_follows(buffer[position + 1 :] + text.read(step), name, number)
            return
        try:
            values, end = decoder.raw_decode(buffer, position)
        except json.JSONDecodeError as error:
            more = text.read(step)
            if not more:
                raise _malformed_list(name, number, error.msg) from None
            buffer, position, step = buffer[position:] + more, 0, 2 * step
            continue
        number, step = number + 1, _CHUNK_BYTES
        escaped = _unencodable(buffer[position:end])
        fault = _not_utf8(escaped) if escaped else _not_an_object(values)
        yield RawRow(name, number, values, fault)
        position = end


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
        reader = csv.DictReader(text, strict=True)
        try:
            for values in reader:
                yield _csv_row(name, reader.line_num, values, len(reader.fieldnames or ()))
        except csv.Error as error:
            raise DataError.of(
                saw=f"{name}: malformed CSV at line {reader.line_num} ({error})",
                expected="quotes that close, doubled inside quoted text",
                cure="write the file again with a CSV library",
            ) from None


def _csv_row(name: str, number: int, values: dict[Any, Any], columns: int) -> RawRow:
    extra = values.get(None)
    if extra is not None or None in values.values():
        found = columns + len(extra) if extra else sum(v is not None for v in values.values())
        fault = RowFault(
            "(row)",
            saw=f"{found} fields under {columns} column names",
            expected="as many fields as columns",
            cure="quote texts that hold commas or line breaks",
        )
        return RawRow(name, number, {str(key): value for key, value in values.items()}, fault)
    escaped = next((place for text in values.values() if (place := _unencodable(text))), None)
    cells = {key: _cell(text) for key, text in values.items()}
    return RawRow(name, number, cells, _not_utf8(escaped) if escaped else None)


def _cell(text: str) -> Any:
    """A cell; JSON text of a list of messages becomes the messages."""
    if text.startswith("[{") and text.endswith("]"):
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            return text
        return value if is_messages(value) else text
    return text


def _read_parquet(path: Path, name: str) -> Iterator[RawRow]:
    with tempfile.TemporaryFile(prefix="prefstage-") as unzipped, _open(path) as stream:
        seekable: Any = stream
        if isinstance(stream, gzip.GzipFile):
            shutil.copyfileobj(stream, unzipped)
            seekable = unzipped
        try:
            file = pq.ParquetFile(seekable)
            features = Features.from_arrow_schema(file.schema_arrow)
            number = 0
            batches = (
                batch
                for group in range(file.num_row_groups)  # all at once keep something of each
                for batch in file.iter_batches(batch_size=_BATCH_ROWS, row_groups=[group])
            )
            for batch in batches:
                for index in range(batch.num_rows):
                    number += 1
                    yield _arrow_row(name, number, batch.slice(index, 1), features)
        except pa.ArrowException as error:
            raise DataError.of(
                saw=f"{name}: no readable Parquet file ({str(error).splitlines()[0]})",
                expected="a whole Parquet file",
                cure="fetch or write the file again",
            ) from None


def _arrow_row(name: str, number: int, batch: pa.RecordBatch, features: Features) -> RawRow:
    try:
        (values,) = batch.to_pylist()
    except UnicodeDecodeError as error:
        return RawRow(name, number, repr(error.object), _not_utf8(f"byte at {error.start}"))
    return RawRow(name, number, features.decode_example(values))


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


def _not_an_object(values: Any) -> RowFault | None:
    if isinstance(values, dict):
        return None
    return RowFault(
        "(row)",
        saw=show(values),
        expected="an object with named fields",
        cure="write each row as {column: value}",
    )
