"""Rows of Arrow tables and `datasets` objects: exact, without padding, without opening media."""

import json
from collections.abc import Callable, Generator, Iterator, Mapping
from functools import partial
from typing import Any, TypeAlias

import pyarrow as pa
from datasets import ClassLabel, Dataset, Features, IterableDataset, Json

from prefstage.data.compat import arrow_origin
from prefstage.data.rows import DuplicatedKey, RawRow, RowFault, not_utf8, parse_json, show

Convert = Callable[[Any], Any]
Table: TypeAlias = pa.Table | pa.RecordBatch
_METADATA = b"huggingface"
_TRANSFORMED = "custom"
BATCH_ROWS = 256


class ArrowReader:
    """Reads the rows of tables of one schema.

    All rows of an Arrow table share the fields of their objects: where a row lacks one, a
    null stands in its place. Such nulls go, at every depth, because a template would see
    them. What a file of Parquet or a `datasets` object meant as an explicit null inside an
    object looks the same and goes too; nulls in lists, in maps and in columns of JSON stay.
    Pictures, sounds and films stay what is stored of them: nothing is decoded or opened.

    Args:
        schema: Of the tables.
        features: What `datasets` knows of the columns; None to take it from the schema.
    """

    def __init__(self, schema: pa.Schema, features: Mapping[str, Any] | None = None) -> None:
        known = features if features is not None else _features_in(schema)
        self._converters = {
            field.name: _nullable(_converter(field.type, known.get(field.name))) for field in schema
        }

    def row(self, table: Table, index: int = 0) -> dict[str, Any]:
        """One row of a table.

        Args:
            table: Of the reader's schema.
            index: Of the row.

        Returns:
            The row's columns.

        Raises:
            UnicodeDecodeError: If a text is no UTF-8.
            DuplicatedKey: If an object of a column of JSON names a key twice.
        """
        return next(self.rows(table.slice(index, 1)))

    def rows(self, table: Table) -> Iterator[dict[str, Any]]:
        """All rows of a table, converted at once; see `row`."""
        for values in table.to_pylist():
            yield {name: self._converters[name](value) for name, value in values.items()}


def arrow_rows(name: str, tables: Iterator[Table], features: Any = None) -> Generator[RawRow]:
    """The rows of Arrow tables, each with a fault if it cannot be read.

    Args:
        name: The file's or dataset's name.
        tables: The tables, one after the other.
        features: What `datasets` knows of the columns; None to take it from the schema.

    Yields:
        The rows, numbered from 1.
    """
    number, reader, schema = 0, None, None
    for table in tables:
        if reader is None or table.schema != schema:
            schema = table.schema
            reader = ArrowReader(schema, features)
        for index in range(table.num_rows):
            number += 1
            # One row at a time: what cannot be decoded must be the fault of its row alone.
            yield _arrow_row(name, number, reader, table, index)


def _arrow_row(name: str, number: int, reader: ArrowReader, table: Table, index: int) -> RawRow:
    values = None
    try:
        return RawRow(name, number, reader.row(table, index))
    except UnicodeDecodeError as error:
        values, fault = repr(error.object), not_utf8(f"byte at {error.start}")
    except DuplicatedKey as error:
        fault = error.fault()
    except json.JSONDecodeError as error:
        fault = RowFault(
            "(row)",
            saw=f"{show(error.doc)}, which is no JSON ({error.msg})",
            expected="JSON in a column of JSON",
            cure="write the file again",
        )
    return RawRow(name, number, values, fault)


def dataset_rows(name: str, dataset: Dataset | IterableDataset) -> Callable[[], Generator[RawRow]]:
    """How to read the rows of a `datasets` object, again and again.

    Args:
        name: For the rows.
        dataset: The dataset. Its format (torch, numpy) does not matter; a transform of the
            user's is applied.

    Returns:
        A function that starts a reading.
    """
    if isinstance(dataset, IterableDataset):
        return lambda: _streamed(name, dataset)
    if dataset.format["type"] == _TRANSFORMED:
        return lambda: _plain(name, dataset)
    tables = dataset.with_format("arrow", columns=dataset.format["columns"])
    return lambda: arrow_rows(name, tables.iter(BATCH_ROWS), dataset.features)


def _streamed(name: str, dataset: IterableDataset) -> Generator[RawRow]:
    origin = arrow_origin(dataset)
    if origin:
        return arrow_rows(name, dataset.with_format("arrow").iter(BATCH_ROWS), dataset.features)
    if dataset.features:
        return _plain(name, dataset.decode(False))
    return _plain(name, dataset, padded=origin is None)


def _plain(
    name: str, dataset: Dataset | IterableDataset, *, padded: bool = False
) -> Generator[RawRow]:
    # Rows as `datasets` hands them out, less what it padded.
    features = dataset.features or {}
    for number, row in enumerate(dataset, start=1):
        values = {
            key: without_padding(value, features.get(key)) if padded or key in features else value
            for key, value in row.items()
        }
        for key, kind in features.items():
            if isinstance(kind, ClassLabel) and isinstance(values.get(key), int):
                values[key] = kind.int2str(values[key])
        yield RawRow(name, number, values)


def without_padding(values: Any, feature: Any) -> Any:
    """A column of a row that `datasets` has read from Arrow, without the nulls it padded.

    Args:
        values: The column's value.
        feature: Its type, as `Features` have it; None where it is not known.

    Returns:
        The value without the null fields of its objects; those of JSON columns stay.
    """
    if isinstance(feature, Json) and feature.decode:
        return values
    if isinstance(values, dict):
        features = feature if isinstance(feature, Mapping) else {}
        return {
            key: without_padding(value, features.get(key))
            for key, value in values.items()
            if value is not None
        }
    if isinstance(values, list):
        return [without_padding(value, _item_feature(feature)) for value in values]
    return values


def _features_in(schema: pa.Schema) -> Mapping[str, Any]:
    # Other people's metadata under this key say nothing that is needed.
    try:
        info = json.loads((schema.metadata or {})[_METADATA])["info"]
        known: Mapping[str, Any] = Features.from_dict(info["features"])
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}
    return known


def _converter(kind: pa.DataType, feature: Any) -> Convert | None:
    """How to convert a value of an Arrow type; None where it stays as it is."""
    # Converters are made once a schema and not asked for by every value: most columns have
    # none, and their values are handed on untouched.
    convert: Convert | None = None
    if isinstance(feature, ClassLabel):
        convert = feature.int2str
    elif isinstance(kind, pa.JsonType):
        convert = parse_json
    elif isinstance(kind, pa.BaseExtensionType):
        pass  # arrays of numbers, and what other packages define
    elif pa.types.is_struct(kind):
        convert = _of_struct(kind, feature)
    elif any(test(kind) for test in _LISTS):
        item = _converter(kind.value_type, _item_feature(feature))
        convert = item and partial(_of_list, _nullable(item))
    elif pa.types.is_map(kind):
        convert = partial(_of_map, _nullable(_converter(kind.item_type, None)))
    elif pa.types.is_dictionary(kind):
        convert = _converter(kind.value_type, None)
    return convert


def _of_list(item: Convert, values: list[Any]) -> list[Any]:
    return list(map(item, values))


def _of_map(item: Convert, pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    return {key: item(value) for key, value in pairs}


_LISTS = (
    *(pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list),
    *(pa.types.is_list_view, pa.types.is_large_list_view),
)


def _of_struct(kind: pa.StructType, feature: Any) -> Convert:
    features = feature if isinstance(feature, Mapping) else {}
    fields = {
        field.name: _nullable(_converter(field.type, features.get(field.name))) for field in kind
    }
    return lambda values: {
        key: fields[key](value) for key, value in values.items() if value is not None
    }


def _nullable(convert: Convert | None) -> Convert:
    return lambda value: value if convert is None or value is None else convert(value)


def _item_feature(feature: Any) -> Any:
    # `datasets` writes the type of a list as [type], List(type) or Sequence(type).
    if isinstance(feature, list) and feature:
        return feature[0]
    return getattr(feature, "feature", None)
