"""Record sets: pairs, candidates and other records over memory-mapped canonical columns."""

import operator
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, Self, TypeVar, cast, overload

from datasets import Dataset, Features, Json, List, Value

from prefstage.data.records import (
    Candidates,
    Conversation,
    Generation,
    Pair,
    Record,
    Unpaired,
    Vote,
    without_nulls,
)
from prefstage.data.rows import LoadReport
from prefstage.data.storage import (
    MESSAGE_COLUMNS,
    CanonicalRows,
    DiskNumbers,
    Row,
    build_dataset,
    count_different,
    hash_rows,
    save_dataset,
    stored_messages,
    text_number,
)

R = TypeVar("R", bound=Record)

_TEXT, _NUMBER, _MESSAGES = Value("string"), Value("float64"), "messages"
# Canonical columns of every kind of record, in the order in which they are stored.
COLUMNS: Mapping[type[Any], Mapping[str, Any]] = {
    Pair: {
        **{"prompt_id": _TEXT, "prompt": _MESSAGES, "chosen": _MESSAGES, "rejected": _MESSAGES},
        **{"score_chosen": _NUMBER, "score_rejected": _NUMBER},
        **{"source_chosen": _TEXT, "source_rejected": _TEXT},
        **{"agreement": _NUMBER, "annotator": _TEXT, "judge_probability": _NUMBER},
        "votes": List({"annotator": _TEXT, "preference": _NUMBER}),
    },
    Candidates: {
        **{"prompt_id": _TEXT, "prompt": _MESSAGES},
        **{"responses": List(_TEXT), "sources": List(_TEXT), "scores": List(_NUMBER)},
        "generations": List(
            {"thought": _TEXT, "token_ids": List(Value("int32")), "tokenizer": _TEXT}
        ),
    },
    Unpaired: {
        **{"prompt_id": _TEXT, "prompt": _MESSAGES, "completion": _MESSAGES},
        **{"label": Value("bool"), "score": _NUMBER, "source": _TEXT},
    },
    Conversation: {"prompt_id": _TEXT, "prompt": _MESSAGES, "completion": _MESSAGES},
}


def to_row(record: Record) -> Row:
    """A record as a mapping of its canonical columns.

    Numbers become floats and empty fields of messages go, as storing makes them: what is
    built in memory hashes as what is read back.
    """
    cells = ((name, getattr(record, name)) for name in COLUMNS[type(record)])
    return {name: _WRITE[name](cell) if name in _WRITE else cell for name, cell in cells}


def _number(value: float | None) -> float | None:
    return None if value is None else float(value)


_WRITE: Mapping[str, Callable[[Any], Any]] = {
    **dict.fromkeys(
        MESSAGE_COLUMNS,
        lambda messages: [
            without_nulls(message) if None in message.values() else message for message in messages
        ],
    ),
    **dict.fromkeys(("responses", "sources"), list),
    "scores": lambda scores: list(map(_number, scores)),
    **{
        name: _number
        for cells in COLUMNS.values()
        for name, cell in cells.items()
        if cell is _NUMBER
    },
    "votes": lambda votes: [vars(vote) | {"preference": float(vote.preference)} for vote in votes],
    "generations": lambda generations: [
        how and vars(how) | {"token_ids": list(how.token_ids)} for how in generations
    ],
}


def from_row(kind: type[R], row: Mapping[str, Any]) -> R:
    """The record that a canonical row holds; null fields that Arrow added to messages go."""
    cells: dict[str, Any] = {name: row.get(name) for name in COLUMNS[kind]}
    return kind(
        **{name: _READ[name](cell) if name in _READ else cell for name, cell in cells.items()}
    )


_READ: Mapping[str, Callable[[Any], Any]] = {
    **dict.fromkeys(MESSAGE_COLUMNS, stored_messages),
    **dict.fromkeys(("responses", "sources", "scores"), tuple),
    "votes": lambda cell: tuple(Vote(**vote) for vote in cell or ()),
    # Arrow's struct that holds nothing but nulls comes back without its fields.
    "generations": lambda cell: tuple(
        None if stored is None else Generation.of(stored) for stored in cell or ()
    ),
}


def features_of(kind: type[Record], fields: Mapping[str, bool]) -> Features:
    """Arrow types of the columns of a kind of record.

    Args:
        kind: Of record.
        fields: The messages' fields in their order, and whether each is text; others (tool
            calls and the like) are stored as JSON, since their shapes differ.
    """
    texts = fields or dict.fromkeys(("role", "content"), True)
    messages = List({name: _TEXT if is_text else Json() for name, is_text in texts.items()})
    return Features(
        {name: messages if cell is _MESSAGES else cell for name, cell in COLUMNS[kind].items()}
    )


class RecordSet(Generic[R]):
    """Records of one kind over a memory-mapped dataset with their canonical columns.

    A slice is a set over the same file. `PairSet`, `CandidateSet`, `UnpairedSet` and
    `ConversationSet` are its uses.

    Args:
        dataset: With the columns of `COLUMNS`, and perhaps more.
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
