"""Which format a dataset has: recognised from its first rows, or as the user says."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from prefstage.core.config import nearest
from prefstage.core.errors import DataError, InputError
from prefstage.data.formats import CONVERSATIONS, FORMATS, UNPAIRED, Format, Row

Wanted = Literal["pairs", "candidates", "unpaired", "conversations"]

_OWN: dict[Wanted, tuple[Format, ...]] = {"unpaired": UNPAIRED, "conversations": CONVERSATIONS}
_LOADERS = {"unpaired": "load_unpaired", "conversations": "load_conversations"}

COLUMN_ROLES = (
    *("prompt", "system", "tools", "chosen", "rejected", "agreement"),
    *("score_chosen", "score_rejected", "source_chosen", "source_rejected", "judge_probability"),
    *("response_a", "response_b", "label", "votes", "votes_a", "votes_b", "votes_tie"),
    *("source_a", "source_b", "score_a", "score_b"),
    *("responses", "sources", "scores", "response", "source", "score"),
    *("completion", "messages", "annotator"),
)
"""What `columns=` can name: the role of each column, on the left of the map."""


def check_columns(columns: Mapping[str, str]) -> None:
    """Refuse roles that nothing reads.

    Raises:
        InputError: Naming the nearest role.
    """
    for role in columns:
        if role not in COLUMN_ROLES:
            guess = nearest(role, list(COLUMN_ROLES))
            raise InputError.of(
                saw=f"columns={{{role!r}: ...}}",
                expected=f"roles among {', '.join(COLUMN_ROLES)}",
                cure=f"did you mean {guess!r}?" if guess else "choose one of them",
            )


def rename(row: Row, columns: Mapping[str, str]) -> dict[str, object]:
    """The row under the roles that a column map gives; other columns keep their names."""
    if not columns:
        return dict(row)
    mapped = {role: row[name] for role, name in columns.items() if name in row}
    rest = {name: value for name, value in row.items() if name not in columns.values()}
    return {**mapped, **{name: value for name, value in rest.items() if name not in mapped}}


def check_mapped(columns: Mapping[str, str], row: Row, source: str) -> None:
    """Refuse a map to columns that the dataset does not have.

    Raises:
        DataError: Naming the nearest column.
    """
    for role, name in columns.items():
        if name not in row:
            guess = nearest(name, list(map(str, row)))
            raise DataError.of(
                saw=f"columns={{{role!r}: {name!r}}} for {source} with the columns {_list(row)}",
                expected="a column that the dataset has",
                cure=f"did you mean {guess!r}?" if guess else "choose one of them",
            )


def format_named(name: str, wanted: Wanted = "pairs") -> Format:
    """The format of a name.

    Args:
        name: Its name.
        wanted: What is loaded; see `formats_for`.

    Returns:
        The format.

    Raises:
        InputError: If there is none, naming the nearest.
    """
    known = formats_for(wanted)
    for format_ in known:
        if format_.name == name:
            return format_
    names = [format_.name for format_ in known]
    guess = nearest(name, names)
    raise InputError.of(
        saw=f"format={name!r}",
        expected=f"one of {', '.join(names)}",
        cure=f"did you mean {guess!r}?" if guess else "choose one, or leave it out",
    )


def formats_for(wanted: Wanted) -> tuple[Format, ...]:
    """The formats that one kind of data is read from, in the order in which they are tried."""
    pairs = tuple(format_ for format_ in FORMATS if format_.kind == "pairs")
    return FORMATS if wanted not in _OWN else (*_OWN[wanted], *pairs)


def recognise(
    rows: Sequence[Row], source: str, wanted: Wanted, *, fallback: Format | None = None
) -> Format:
    """Recognise the format of a dataset from its first rows.

    Args:
        rows: The first rows that are objects, at least one.
        source: The dataset's name, for errors.
        wanted: What is loaded: candidate formats are preferred for candidates, and are
            an error for pairs. Labelled responses and conversations have formats of their
            own, which come before those of pairs.
        fallback: Taken if no format is recognised and the first row is of this one.

    Returns:
        The first format, special before general, that the first recognisable row has.

    Raises:
        DataError: If no format is recognised (the nearest is named), or two that read
            different columns are.
    """
    for row in rows:
        found = [format_ for format_ in formats_for(wanted) if format_.recognises(row)]
        if found:
            return _the_one(found, row, source, wanted)
    row = rows[0]
    if fallback is not None and fallback.recognises(row):
        return fallback
    _check_kind(row, source, wanted)
    near = _nearest_format(row, formats_for(wanted))
    lacking = [name for name in near.needs if name not in row]
    seen = f"{source} with the columns {_list(row)}, which fit no known format"
    raise DataError.of(
        saw=seen if lacking else f"{seen} by their values",
        expected=f"e.g. {near.name} ({', '.join(near.needs)})",
        cure=f"name the columns, e.g. columns={{{_example_columns(wanted)}}}",
    )


def _example_columns(wanted: Wanted) -> str:
    roles = {"unpaired": "prompt, completion, label", "conversations": "prompt, completion"}
    named = roles.get(wanted, "prompt, chosen, rejected").split(", ")
    return ", ".join(f"{role!r}: ..." for role in named)


def _check_kind(row: Row, source: str, wanted: Wanted) -> None:
    """Refuse data of another kind by naming who reads it.

    Raises:
        DataError: If labelled responses or conversations are read as something else.
    """
    for kind, formats in _OWN.items():
        found = next((each for each in formats if each.recognises(row)), None)
        if found is not None and kind != wanted:
            raise DataError.of(
                saw=f"{source}, which is read as {found.name}",
                expected=_named_kind(wanted),
                cure=f"load it with {_LOADERS[kind]}",
            )
    listed = next((each for each in FORMATS if each.kind != "pairs" and each.recognises(row)), None)
    if listed is not None:
        raise DataError.of(
            saw=f"{source}, which is read as {listed.name}: prompts with responses",
            expected=_named_kind(wanted),
            cure="load it with load_candidates",
        )


def _named_kind(wanted: Wanted) -> str:
    return "labelled responses" if wanted == "unpaired" else wanted


def _the_one(found: Sequence[Format], row: Row, source: str, wanted: Wanted) -> Format:
    if found[0].kind == wanted and wanted in _OWN:
        return found[0]
    pairs = [format_ for format_ in found if format_.kind == "pairs"]
    listed = [format_ for format_ in found if format_.kind != "pairs"]
    if wanted == "candidates" and listed:
        return listed[0]
    if not pairs:
        raise DataError.of(
            saw=f"{source}, which is read as {listed[0].name}: responses without a chosen one",
            expected="pairs",
            cure="load it with load_candidates, and let a judge or the scores make pairs "
            "(prefstage build)",
        )
    by_choice = [format_ for format_ in pairs if "chosen" in format_.needs]
    by_verdict = [format_ for format_ in pairs if "chosen" not in format_.needs]
    if by_choice and by_verdict:
        raise DataError.of(
            saw=f"{source} with the columns {_list(row)}, which fit both {by_choice[0].name} "
            f"and {by_verdict[0].name}",
            expected="one way to read it",
            cure=f"say which, e.g. format={by_choice[0].name!r}",
        )
    return pairs[0]


def _nearest_format(row: Row, formats: Sequence[Format]) -> Format:
    """The format whose columns and the row's resemble each other most; general before special."""
    names = [str(name).lower() for name in row]

    def likeness(format_: Format) -> float:
        found = sum(_closeness(need, names) for need in format_.needs) / len(format_.needs)
        used = sum(_closeness(name, format_.needs) for name in names) / max(1, len(names))
        return found + used

    return max(reversed(formats), key=likeness)


def _closeness(name: str, others: Iterable[str]) -> float:
    ratios = (difflib.SequenceMatcher(None, name, other).ratio() for other in others)
    return max(ratios, default=0.0)


def _list(row: Row) -> str:
    return ", ".join(map(str, row)) or "(none)"
