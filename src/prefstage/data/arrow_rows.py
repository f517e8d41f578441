"""Rows of Arrow tables as Python values: without Arrow's padding, and without opening media."""

import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import pyarrow as pa
from datasets import ClassLabel, Features, Json

from prefstage.data.json_text import parse_json

Convert = Callable[[Any], Any]
_METADATA = b"huggingface"


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
            field.name: _column(_converter(field.type, known.get(field.name))) for field in schema
        }

    def row(self, table: pa.Table | pa.RecordBatch, index: int = 0) -> dict[str, Any]:
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
        (values,) = table.slice(index, 1).to_pylist()
        return {name: self._converters[name](value) for name, value in values.items()}

    def rows(self, table: pa.Table | pa.RecordBatch) -> Iterator[dict[str, Any]]:
        """All rows of a table, converted at once; see `row`."""
        for values in table.to_pylist():
            yield {name: self._converters[name](value) for name, value in values.items()}


def _features_in(schema: pa.Schema) -> Mapping[str, Any]:
    """What `datasets` noted in a file; other people's metadata say nothing that is needed."""
    try:
        info = json.loads((schema.metadata or {})[_METADATA])["info"]
        known: Mapping[str, Any] = Features.from_dict(info["features"])
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}
    return known


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


def _converter(kind: pa.DataType, feature: Any) -> Convert | None:
    """How to convert a value of an Arrow type; None where it stays as it is."""
    convert: Convert | None = None
    if isinstance(feature, ClassLabel):
        convert = feature.int2str
    elif isinstance(kind, pa.JsonType):
        convert = parse_json
    elif isinstance(kind, pa.BaseExtensionType):
        pass  # arrays of numbers, and what other packages define
    elif pa.types.is_struct(kind):
        convert = _of_struct(kind, feature)
    elif _is_list(kind):
        item = _converter(kind.value_type, _item_feature(feature))
        if item is not None:
            convert = partial(_of_list, item)
    elif pa.types.is_map(kind):
        convert = partial(_of_map, _converter(kind.item_type, None))
    elif pa.types.is_dictionary(kind):
        convert = _converter(kind.value_type, None)
    return convert


def _of_list(item: Convert, values: list[Any]) -> list[Any]:
    return [_kept(item, value) for value in values]


def _of_map(item: Convert | None, pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    return {key: _kept(item, value) for key, value in pairs}


def _of_struct(kind: pa.StructType, feature: Any) -> Convert:
    features = feature if isinstance(feature, Mapping) else {}
    fields = {field.name: _converter(field.type, features.get(field.name)) for field in kind}
    return lambda values: {
        key: _kept(fields[key], value) for key, value in values.items() if value is not None
    }


def _item_feature(feature: Any) -> Any:
    """The type of a list's items, however `datasets` writes lists."""
    if isinstance(feature, list) and feature:
        return feature[0]
    return getattr(feature, "feature", None)


def _is_list(kind: pa.DataType) -> bool:
    tests = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    views = (pa.types.is_list_view, pa.types.is_large_list_view)
    return any(test(kind) for test in (*tests, *views))


def _column(convert: Convert | None) -> Convert:
    return lambda value: _kept(convert, value)


def _kept(convert: Convert | None, value: Any) -> Any:
    return value if convert is None or value is None else convert(value)
