"""Rows on their way in: parsed without a loss, faulted by name, their labels read, and counted."""

import math
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast, get_args

from prefstage.core import DataError, InputError, parse_json as parse_plain_json

_SHOWN_CHARACTERS = 60
_SHOWN_NAMES = 20
_MOST_COLUMNS = 10_000
WARNING = "WARNING"

# Which of two responses a label means: declared, spelled out, or read by position and said so.
Verdict = Literal["first", "second", "tie"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
_WORDS: dict[Verdict, tuple[str, ...]] = {
    "first": ("a", "first", "left", "model_a", "assistant_a", "winner_model_a", "[[a]]"),
    "second": ("b", "second", "right", "model_b", "assistant_b", "winner_model_b", "[[b]]"),
    "tie": (
        *("tie", "draw", "equal", "same", "both", "neither", "c", "[[c]]"),
        *("both_bad", "tie (bothbad)", "winner_tie"),
    ),
}
_DESIRABLE = {
    **dict.fromkeys(("true", "1", "desirable"), True),
    **dict.fromkeys(("false", "0", "undesirable"), False),
}
_CURE = "say what each value means, e.g. labels={0: 'first', 1: 'second', 2: 'tie'}"


class RowFault(ValueError):  # noqa: N818 - a finding about a row; DataError is what users see
    """One row cannot be read; raised inside readers, never shown to users as it is.

    Attributes:
        field: The column, with a path into it where that helps (``chosen[1].role``).
        saw: What stood there.
        expected: What would have been right.
        cure: What to do, as an imperative.
    """

    def __init__(self, field: str, *, saw: str, expected: str, cure: str) -> None:
        super().__init__(f"{field}: {saw}; expected {expected}; {cure}")
        self.field, self.saw, self.expected, self.cure = field, saw, expected, cure

    @classmethod
    def unless(cls, holds: object, field: str, *, saw: str, expected: str, cure: str) -> None:
        """Raise the fault unless something holds; for texts that are made in no time."""
        if not holds:
            raise cls(field, saw=saw, expected=expected, cure=cure)

    def at(self, file: str, row: int) -> str:
        """One clause: where the row stands, what was seen, what was expected, what to do."""
        return (
            f"{file} row {row}, field {self.field!r}: "
            f"saw {self.saw}, expected {self.expected} ({self.cure})"
        )


@dataclass(frozen=True)
class RawRow:
    """One row as it stands in its file: a mapping, or why it is none.

    Attributes:
        file: The file's name (or the dataset's).
        number: Its position, from 1; for lines of JSON the line's number.
        values: The row, or its text where it could not be parsed.
        fault: Why it could not be parsed, or None.
    """

    file: str
    number: int
    values: Any
    fault: RowFault | None = None


def unique_keys(pairs: list[tuple[str, Any]], field: str = "") -> dict[str, Any]:
    """The object of a list of keys and values, for `json` to call.

    Args:
        pairs: Keys and values, in order.
        field: Where the object stands, or empty if it is a row itself.

    Raises:
        RowFault: If a key stands twice, so that one of two values would be lost.
    """
    values = dict(pairs)
    if len(values) < len(pairs):
        key = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise RowFault(
            field or key,
            saw=f"the key {key!r} twice in one object",
            expected="every key once",
            cure="rename or remove one of the two: only one of their values could be kept",
        )
    return values


def parse_json(text: str, field: str = "") -> Any:
    """Values of JSON text: numbers exactly, keys in their order, none of them twice.

    Args:
        text: The text.
        field: Where it stands, or empty if it is a row itself.

    Raises:
        ValueError: As `core.parse_json`.
        RowFault: As `unique_keys`.
    """
    return parse_plain_json(text, unique=lambda pairs: unique_keys(pairs, field))


def show(value: Any) -> str:
    """A short, single-line picture of a value for an error message."""
    text = " ".join(repr(value).split())
    short = text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…"
    return short if isinstance(value, str) else f"{type(value).__name__} {short}"


def expect(holds: bool, field: str, value: Any, expected: str, cure: str) -> None:
    """Fault a value that is not what its field needs.

    Args:
        holds: Whether it is.
        field: The column, with a path into it where that helps.
        value: What stands there.
        expected: What would have been right.
        cure: What to do, as an imperative.

    Raises:
        RowFault: If it is not.
    """
    if not holds:
        raise RowFault(
            field,
            saw="nothing" if value is None else show(value),
            expected=expected,
            cure=cure,
        )


def not_an_object(values: Any) -> RowFault | None:
    """What is wrong with a row that is no mapping, or too wide a one; None for one that is."""
    if isinstance(values, Mapping):
        return too_wide(len(values))
    return RowFault(
        "(row)",
        saw=show(values),
        expected="an object with named fields",
        cure="write each row as {column: value}",
    )


def too_wide(columns: int) -> RowFault | None:
    """The fault of rows of more columns than anybody reads by name; None for fewer."""
    return (
        None
        if columns <= _MOST_COLUMNS
        else RowFault(
            "(row)",
            saw=f"{columns:,} columns",
            expected=f"at most {_MOST_COLUMNS:,}",
            cure="leave out those that hold neither prompts, responses nor what is said of them",
        )
    )


def not_utf8(what: str) -> RowFault:
    """The fault of a row with a text that is no UTF-8; `what` says which byte, and where."""
    return RowFault(
        "(row)",
        saw=f"{what}, which is not UTF-8",
        expected="UTF-8 text",
        cure="convert the file, e.g. iconv -f latin1 -t utf-8",
    )


@dataclass
class LoadReport:
    """What a load did, for people and for run manifests.

    Attributes:
        source: What was asked for.
        format: The recognised (or requested) format's name.
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
    # Where the kept rows stand in their files. Arrays of machine integers: a list of tuples
    # would take more memory than the rows' own index of a large dataset.
    _files: dict[str, int] = field(default_factory=dict, repr=False, compare=False)
    _file_of: "array[int]" = field(default_factory=lambda: array("L"), repr=False, compare=False)
    _numbers: "array[int]" = field(default_factory=lambda: array("Q"), repr=False, compare=False)

    def keep(self, file: str, number: int) -> None:
        """Count a row that is kept, and note where it stands.

        Args:
            file: The file's name.
            number: Of the row in it, from 1.
        """
        self.rows_kept += 1
        self._file_of.append(self._files.setdefault(file, len(self._files)))
        self._numbers.append(number)

    def position_of(self, index: int, rows: int) -> tuple[str, int]:
        """Where a row of the set stands in its file.

        Args:
            index: Of the row in the set.
            rows: How many the set has.

        Returns:
            File and row number; where rows were joined while loading, the source and the
            position in the set, from 1.
        """
        return (
            (list(self._files)[self._file_of[index]], self._numbers[index])
            if len(self._numbers) == rows
            else (self.source, index + 1)
        )

    def of_rows(self, indices: Sequence[int], rows: int) -> "LoadReport":
        """The report of a part of the set; what was counted while loading stays.

        Args:
            indices: Of the part's rows in the set.
            rows: How many the set has.

        Returns:
            A copy that knows where the part's rows stand, where this report does.
        """
        known = indices if len(self._numbers) == rows else ()
        return replace(
            self,
            notes=list(self.notes),
            _file_of=array("L", (self._file_of[index] for index in known)),
            _numbers=array("Q", (self._numbers[index] for index in known)),
        )

    def __str__(self) -> str:
        """A few lines for a terminal."""
        head = f"{self.source}: read as {self.format}; {self.rows_kept} of {self.rows_read} rows"
        counts = {
            f"{self.quarantined} bad rows written to {self.quarantine_file}": self.quarantined,
            f"{self.ties} ties kept with agreement 0.5": self.ties,
        }
        return "\n".join([head, *applicable(counts), *self.notes])


@dataclass
class Observations:
    """What one pass over a dataset sees: columns read and not read, and what was changed.

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

    def notes(self) -> list[str]:
        """What a report has to say of the pass; what makes training go wrong is a WARNING."""
        mark = max(self.templated, key=self.templated.__getitem__, default="")
        unused = list(map(str, self.unused()))
        more = f" and {len(unused) - _SHOWN_NAMES} more" if len(unused) > _SHOWN_NAMES else ""
        counts = {
            f"{WARNING}: {self.templated.total()} rows hold text that a chat template has written "
            f"already (such as {mark}); the model's template writes its turns around it again, so "
            "that turn heads stand twice: give the messages, or the bare texts without these "
            "marks": self.templated,
            **dict.fromkeys(self.more, True),
            f"messages written as JSON text, parsed: {_counts(self.parsed)}": self.parsed,
            f"system turns read from {_counts(self.systems)}": self.systems,
            f"{self.blank_systems} system turns without text left out": self.blank_systems,
            f"{self.nulls} rows hold nulls inside tools or tool calls, which templates render; "
            "where they only pad objects (as to_json of datasets and pandas writes them), "
            "load the file that they were made from, or remove them": self.nulls,
            f"columns not used: {', '.join(unused[:_SHOWN_NAMES])}{more}": unused,
        }
        return applicable(counts)


def applicable(notes: Mapping[str, Any]) -> list[str]:
    """The notes that have something to count."""
    return [note for note, count in notes.items() if count]


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{name} ({rows} rows)" for name, rows in counter.items())


@dataclass(frozen=True)
class LabelScheme:
    """What each label value says: the first response is better, the second, or a tie.

    Attributes:
        verdicts: Spelled label to verdict.
        reason: Where this reading comes from, for the report.
        seen: The labels met when the scheme was made, for a short report.
    """

    verdicts: Mapping[str, Verdict]
    reason: str
    seen: tuple[str, ...] = ()

    def __str__(self) -> str:
        """For reports and errors: ``0 = first, 1 = second, 2 = tie (why)``."""
        labels = (
            f"{label} = {verdict}"
            for label, verdict in self.verdicts.items()
            if not self.seen or label in self.seen
        )
        return f"{', '.join(labels)} ({self.reason})"


def spell(label: Any) -> str:
    """One spelling for a label whatever its type: 1, 1.0, "1" and " 1 " are the same."""
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    return " ".join(str(label).split()).lower()


def read_desirable(label: Any) -> bool:
    """Whether the label of one response says that it is desirable.

    Raises:
        RowFault: If it is none of the words and numbers for either.
    """
    word = spell(label)
    expect(
        word in _DESIRABLE,
        *("label", label, "true (desirable) or false (undesirable); 1 and 0 mean the same"),
        "write true or false; a score is no label: choose a threshold",
    )
    return _DESIRABLE[word]


def declared_scheme(labels: Mapping[Any, str]) -> LabelScheme:
    """The scheme that a user declares, e.g. ``{0: "tie", 1: "first", 2: "second"}``.

    Raises:
        InputError: If a value is no verdict, or nothing says first or second.
    """
    InputError.unless(
        {"first", "second"} & set(labels.values()) and set(labels.values()) <= set(VERDICTS),
        saw=f"labels={dict(labels)}",
        expected=f"each label value mapped to one of {', '.join(VERDICTS)}",
        cure="write e.g. labels={'A': 'first', 'B': 'second', 'C': 'tie'}",
    )
    return LabelScheme(
        {spell(label): cast("Verdict", v) for label, v in labels.items()}, "as declared"
    )


def infer_scheme(
    labels: Iterable[Any], names: tuple[str, str], *, column: str, source: str
) -> LabelScheme:
    """Read the meaning of labels from their values and the response columns' names.

    Words (``A``, ``model_b``, ``tie``) and column names speak for themselves. Numbers are
    read by the columns' own numbers (``output_1``/``output_2`` with 1/2), or for lettered
    columns by position (0/1 or 1/2), which the report says. Anything else, above all
    three different numbers, has no one meaning and is an error.

    Args:
        labels: Values of the first rows.
        names: The two response columns, in order.
        column: The label column, for errors.
        source: The dataset, for errors.

    Raises:
        DataError: If the labels can be read in more than one way.
    """
    met = {
        spell(label)
        for label in labels
        if label not in (None, "")
        and not (isinstance(label, float) and math.isnan(label))  # what tables write for none
    }
    seen, words, numbers = tuple(sorted(met)), _words(names), _ends(names)
    if words.keys() & met:  # a label that is no such word is then a bad row
        return LabelScheme(words, "by their words", seen)
    pairs, reason = [numbers], f"by the names {names[0]!r} and {names[1]!r}"
    if not numbers:  # 1 alone may be the first of two as well as the second
        pairs = [p for p, telling in ((("0", "1"), "0"), (("1", "2"), "2")) if telling in met]
        reason = "by position; if wrong, pass labels="
    for pair in pairs:
        if met and met <= set(pair):
            return LabelScheme({pair[0]: "first", pair[1]: "second"}, reason, pair)
    shown = ", ".join(seen[:6]) + (", …" if seen[6:] else "")
    raise DataError.of(
        saw=f"{source}: column {column!r} with the labels {shown or 'nothing'}, which datasets "
        "use with different meanings",
        expected=f"words (A, B, tie), or values that name {names[0]!r} and {names[1]!r}",
        cure=_CURE,
    )


def _words(names: tuple[str, str]) -> dict[str, Verdict]:
    sides: tuple[Verdict, Verdict] = ("first", "second")
    return {
        **{word: verdict for verdict in VERDICTS for word in _WORDS[verdict]},
        **{spell(name): side for name, side in zip(names, sides, strict=True)},
        **{
            f"{stem}_{end}": side
            for end, side in zip(_ends(names), sides, strict=False)
            for stem in ("model", "response", "output", "answer", "assistant")
        },
    }


def _ends(names: tuple[str, str]) -> tuple[str, ...]:
    # The numbers at the ends of both names; nothing if they are none.
    ends = tuple(name[-1] for name in names)
    return ends if all(map(str.isdigit, ends)) else ()
