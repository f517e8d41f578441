"""Rows of `datasets` objects, from Arrow where they have it: exact, unpadded, undecoded."""

from collections.abc import Callable, Generator
from typing import Any

from datasets import ClassLabel, Dataset, IterableDataset

from prefstage.data.arrow_rows import ArrowReader, without_padding
from prefstage.data.raw_rows import RawRow, arrow_row

_BATCH_ROWS = 256
_OWN_CODE = "custom"


def rows_of(name: str, dataset: Dataset | IterableDataset) -> Callable[[], Generator[RawRow]]:
    """How to read the rows of a dataset, again and again.

    Args:
        name: For the rows.
        dataset: The dataset. Its format (torch, numpy) does not matter; a transform of the
            user's own is applied.

    Returns:
        A function that starts a reading.
    """
    if isinstance(dataset, IterableDataset):
        return lambda: _stream(name, dataset)
    if dataset.format["type"] == _OWN_CODE:
        return lambda: _plain(name, dataset)
    columns = dataset.format["columns"]
    tables = dataset.with_format("arrow", columns=columns)
    return lambda: _of_tables(name, tables.iter(_BATCH_ROWS), dataset.features)


def _stream(name: str, dataset: IterableDataset) -> Generator[RawRow]:
    # Rows that come as Arrow tables are padded, and `datasets` knows their features only
    # after it has read some; nothing public tells such a stream from one of Python objects.
    if _is_arrow(getattr(dataset, "_ex_iterable", None)):
        tables = dataset.with_format("arrow").iter(_BATCH_ROWS)
        return _of_tables(name, tables, dataset.features)
    if dataset.features:
        return _plain(name, dataset.decode(False))
    return _plain(name, dataset, padded=_comes_from_arrow(dataset))


def _is_arrow(source: Any) -> bool:
    return getattr(source, "iter_arrow", None) is not None


def _comes_from_arrow(dataset: IterableDataset) -> bool:
    """Whether rows of a stream were Arrow's before somebody's function changed them."""
    source = getattr(dataset, "_ex_iterable", None)
    while source is not None and not _is_arrow(source):
        source = getattr(source, "ex_iterable", None)
    return source is not None


def _of_tables(name: str, tables: Any, features: Any) -> Generator[RawRow]:
    number, reader, schema = 0, None, None
    for table in tables:
        if reader is None or table.schema != schema:
            schema = table.schema
            reader = ArrowReader(schema, features)
        for index in range(len(table)):
            number += 1
            yield arrow_row(name, number, reader, table, index)


def _plain(
    name: str, dataset: Dataset | IterableDataset, *, padded: bool = False
) -> Generator[RawRow]:
    """Rows as `datasets` hands them out, less what it padded."""
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
