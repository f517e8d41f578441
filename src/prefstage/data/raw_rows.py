"""Raw rows out of files, Arrow tables and `datasets` objects; a bad row is a fault by itself."""

import csv
import gzip
import io
import json
import re
import shutil
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any, TypeAlias, cast

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import ClassLabel, Dataset, Features, IterableDataset, Json

from prefstage.core import DataError, check_shape, whole_number
from prefstage.data.compat import arrow_origin
from prefstage.data.rows import (
    RawRow,
    RowFault,
    not_an_object,
    not_utf8,
    parse_json,
    show,
    too_wide,
    unique_keys,
)

Table: TypeAlias = pa.Table | pa.RecordBatch
SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical lines"}
_CHUNK_BYTES = 1 << 16
# Text shrinks by 3 to 20; what does by more is small, or no text.
_UNZIPPED_BYTES, _EXPANSION = 1 << 28, 100
_GZIP_MAGIC = b"\x1f\x8b"
_HEADER_LINES = 20
BATCH_ROWS = 256
_SEPARATION = re.compile(r"[ \t\r\n,]*")
_STRICT = json.JSONDecoder(object_pairs_hook=unique_keys, parse_int=whole_number)
_LENIENT = json.JSONDecoder(parse_int=float)


def data_suffix(name: str) -> str | None:
    """The suffix that says how to read a file (``.jsonl`` of ``a.jsonl.gz``), or None."""
    return next(filter(name.lower().removesuffix(".gz").endswith, SUFFIXES), None)


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
    readers = {".csv": _read_csv, ".tsv": _read_csv, ".parquet": _read_parquet}
    read, number = readers.get(data_suffix(name) or "", _read_json), 0
    try:
        for row in read(path, name):
            number = row.number
            yield row
    except (pa.ArrowException, UnicodeDecodeError) as error:  # of bytes as a column's name
        raise DataError.of(
            saw=f"{name}: no readable Parquet file ({str(error).splitlines()[0]})",
            expected="a whole Parquet file",
            cure="fetch or write the file again",
        ) from None
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


# Bytes that are no UTF-8 come in as lone surrogates: they are the fault of their row, and
# the rows after it can still be read. Line ends stay, since quoted texts of CSV hold them.
_TEXT = {"mode": "rt", "encoding": "utf-8-sig", "errors": "surrogateescape", "newline": ""}


def _open(path: Path, **how: Any) -> Any:
    with path.open("rb") as stream:
        zipped = stream.read(2) == _GZIP_MAGIC or path.suffix == ".gz"
    if not zipped:
        return open(path, **how)
    raw = _BoundedGzip(path, path.stat().st_size)
    return raw if how.pop("mode") == "rb" else io.TextIOWrapper(raw, **how)


# A file that expands without end fills memory (a line without an end) or the disk.
class _BoundedGzip(gzip.GzipFile):
    def __init__(self, path: Path, size: int) -> None:
        super().__init__(path, "rb")
        self._most = max(_UNZIPPED_BYTES, _EXPANSION * size)

    def read(self, size: int | None = -1) -> bytes:
        return self._checked(super().read(size))

    def read1(self, size: int = -1) -> bytes:
        return self._checked(super().read1(size))

    def _checked(self, data: bytes) -> bytes:
        if self.tell() > self._most:
            raise gzip.BadGzipFile(f"it expands to more than {self._most:,} bytes")
        return data


def _read_json(path: Path, name: str) -> Iterator[RawRow]:
    with _open(path, **_TEXT) as text:
        chunks = iter(lambda: text.read(_CHUNK_BYTES), "")
        start = next(filter(None, map(str.strip, chunks)), "")
        text.seek(0)
        if start.startswith("["):
            yield from _read_list(text, name)
            return
        for number, line in enumerate(text, start=1):
            if data := line.strip():
                yield _json_line(name, number, data)


def _json_line(name: str, number: int, line: str) -> RawRow:
    fault = _unencodable(line)
    try:
        values = line if fault else parse_json(line)
        return RawRow(name, number, values, fault or not_an_object(values))
    except RowFault as error:
        fault = error
    except json.JSONDecodeError as error:
        whole = number == 1 and line in ("{", "{}")
        fault = RowFault(
            "(line)",
            saw=f"malformed JSON ({error.msg} at character {error.pos + 1}): {show(line)}",
            expected="one JSON object a line" + (", or a list of them" if whole else ""),
            cure="mend the line; an object over several lines must stand in a list [...]"
            if whole
            else "mend or remove the line",
        )
    except ValueError as error:
        fault = _unusable(error)
    return RawRow(name, number, line, fault)


def _read_list(text: IO[str], name: str) -> Iterator[RawRow]:
    # Rows of a JSON list, decoded one by one as the text comes in: no more than a row is held.
    number, step = 0, _CHUNK_BYTES
    buffer = text.read(step)
    position = buffer.index("[") + 1
    while True:
        position = _SEPARATION.match(buffer, position).end()  # type: ignore[union-attr]  # any text
        if buffer[position : position + 1] == "]":
            if rest := (buffer[position + 1 :] + text.read(step)).strip():
                raise _malformed_list(name, number, f"{show(rest)} after the closing ]")
            return
        try:
            values, end, fault = _decode_next(buffer, position)
        except json.JSONDecodeError as error:
            more = text.read(step)
            if not more:
                raise _malformed_list(name, number, error.msg) from None
            # A row that is cut is decoded anew with more text: doubling what is read bounds
            # the work for a long row by twice its length.
            buffer, position, step = buffer[position:] + more, 0, 2 * step
            continue
        number, step = number + 1, _CHUNK_BYTES
        yield RawRow(
            *(name, number, values),
            _unencodable(buffer[position:end]) or fault or not_an_object(values),
        )
        position = end


def _decode_next(buffer: str, position: int) -> tuple[Any, int, RowFault | None]:
    # An object that cannot be used must still be passed: where it ends, the next begins.
    fault = None
    try:
        values, end = _STRICT.raw_decode(buffer, position)
        check_shape(values)
    except json.JSONDecodeError:
        raise
    except RecursionError:
        raise json.JSONDecodeError("values nested too deep", buffer, position) from None
    except ValueError as error:
        fault = error if isinstance(error, RowFault) else _unusable(error)
        values, end = _LENIENT.raw_decode(buffer, position)
    return values, end, fault


def _unusable(error: ValueError) -> RowFault:
    return RowFault(
        "(row)",
        saw=str(error),
        expected="a row of short numbers in few levels",
        cure="mend the row",
    )


def _malformed_list(name: str, number: int, what: str) -> DataError:
    return DataError.of(
        saw=f"{name}: malformed JSON after row {number} ({what})",
        expected="a list of objects, closed by ]",
        cure="mend the file there; rows after that place cannot be found",
    )


def _read_csv(path: Path, name: str) -> Iterator[RawRow]:
    csv.field_size_limit(sys.maxsize)  # the default refuses long responses
    separator = csv_separator(path, name)
    with _open(path, **_TEXT) as text:
        reader = csv.DictReader(text, strict=True, delimiter=separator)
        try:
            columns = reader.fieldnames or ()
            _check_header(columns, name)
            for values in reader:
                yield RawRow(
                    *(name, reader.line_num),
                    {str(k): v for k, v in values.items()},
                    _csv_fault(values, len(columns), separator),
                )
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
        A comma, or (where it makes more columns) a semicolon, a tab or a vertical line. A
        comma, too, for a file that cannot be read: reading its rows says what is wrong.
    """
    if data_suffix(name) == ".tsv":
        return "\t"
    with suppress(OSError, EOFError, zlib.error, csv.Error), _open(path, **_TEXT) as text:
        header = list(islice(text, _HEADER_LINES))  # a quoted name may hold line breaks
        # The first of equals: a comma, for a file of one column.
        return max(SEPARATORS, key=lambda sign: len(next(csv.reader(header, delimiter=sign), ())))
    return ","


def _check_header(names: Sequence[str], file: str) -> None:
    if fault := too_wide(len(names)):
        raise DataError.of(saw=f"{file}: {fault.saw}", expected=fault.expected, cure=fault.cure)
    name, count = next(iter(Counter(filter(None, names)).most_common(1)), ("", 1))
    DataError.unless(
        count == 1,
        saw=f"{file}: the column {show(name)} twice",
        expected="every column once",
        cure="rename or remove one of the two: only one of their values could be kept",
    )


def _read_parquet(path: Path, name: str) -> Iterator[RawRow]:
    with tempfile.TemporaryFile(prefix="prefstage-") as unzipped, _open(path, mode="rb") as stream:
        seekable: Any = stream
        if isinstance(stream, gzip.GzipFile):
            shutil.copyfileobj(stream, unzipped)
            seekable = unzipped
        file = pq.ParquetFile(seekable)
        _check_header(file.schema_arrow.names, name)
        # Group by group: one iteration over all groups keeps something of each in memory.
        yield from _arrow_rows(
            name,
            chain.from_iterable(
                file.iter_batches(BATCH_ROWS, [group]) for group in range(file.num_row_groups)
            ),
        )


def _unencodable(text: str) -> RowFault | None:
    # What UTF-8 cannot hold: an undecodable byte, or a lone surrogate that JSON escaped.
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return not_utf8(f"byte {text[error.start]!a} at character {error.start}")
    return None


def arrow_reader(
    schema: pa.Schema, features: Mapping[str, Any] | None = None
) -> Callable[[Table], Iterator[dict[str, Any]]]:
    """What reads the rows of tables of one schema.

    All rows of an Arrow table share the fields of their objects: where a row lacks one, a
    null stands in its place. Such nulls go, at every depth, because a template would see
    them. What a file of Parquet or a `datasets` object meant as an explicit null inside an
    object looks the same and goes too; nulls in lists, in maps and in columns of JSON stay.
    Pictures, sounds and films stay what is stored of them: nothing is decoded or opened.

    Args:
        schema: Of the tables.
        features: What `datasets` knows of the columns; None to take it from the schema.

    Returns:
        A function from a table of the schema to its rows by column, converted at once. It
        raises UnicodeDecodeError if a text is no UTF-8, and RowFault if an object of a column
        of JSON names a key twice.
    """
    known = _known_features(schema) if features is None else features
    by_column = {field.name: known.get(field.name) or _feature_of(field.type) for field in schema}
    return lambda table: (
        {
            name: without_padding(value, by_column[name], stored=True)
            for name, value in values.items()
        }
        for values in table.to_pylist()
    )


def _arrow_rows(name: str, tables: Iterator[Table], features: Any = None) -> Generator[RawRow]:
    number, values, fault = 0, cast("Any", None), None
    for table in tables:
        read = arrow_reader(table.schema, features)
        for index in range(table.num_rows):
            number, values, fault = number + 1, None, None
            # One row at a time: what cannot be decoded must be the fault of its row alone.
            try:
                values = next(read(table.slice(index, 1)))
            except UnicodeDecodeError as error:
                values, fault = repr(error.object), not_utf8(f"byte at {error.start}")
            except RowFault as error:
                fault = error
            except json.JSONDecodeError as error:
                fault = RowFault(
                    "(row)",
                    saw=f"{show(error.doc)}, which is no JSON ({error.msg})",
                    expected="JSON in a column of JSON",
                    cure="write the file again",
                )
            except ValueError as error:  # out of range of what its type can be in Python, too
                fault = _unusable(error)
            yield RawRow(name, number, values, fault)


def dataset_rows(name: str, dataset: Dataset | IterableDataset) -> Generator[RawRow]:
    """Start reading the rows of a `datasets` object.

    Args:
        name: For the rows.
        dataset: The dataset. Its format (torch, numpy) does not matter; a transform of the
            user's is applied.

    Returns:
        The rows.
    """
    if isinstance(dataset, IterableDataset):
        origin, known = arrow_origin(dataset), bool(dataset.features)
        if not origin:
            return _plain(
                name,
                dataset.decode(False) if known else dataset,
                padded=origin is None and not known,
            )
        tables = dataset.with_format("arrow")
    elif dataset.format["type"] == "custom":  # a function of the user's
        return _plain(name, dataset)
    else:
        tables = dataset.with_format("arrow", columns=dataset.format["columns"])
    return _arrow_rows(name, tables.iter(BATCH_ROWS), dataset.features)


def _plain(
    name: str, dataset: Dataset | IterableDataset, *, padded: bool = False
) -> Generator[RawRow]:
    # Rows as `datasets` hands them out, less what it padded.
    features = dataset.features or {}
    for number, row in enumerate(dataset, start=1):
        yield RawRow(
            *(name, number),
            {
                key: without_padding(item, features.get(key)) if padded or key in features else item
                for key, item in row.items()
            },
        )


def without_padding(value: Any, feature: Any, *, stored: bool = False) -> Any:
    """A column of a row without the nulls that Arrow padded.

    Args:
        value: The column's value.
        feature: Its type, as `Features` have it; None where it is not known.
        stored: Whether it stands as Arrow stores it: JSON as text, maps as lists of tuples.

    Returns:
        The value without the null fields of its objects; those of maps and of JSON stay. A
        class is its name.
    """
    if isinstance(feature, ClassLabel) and isinstance(value, int):
        # -1 stands for no class; a number beyond them stays one, for whoever reads it to refuse
        return feature.int2str(value) if 0 <= value < feature.num_classes else value
    if isinstance(feature, Json) and (stored or feature.decode):
        return parse_json(value) if stored and value is not None else value
    if isinstance(value, list) and value and stored and isinstance(value[0], tuple):
        return {key: without_padding(item, None, stored=stored) for key, item in value}
    if isinstance(value, list):
        # `datasets` writes the type of a list as [type], List(type) or Sequence(type).
        inner = feature[0] if isinstance(feature, list) else getattr(feature, "feature", None)
        return [without_padding(item, inner, stored=stored) for item in value]
    if isinstance(value, dict):
        fields = feature if isinstance(feature, Mapping) else {}
        return {
            key: without_padding(item, fields.get(key), stored=stored)
            for key, item in value.items()
            if item is not None
        }
    return value


def _known_features(schema: pa.Schema) -> Mapping[str, Any]:
    # Other people's metadata under this key say nothing that is needed.
    with suppress(Exception):  # of whatever type
        stored = (schema.metadata or {})[b"huggingface"]
        return dict(Features.from_dict(parse_json(stored)["info"]["features"]))
    return {}


def _feature_of(kind: pa.DataType) -> Any:
    # Where JSON stands in a type; all else is told by the values.
    if isinstance(kind, pa.JsonType):
        return Json()
    if pa.types.is_struct(kind):
        return {field.name: _feature_of(field.type) for field in kind}
    item = getattr(kind, "value_type", None)
    return None if item is None else [_feature_of(item)]
