"""What one pass over a dataset sees: columns read and not read, and what was changed."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from prefstage.data.faults import RowFault
from prefstage.data.json_text import messages_in

_SHOWN_NAMES = 20
_STAND_IN = [{"role": "user", "content": ""}, {"role": "assistant", "content": ""}]


@dataclass
class Observations:
    """The account of one pass that readers fill as they go.

    Attributes:
        columns: Every column met, in order.
        used: The columns that some row was read from.
        parsed: By column: rows whose messages were written as JSON text.
        systems: By column other than `system`: rows whose system turn it gave.
        blank_systems: System turns without text, left out.
        templated: By mark of a chat template: rows whose texts hold it.
        annotators: Names of the first annotators met, two at most.
        nulls: Rows whose tools or tool calls hold nulls.
        more: What readers of single formats have to say.
    """

    columns: dict[str, None] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    parsed: Counter[str] = field(default_factory=Counter)
    systems: Counter[str] = field(default_factory=Counter)
    blank_systems: int = 0
    templated: Counter[str] = field(default_factory=Counter)
    annotators: set[str] = field(default_factory=set)
    nulls: int = 0
    more: list[str] = field(default_factory=list)

    def unused(self) -> tuple[str, ...]:
        """The columns that no row was read from."""
        return tuple(name for name in self.columns if name not in self.used)

    def warnings(self) -> list[str]:
        """What makes training go wrong, and is said at once."""
        return [_templated_note(self.templated)] if self.templated else []

    def notes(self) -> list[str]:
        """What a report has to say of the pass."""
        notes = [*self.warnings(), *self.more]
        if self.parsed:
            notes.append(f"messages written as JSON text, parsed: {_counts(self.parsed)}")
        if self.systems:
            notes.append(f"system turns read from {_counts(self.systems)}")
        if self.blank_systems:
            notes.append(f"{self.blank_systems} system turns without text left out")
        if self.nulls:
            notes.append(
                f"{self.nulls} rows hold nulls inside tools or tool calls, which templates render; "
                "where they only pad objects (as to_json of datasets and pandas writes them), "
                "load the file that they were made from, or remove them"
            )
        unused = self.unused()
        if unused:
            notes.append(f"columns not used: {_names(unused)}")
        return notes


class SourceRow(Mapping[str, Any]):
    """One row under its roles, which notes the columns that are read.

    Looking for a name is no reading; taking its value is. Text that spells messages as JSON
    comes out as the messages.

    Args:
        values: The row, by role (or by column where a column has no role).
        columns: Role to column, where they differ.
        observations: The account of the pass; None for a row that is only looked at, where
            messages stand for a text of messages that cannot be parsed.
    """

    def __init__(
        self,
        values: Mapping[str, Any],
        columns: Mapping[str, str] | None = None,
        observations: Observations | None = None,
    ) -> None:
        self._values, self._columns = values, columns or {}
        self.observations = observations
        self._parsed: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        """The value of a role or column, which is noted as read."""
        value = self._values[name]
        column = self._columns.get(name, name)
        if self.observations is not None:
            self.observations.used.add(column)
        if not isinstance(value, str):
            return value
        if name not in self._parsed:
            self._parsed[name] = self._parse(value, column)
        return self._parsed[name]

    def __iter__(self) -> Iterator[str]:
        """The names."""
        return iter(self._values)

    def __len__(self) -> int:
        """How many names there are."""
        return len(self._values)

    def __contains__(self, name: object) -> bool:
        """Whether the row has a name; not a reading."""
        return name in self._values

    def peek(self, name: str) -> Any:
        """A value as it stands, or None, without noting it as read."""
        return self._values.get(name)

    def raw(self) -> dict[str, Any]:
        """The row under its own columns, as it stands in its source; not a reading."""
        return {self._columns.get(name, name): value for name, value in self._values.items()}

    def _parse(self, text: str, column: str) -> Any:
        try:
            messages = messages_in(text, column)
        except RowFault:
            if self.observations is not None:
                raise
            return _STAND_IN  # so that the format is recognised, and its reader says the fault
        if messages is None:
            return text
        if self.observations is not None:
            self.observations.parsed[column] += 1
        return [messages] if isinstance(messages, Mapping) else messages


def _templated_note(marks: Counter[str]) -> str:
    rows, (mark, _) = marks.total(), marks.most_common(1)[0]
    return (
        f"WARNING: {rows} rows hold text that a chat template has written already (such as "
        f"{mark}); the model's template writes its turns around it again, so that turn heads "
        "stand twice: give the messages, or the bare texts without these marks"
    )


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{name} ({rows} rows)" for name, rows in counter.items())


def _names(names: tuple[str, ...]) -> str:
    more = len(names) - _SHOWN_NAMES
    return ", ".join(map(str, names[:_SHOWN_NAMES])) + (f" and {more} more" if more > 0 else "")
