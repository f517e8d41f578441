"""Where rows come from: a file, a folder, a URL, or a dataset of the Hub."""

import sys
import uuid
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import datasets
import httpx2
from datasets import ClassLabel, Dataset, DatasetDict, IterableDataset

from prefstage.core.errors import DataError, InputError
from prefstage.data.raw_rows import SUFFIXES, RawRow, data_suffix, read_file
from prefstage.data.scratch import scratch_folder

_HUB_PARTS = 3
_TIMEOUT_S = 60


@dataclass(frozen=True)
class Source:
    """A dataset that can be read again and again.

    Attributes:
        name: For reports and errors.
        rows: Starts a new reading of all rows.
    """

    name: str
    rows: Callable[[], Generator[RawRow]]


Given: TypeAlias = str | Path | Dataset | IterableDataset
"""How a dataset can be given: by name, or as the object itself."""


def open_source(given: Given, *, split: str | None = None, streaming: bool = False) -> Source:
    """Find out what a dataset's name means, and open it.

    In this order: an existing file; an existing folder (of `save_to_disk`, or of data
    files), perhaps with ``:split``; a URL; a Hub id ``name``, ``name:split`` or
    ``name:config:split``.

    Args:
        given: The name, or a dataset that is open already.
        split: Which split of a folder or Hub dataset.
        streaming: Read a Hub dataset without downloading it whole first.

    Raises:
        DataError: If there is no such dataset, or it has several splits and none is named.
        InputError: If a split is named twice, or for a file, which has none.
    """
    if isinstance(given, Dataset | IterableDataset):
        return _of_dataset("dataset", _choose_split(given, "dataset", split))
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


def _open_file(name: str) -> Source:
    bare = name.split("?", maxsplit=1)[0]
    if data_suffix(bare) is None:
        raise DataError.of(
            saw=f"{name}, whose ending says nothing about its format",
            expected=f"one of {', '.join(SUFFIXES)}, each perhaps with .gz",
            cure="rename or convert the file",
        )
    short = Path(bare).name
    if "://" not in name:
        return Source(name, lambda: read_file(Path(name), short))
    try:
        local = _download(name)
    except Exception as error:
        raise _unreachable(name, error) from None
    return Source(name, lambda: read_file(local, short))


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
        return _of_dataset(name, _choose_split(saved, name, split))
    return _load(name, str(folder), None, split, streaming)


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
    return _load(name, parts[0], config, split, streaming)


def _load(name: str, path: str, config: str | None, split: str | None, streaming: bool) -> Source:
    try:
        with quiet():
            loaded = datasets.load_dataset(path, config, split=split, streaming=streaming)
    except Exception as error:
        raise _unreachable(name, error) from None
    return _of_dataset(name, _choose_split(loaded, name, None))


def _choose_split(loaded: Any, name: str, split: str | None) -> Any:
    if not isinstance(loaded, DatasetDict | datasets.IterableDatasetDict):
        if split is not None and str(getattr(loaded, "split", None)) != split:
            raise InputError.of(
                saw=f"split {split!r} of {name}, which is a single table",
                expected="no split",
                cure="leave the split out",
            )
        return loaded
    names = list(loaded)
    if split is None and len(names) == 1:
        return loaded[names[0]]
    if split not in names:
        raise DataError.of(
            saw=f"{name} with the splits {', '.join(names)}"
            + (f", none of which is {split!r}" if split else ""),
            expected="the name of one split",
            cure=f"name it, e.g. split={names[0]!r} or NAME:{names[0]}",
        )
    return loaded[split]


def _of_dataset(name: str, dataset: Dataset | IterableDataset) -> Source:
    features = dataset.features or {}
    classes = {key: kind for key, kind in features.items() if isinstance(kind, ClassLabel)}

    def rows() -> Generator[RawRow]:
        for number, row in enumerate(dataset, start=1):
            for key, kind in classes.items():
                if row[key] is not None:
                    row[key] = kind.int2str(row[key])
            yield RawRow(name, number, row)

    return Source(name, rows)


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
