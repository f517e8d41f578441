"""What is wrong with one row, and the account of a whole load."""

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
