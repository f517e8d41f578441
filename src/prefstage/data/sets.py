"""Record sets over memory-mapped canonical columns, and the sources that rows come from."""

import operator
from array import array
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, Self, TypeAlias, cast, overload

import datasets
import httpx2
from datasets import (
    Dataset,
    DatasetDict,
    IterableDataset,
    IterableDatasetDict,
)

from prefstage.core import DataError, InputError, reason_of
from prefstage.data.raw_rows import (
    SEPARATORS,
    SUFFIXES,
    csv_separator,
    data_suffix,
    dataset_rows,
    read_file,
)
from prefstage.data.records import (
    Candidates,
    Conversation,
    Pair,
    Record,
    Unpaired,
)
from prefstage.data.rows import LoadReport, RawRow, not_an_object
from prefstage.data.storage import (
    CanonicalRows,
    DiskNumbers,
    R,
    build_dataset,
    count_different,
    features_of,
    from_row,
    hash_rows,
    quiet,
    save_dataset,
    scratch_file,
    text_number,
    to_row,
)

_HUB_PARTS = 3


class RecordSet(Generic[R]):
    """Records of one kind over a memory-mapped dataset with their canonical columns.

    A slice is a set over the same file. `PairSet`, `CandidateSet`, `UnpairedSet` and
    `ConversationSet` are its uses.

    Args:
        dataset: With the columns of `storage.COLUMNS`, and perhaps more.
        report: What loading did; None for records made in memory.

    Attributes:
        dataset: The columns; opens in TRL, pandas and the Hub viewer.
        report: What loading did.
        kind: The type of its records.
        wanted: What they are called in a report, and by a reader of formats.
    """

    kind: ClassVar[type[Any]]
    wanted: ClassVar[Literal["pairs", "candidates", "unpaired", "conversations"]]

    def __init_subclass__(cls, kind: type[Any], wanted: Any) -> None:
        """Note the kind of a set's records, and what they are called."""
        cls.kind, cls.wanted = kind, wanted

    def __init__(self, dataset: Dataset, report: LoadReport | None = None) -> None:
        self.dataset = dataset
        self.report = report or LoadReport("memory", self.wanted, len(dataset), len(dataset))

    @classmethod
    def of(cls, records: Iterable[R], *, report: LoadReport | None = None) -> Self:
        """Build a set from records as they come; memory stays flat.

        Args:
            records: The records, in order; read once.
            report: Where they come from; None for records made in memory.

        Returns:
            The set.
        """
        dataset, fingerprint = build_dataset(
            map(to_row, records), lambda fields: features_of(cls.kind, fields)
        )
        made = cls(dataset, report)
        made.__dict__["fingerprint"] = fingerprint  # known from writing: not to be hashed later
        return made

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the content: equal records in equal order give equal hashes.

        Neither the file that they came from counts, nor columns that are not canonical.
        """
        return hash_rows(map(to_row, self))

    def __len__(self) -> int:
        """Number of records."""
        return len(self.dataset)

    @overload
    def __getitem__(self, index: int) -> R: ...
    @overload
    def __getitem__(self, index: slice) -> Self: ...
    def __getitem__(self, index: int | slice) -> R | Self:
        """The record at a position, or the set of the records of a slice."""
        return (
            self.select(range(len(self))[index])
            if isinstance(index, slice)
            else cast("R", from_row(self.kind, self._rows[operator.index(index)]))
        )

    def __iter__(self) -> Iterator[R]:
        """The records in order."""
        return (from_row(self.kind, row) for row in self._rows)

    def select(self, indices: Sequence[int]) -> Self:
        """The set of the records at some positions, over the same file.

        Args:
            indices: Positions in this set, in the order that they shall have.

        Returns:
            A set whose report knows where its rows stand.
        """
        return type(self)(self.dataset.select(indices), self.report.of_rows(indices, len(self)))

    def filter(self, keep: Callable[[R], bool]) -> Self:
        """The set of the records that a function keeps, over the same file."""
        return self.select(array("Q", (i for i, record in enumerate(self) if keep(record))))

    def map(self, change: Callable[[R], R]) -> Self:
        """A new set of what a function makes of every record, in order."""
        return type(self).of(
            map(change, self), report=self.report.of_rows(range(len(self)), len(self))
        )

    def repeated_prompts(self) -> int:
        """How many records repeat the prompt of an earlier one; memory stays flat."""
        with DiskNumbers("uint64", map(text_number, self.dataset["prompt_id"])) as prompts:
            return len(self) - count_different(prompts)

    def save(self, path: str | Path) -> None:
        """Write the canonical columns; see `storage.save_dataset`."""
        save_dataset(self.dataset, path)

    @cached_property
    def _rows(self) -> CanonicalRows:
        return CanonicalRows(self.dataset)


class PairSet(RecordSet[Pair], kind=Pair, wanted="pairs"):
    """Preference pairs; see `RecordSet`."""


class CandidateSet(RecordSet[Candidates], kind=Candidates, wanted="candidates"):
    """Prompts with their candidate responses; as loaded, each prompt stands once.

    See `RecordSet`.
    """


class UnpairedSet(RecordSet[Unpaired], kind=Unpaired, wanted="unpaired"):
    """Labelled responses, in TRL's unpaired preference format; see `RecordSet`."""


class ConversationSet(RecordSet[Conversation], kind=Conversation, wanted="conversations"):
    """Conversations, in TRL's prompt-completion format; see `RecordSet`."""


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


# What a dataset can be: a name, an open object, a list of rows, records, or a record set; for
# candidates and prompts a list of names too.
DataSource: TypeAlias = (
    str
    | Path
    | Dataset
    | IterableDataset
    | DatasetDict
    | IterableDatasetDict
    | RecordSet[Any]
    | Sequence[Mapping[str, Any]]
    | Sequence[Record]
    | Sequence[str]
)


def open_source(source: DataSource, *, split: str | None = None, streaming: bool = False) -> Source:
    """Find out what a dataset's name means, and open it.

    In this order: an existing file; an existing folder (of `save_to_disk`, or of data
    files), perhaps with ``:split``; a URL; a Hub id ``name``, ``name:split`` or
    ``name:config:split``.

    Args:
        source: The name, a dataset that is open already, or a list of rows or records.
        split: Which split of a folder or Hub dataset.
        streaming: Read a Hub dataset without downloading it whole first.

    Raises:
        DataError: If there is no such dataset, or it has several splits and none is named.
        InputError: If a split is named twice, or for a file, which has none; if the argument
            is nothing that holds rows.
    """
    if not isinstance(source, str | Path):
        return _open_object(source, split)
    name = str(source)
    if Path(name).is_file() or "://" in name:
        _no_split(split, f"the file {name}", cure="leave split out, or name the split's file")
        DataError.unless(
            data_suffix(name.split("?", maxsplit=1)[0]),
            saw=f"{name}, whose ending says nothing about its format",
            expected=f"one of {', '.join(SUFFIXES)}, each perhaps with .gz",
            cure="rename or convert the file",
        )
        return _of_local(name, [name])
    folder, _, part = (name, "", split) if Path(name).is_dir() else name.rpartition(":")
    if folder and Path(folder).is_dir():
        split = _agreed_split(part, split)
        if any(Path(folder, file).is_file() for file in ("state.json", "dataset_dict.json")):
            with _reaching(name):
                saved = datasets.load_from_disk(folder)
            return _of_dataset(name, saved, split)
        return _load(name, folder, None, split, streaming, whole=True)
    DataError.unless(
        not (data_suffix(name) or name.startswith((".", "/", "~")) or name.count("/") > 1),
        saw=f"no file or folder {name!r}",
        expected="a dataset file, a folder, a URL or a Hub id",
        cure="check the path",
    )
    parts = name.split(":")
    InputError.unless(
        len(parts) <= _HUB_PARTS and all(parts),
        saw=f"dataset {name!r}",
        expected="a path, a URL, or a Hub id: name, name:split or name:config:split",
        cure="write at most two colons, and nothing empty between them",
    )
    split = _agreed_split(parts[-1], split) if len(parts) > 1 else split
    return _load(
        *(name, parts[0], parts[1] if len(parts) == _HUB_PARTS else None, split, streaming),
        whole=not streaming,
    )


def _no_split(split: str | None, what: str, *, cure: str = "leave the split out") -> None:
    InputError.unless(
        split is None,
        saw=f"split={split!r} for {what}",
        expected="no split, since it has none",
        cure=cure,
    )


def _open_object(source: Any, split: str | None) -> Source:
    if isinstance(source, Dataset | IterableDataset | DatasetDict | IterableDatasetDict):
        return _of_dataset("dataset", source, split)
    if isinstance(source, RecordSet):
        _no_split(split, "a record set")
        return _of_dataset(source.report.source, source.dataset, None)
    InputError.unless(
        isinstance(source, Sequence)
        and not isinstance(source, bytes)
        and (not source or any(isinstance(row, Mapping | Record) for row in source)),
        saw="a list of names" if is_names(source) else f"a dataset of type {type(source).__name__}",
        expected="a path, a URL, a Hub id, a datasets object, a record set, or a list of rows "
        "(mappings) or records",
        cure="load them one by one, or pool their responses with load_candidates"
        if is_names(source)
        else "for a DataFrame, pass table.to_dict('records')",
    )
    _no_split(split, "a list of rows")

    def rows() -> Generator[RawRow]:
        for number, item in enumerate(source, start=1):
            row = to_row(item) if isinstance(item, Record) else item
            yield RawRow("list", number, row, not_an_object(row))

    return Source("list", rows)


def is_names(source: Any) -> bool:
    """Whether several datasets are meant: a list of their names."""
    return (
        isinstance(source, list | tuple)
        and bool(source)
        and all(isinstance(name, str | Path) for name in source)
    )


def _of_local(name: str, files: Sequence[str]) -> Source:
    # Data files, fetched where they are not on this machine, under the names that they have.
    with _reaching(name):
        paths = [
            (_download(file) if "://" in file else Path(file), Path(file.split("?")[0]).name)
            for file in files
        ]
    signs = {csv_separator(path, short) for path, short in paths if data_suffix(short) == ".csv"}
    others = sorted(SEPARATORS[sign] for sign in signs - {","})
    return Source(
        name,
        lambda: (row for path, short in paths for row in read_file(path, short)),
        tuple(f"columns read as separated by {other}" for other in others),
    )


def _download(url: str) -> Path:
    # A web page may change between two runs: its copy lives as long as this process. Other
    # protocols name versions, and `datasets` keeps those in its cache.
    if not url.startswith(("http://", "https://")):
        return Path(str(datasets.DownloadManager().download(url)))
    target = scratch_file("download")
    with httpx2.stream("GET", url, follow_redirects=True, timeout=60) as response:
        response.raise_for_status()
        with target.open("wb") as stream:
            stream.writelines(response.iter_bytes())
    return target


def _load(
    name: str, path: str, config: str | None, split: str | None, streaming: bool, *, whole: bool
) -> Source:
    # The data files of a folder or of the Hub are read by our readers, which lose nothing;
    # `datasets` only finds out which files are of which split. It reads anything else than
    # rows in files of known endings whose types nobody declares.
    builder: Any = None
    with suppress(Exception), quiet():  # loading it says what is wrong
        builder = datasets.load_dataset_builder(path, config) if whole else None
    files = (builder and builder.config.data_files) or {}
    known = all(data_suffix(str(file)) for part in files.values() for file in part)
    if files and known and not (builder.info.features or getattr(builder.config, "features", None)):
        names = files[_named_split(list(map(str, files)), name, split)]
        return _of_local(name, list(map(str, names)))
    with _reaching(name):
        loaded = datasets.load_dataset(path, config, split=split, streaming=streaming)
    return _of_dataset(name, loaded, None)


def _of_dataset(name: str, loaded: Any, split: str | None) -> Source:
    if isinstance(loaded, DatasetDict | IterableDatasetDict):
        loaded = loaded[_named_split(list(loaded), name, split)]
    else:
        InputError.unless(
            split in (None, str(getattr(loaded, "split", None))),
            saw=f"split {split!r} of {name}, which is a single table",
            expected="no split",
            cure="leave the split out",
        )
    return Source(name, lambda: dataset_rows(name, loaded))


def _named_split(names: Sequence[str], name: str, split: str | None) -> str:
    chosen = names[0] if split is None and len(names) == 1 else split
    DataError.unless(
        chosen in names,
        saw=f"{name} with the splits {', '.join(names)}"
        + (f", none of which is {split!r}" if split else ""),
        expected="the name of one split",
        cure=f"name it, e.g. split={names[0]!r} or NAME:{names[0]}",
    )
    return str(chosen)


def _agreed_split(part: str | None, split: str | None) -> str | None:
    InputError.unless(
        split in (None, part),
        saw=f"two splits, {part!r} in the name and split={split!r}",
        expected="one split",
        cure="leave one of them out",
    )
    return part


@contextmanager
def _reaching(name: str) -> Iterator[None]:
    # Whatever the libraries raise for foreign files and hosts is one kind of error, without
    # their progress bars before it.
    try:
        with quiet():
            yield
    except Exception as error:
        raise DataError.of(
            saw=f"{name!r} cannot be loaded ({reason_of(error.__cause__ or error)})",
            expected="an existing dataset file, folder, URL or Hub id",
            cure="check the name, its split and your access to it",
        ) from None
