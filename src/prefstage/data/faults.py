"""What is wrong with one row, and the account of a whole load."""

from array import array
from dataclasses import dataclass, field
from typing import Any

_SHOWN_CHARACTERS = 60


class RowFault(Exception):  # noqa: N818 - a finding about a row; DataError is what users see
    """One row cannot be read; raised inside readers, never shown to users as it is.

    Attributes:
        field: The column, with a path into it where that helps (``chosen[1].role``).
        saw: What stood there.
        expected: What would have been right.
        cure: What to do, as an imperative.
    """

    def __init__(self, field: str, *, saw: str, expected: str, cure: str) -> None:
        super().__init__(f"{field}: {saw}; expected {expected}; {cure}")
        self.field = field
        self.saw = saw
        self.expected = expected
        self.cure = cure


@dataclass(frozen=True)
class BadRow:
    """One row that could not be read: where it stands, why, and what to do."""

    file: str
    row: int
    field: str
    saw: str
    expected: str
    cure: str

    @classmethod
    def of(cls, file: str, row: int, fault: RowFault) -> "BadRow":
        """The finding about one row, at its place."""
        return cls(file, row, fault.field, fault.saw, fault.expected, fault.cure)

    def __str__(self) -> str:
        """One clause: place, what was seen, what was expected, what to do."""
        place = f"{self.file} row {self.row}, field {self.field!r}"
        return f"{place}: saw {self.saw}, expected {self.expected} ({self.cure})"


@dataclass
class RowPlaces:
    """Where the rows that were kept stand in their files: a few bytes a row.

    Attributes:
        files: Names of the files, in the order in which they were read.
        file_of: Place in `files` of each row's.
        numbers: Each row's number in its file.
    """

    files: list[str] = field(default_factory=list)
    file_of: "array[int]" = field(default_factory=lambda: array("L"))
    numbers: "array[int]" = field(default_factory=lambda: array("Q"))

    def add(self, file: str, number: int) -> None:
        """Note the place of the next row that is kept."""
        if not self.files or self.files[-1] != file:
            self.files.append(file)
        self.file_of.append(len(self.files) - 1)
        self.numbers.append(number)


@dataclass
class LoadReport:
    """What a load did, for people and for run manifests.

    Attributes:
        source: What was asked for.
        format: The recognised (or given) format's name.
        rows_read: Rows met in the source, good and bad.
        rows_kept: Rows that became pairs or candidates.
        quarantined: Rows written to `quarantine_file` instead.
        quarantine_file: Where they went, or None.
        ties: Pairs kept with agreement ½.
        unused_columns: Columns of the source that no row was read from.
        notes: What else a reader should know (how labels were read, duplicate prompts...).
        places: Where the rows that were kept stand in their files.
    """

    source: str
    format: str
    rows_read: int = 0
    rows_kept: int = 0
    quarantined: int = 0
    quarantine_file: str | None = None
    ties: int = 0
    unused_columns: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)
    places: RowPlaces = field(default_factory=RowPlaces, repr=False, compare=False)

    def place_of(self, index: int, rows: int) -> tuple[str, int]:
        """Where a row of the set stands in its file.

        Args:
            index: Of the row in the set.
            rows: How many the set has.

        Returns:
            File and row number; where rows were joined while loading, the source and the place
            in the set, from 1.
        """
        if len(self.places.numbers) != rows:
            return self.source, index + 1
        places = self.places
        return places.files[places.file_of[index]], places.numbers[index]

    def __str__(self) -> str:
        """A few lines for a terminal."""
        lines = [f"{self.source}: read as {self.format}; {self.rows_kept} of {self.rows_read} rows"]
        if self.quarantined:
            lines.append(f"{self.quarantined} bad rows written to {self.quarantine_file}")
        if self.ties:
            lines.append(f"{self.ties} ties kept with agreement 0.5")
        return "\n".join([*lines, *self.notes])


def show(value: Any) -> str:
    """A short, single-line picture of a value for an error message."""
    text = " ".join(repr(value).split())
    short = text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…"
    return short if isinstance(value, str) else f"{type(value).__name__} {short}"
