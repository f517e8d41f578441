"""Where rows come from: a file, a folder, a URL, or a dataset of the Hub."""

import csv
import sys
import uuid
import zlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import datasets
import httpx2
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

from prefstage.core.errors import DataError, InputError
from prefstage.data.dataset_rows import rows_of
from prefstage.data.raw_rows import (
    SEPARATORS,
    SUFFIXES,
    RawRow,
    csv_separator,
    data_suffix,
    not_an_object,
    read_file,
)
from prefstage.data.scratch import scratch_folder

_HUB_PARTS = 3
_TIMEOUT_S = 60


@dataclass(frozen=True)
class Source:
    """A dataset that can be read again and again.

    Attributes:
        name: For reports and errors.
        rows: Starts a new reading of all rows.
        notes: What a report should say of how they are read.
    """

    name: str
    rows: Callable[[], Generator[RawRow]]
    notes: tuple[str, ...] = ()


Splits: TypeAlias = DatasetDict | IterableDatasetDict
Given: TypeAlias = str | Path | Dataset | IterableDataset | Splits | Sequence[Mapping[str, Any]]
"""How a dataset can be given: by name, as the object itself, or as a list of rows."""


def open_source(given: Given, *, split: str | None = None, streaming: bool = False) -> Source:
    """Find out what a dataset's name means, and open it.

    In this order: an existing file; an existing folder (of `save_to_disk`, or of data
    files), perhaps with ``:split``; a URL; a Hub id ``name``, ``name:split`` or
    ``name:config:split``.

    Args:
        given: The name, a dataset that is open already, or a list of rows.
        split: Which split of a folder or Hub dataset.
        streaming: Read a Hub dataset without downloading it whole first.

    Raises:
        DataError: If there is no such dataset, or it has several splits and none is named.
        InputError: If a split is named twice, or for a file, which has none; if the argument
            is nothing that holds rows.
    """
    if not isinstance(given, str | Path):
        return _open_object(given, split)
    name = str(given)
    if Path(name).is_file() or "://" in name:
        if split is not None:
            raise InputError.of(
                saw=f"split={split!r} for the file {name}",
                expected="no split, since a file has none",
                cure="leave split out, or name the split's file",
            )
        return _open_file(name)
    folder, _, named = name.rpartition(":")
    if Path(name).is_dir():
        return _open_folder(Path(name), name, split, streaming)
    if folder and Path(folder).is_dir():
        return _open_folder(Path(folder), name, _one_split(named, split), streaming)
    if data_suffix(name) or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise DataError.of(
            saw=f"no file or folder {name!r}",
            expected="a dataset file, a folder, a URL or a Hub id",
            cure="check the path",
        )
    return _open_hub(name, split, streaming)


def _open_object(given: Any, split: str | None) -> Source:
    if isinstance(given, Dataset | IterableDataset | DatasetDict | IterableDatasetDict):
        return Source("dataset", rows_of("dataset", _choose_split(given, "dataset", split)))
    listed = isinstance(given, Sequence) and not isinstance(given, bytes)
    if not listed or (given and not any(isinstance(row, Mapping) for row in given)):
        raise InputError.of(
            saw=f"a dataset of type {type(given).__name__}",
            expected="a path, a URL, a Hub id, a datasets object, or a list of rows (mappings)",
            cure="for a DataFrame, pass table.to_dict('records')",
        )
    if split is not None:
        raise InputError.of(
            saw=f"split={split!r} for a list of rows",
            expected="no split",
            cure="leave the split out",
        )

    def rows() -> Generator[RawRow]:
        for number, row in enumerate(given, start=1):
            yield RawRow("list", number, row, not_an_object(row))

    return Source("list", rows)


def _open_file(name: str) -> Source:
    bare = name.split("?", maxsplit=1)[0]
    if data_suffix(bare) is None:
        raise DataError.of(
            saw=f"{name}, whose ending says nothing about its format",
            expected=f"one of {', '.join(SUFFIXES)}, each perhaps with .gz",
            cure="rename or convert the file",
        )
    short = Path(bare).name
    try:
        local = Path(name) if "://" not in name else _download(name)
    except Exception as error:
        raise _unreachable(name, error) from None
    return Source(name, lambda: read_file(local, short), _separator_notes(local, short))


def _separator_notes(path: Path, name: str) -> tuple[str, ...]:
    """What to say of a CSV file whose columns no comma separates."""
    if data_suffix(name) != ".csv":
        return ()
    try:
        separator = csv_separator(path, name)
    except (OSError, EOFError, zlib.error, csv.Error):
        return ()  # reading the rows says what is wrong
    return () if separator == "," else (f"columns read as separated by {SEPARATORS[separator]}",)


def _download(url: str) -> Path:
    """A local copy: of web pages for this process, of other protocols in the `datasets` cache."""
    if not url.startswith(("http://", "https://")):
        with quiet():
            return Path(str(datasets.DownloadManager().download(url)))
    target = scratch_folder() / uuid.uuid4().hex
    with httpx2.stream("GET", url, follow_redirects=True, timeout=_TIMEOUT_S) as response:
        response.raise_for_status()
        with target.open("wb") as stream:
            for chunk in response.iter_bytes():
                stream.write(chunk)
    return target


def _open_folder(folder: Path, name: str, split: str | None, streaming: bool) -> Source:
    if (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file():
        try:
            saved = datasets.load_from_disk(str(folder))
        except Exception as error:
            raise _unreachable(name, error) from None
        return Source(name, rows_of(name, _choose_split(saved, name, split)))
    read = _of_files(str(folder), None, name, split)
    return read or _load(name, str(folder), None, split, streaming)


def _of_files(path: str, config: str | None, name: str, split: str | None) -> Source | None:
    """The data files of a folder or of the Hub, read by our own readers, which lose nothing.

    `datasets` finds out which files are of which split. None for anything else than rows
    in files of known endings whose types nobody declares.
    """
    try:
        with quiet():
            builder = datasets.load_dataset_builder(path, config)
    except Exception:
        return None  # loading it says what is wrong
    files = builder.config.data_files
    declared = builder.info.features or getattr(builder.config, "features", None)
    if not files or declared is not None:
        return None
    if not all(data_suffix(str(file)) for part in files.values() for file in part):
        return None
    chosen = _named_split(list(map(str, files)), name, split)
    try:
        paths = [_fetched(str(file)) for file in files[chosen]]
    except Exception as error:
        raise _unreachable(name, error) from None

    def rows() -> Generator[RawRow]:
        for local, short in paths:
            yield from read_file(local, short)

    notes = {note for local, short in paths for note in _separator_notes(local, short)}
    return Source(name, rows, tuple(sorted(notes)))


def _fetched(file: str) -> tuple[Path, str]:
    """A data file on this machine, and its own name."""
    local = _download(file) if "://" in file else Path(file)
    return local, Path(file.split("?", maxsplit=1)[0]).name


def _open_hub(name: str, split: str | None, streaming: bool) -> Source:
    parts = name.split(":")
    if len(parts) > _HUB_PARTS or not all(parts):
        raise InputError.of(
            saw=f"dataset {name!r}",
            expected="a path, a URL, or a Hub id: name, name:split or name:config:split",
            cure="write at most two colons, and nothing empty between them",
        )
    if len(parts) > 1:
        split = _one_split(parts[-1], split)
    config = parts[1] if len(parts) == _HUB_PARTS else None
    read = None if streaming else _of_files(parts[0], config, name, split)
    return read or _load(name, parts[0], config, split, streaming)


def _load(name: str, path: str, config: str | None, split: str | None, streaming: bool) -> Source:
    try:
        with quiet():
            loaded = datasets.load_dataset(path, config, split=split, streaming=streaming)
    except Exception as error:
        raise _unreachable(name, error) from None
    return Source(name, rows_of(name, _choose_split(loaded, name, None)))


def _choose_split(loaded: Any, name: str, split: str | None) -> Any:
    if not isinstance(loaded, DatasetDict | IterableDatasetDict):
        if split is not None and str(getattr(loaded, "split", None)) != split:
            raise InputError.of(
                saw=f"split {split!r} of {name}, which is a single table",
                expected="no split",
                cure="leave the split out",
            )
        return loaded
    return loaded[_named_split(list(loaded), name, split)]


def _named_split(names: Sequence[str], name: str, split: str | None) -> str:
    if split is None and len(names) == 1:
        return names[0]
    if split is None or split not in names:
        raise DataError.of(
            saw=f"{name} with the splits {', '.join(names)}"
            + (f", none of which is {split!r}" if split else ""),
            expected="the name of one split",
            cure=f"name it, e.g. split={names[0]!r} or NAME:{names[0]}",
        )
    return split


def _one_split(named: str, split: str | None) -> str:
    if split is not None and split != named:
        raise InputError.of(
            saw=f"two splits, {named!r} in the name and split={split!r}",
            expected="one split",
            cure="leave one of them out",
        )
    return named


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


def _unreachable(name: str, error: Exception) -> DataError:
    cause = error.__cause__ if error.__cause__ is not None else error
    lines = str(cause).strip().splitlines() or [type(cause).__name__]
    return DataError.of(
        saw=f"{name!r} cannot be loaded ({lines[0]})",
        expected="an existing dataset file, folder, URL or Hub id",
        cure="check the name, its split and your access to it",
    )
