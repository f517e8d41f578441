"""Every format that is recognised by itself, and which one a dataset has.

`FORMATS` hold preferences. Labelled responses (`UNPAIRED`) and `CONVERSATIONS` are read by
loaders of their own, which try their formats first and then those of pairs.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from difflib import SequenceMatcher
from itertools import islice
from typing import Literal

from prefstage.core import DataError, InputError, did_you_mean
from prefstage.data.formats.fields import Format, Row, SourceRow, fields, is_filled, read_prompt
from prefstage.data.formats.pairs import PAIRS, UNPAIRED
from prefstage.data.formats.responses import CONVERSATIONS, LISTED, TREES
from prefstage.data.records import Candidates, check_prompt, prompt_id_of

_SHOWN_NAMES, _COMPARED_NAMES, _NAME_CHARACTERS = 40, 200, 60
Wanted = Literal["pairs", "candidates", "unpaired", "conversations"]

FORMATS: tuple[Format, ...] = (*PAIRS, *TREES, *LISTED)
_SPECIAL: dict[Wanted, tuple[Format, ...]] = {
    "unpaired": UNPAIRED,
    "conversations": CONVERSATIONS,
}

# What `columns=` can name: the role of each column, on the left of the map.
COLUMN_ROLES = (
    *("prompt", "system", "tools", "chosen", "rejected", "agreement"),
    *("score_chosen", "score_rejected", "source_chosen", "source_rejected", "judge_probability"),
    *("response_a", "response_b", "label", "votes", "votes_a", "votes_b", "votes_tie"),
    *("source_a", "source_b", "score_a", "score_b"),
    *("responses", "sources", "scores", "response", "source", "score"),
    *("completion", "messages", "annotator", "gold"),
)


def _read_prompt_alone(row: SourceRow) -> Candidates:
    prompt = read_prompt(row)
    check_prompt(prompt)
    return Candidates(prompt_id_of(prompt), tuple(prompt), (), (), ())


# What `load_prompts` falls back on; every other format has more than a prompt.
PROMPTS = Format(
    "prompts",
    "candidates",
    fields("prompt"),
    _read_prompt_alone,
    shapes={"prompt": is_filled},
    note="rows are prompts without responses",
)


def check_columns(columns: Mapping[str, str], row: Row, source: str) -> None:
    """Refuse roles that nothing reads, and a map to columns that the dataset does not have.

    Raises:
        InputError: Naming the nearest role.
        DataError: Naming the nearest column.
    """
    for role, name in columns.items():
        InputError.unless(
            role in COLUMN_ROLES,
            saw=f"columns={{{role!r}: ...}}",
            expected=f"roles among {', '.join(COLUMN_ROLES)}",
            cure=did_you_mean(role, COLUMN_ROLES, "choose one of them"),
        )
        DataError.unless(
            name in row,
            saw=f"columns={{{role!r}: {name!r}}} for {source} with the columns {_list(row)}",
            expected="a column that the dataset has",
            cure=did_you_mean(name, map(str, row), "choose one of them"),
        )


def format_named(name: str, wanted: Wanted = "pairs") -> Format:
    """The format of a name.

    Args:
        name: Its name.
        wanted: What is loaded; as for `recognise`.

    Returns:
        The format.

    Raises:
        InputError: If there is none, naming the nearest.
    """
    known = {format_.name: format_ for format_ in _formats_for(wanted)}
    InputError.unless(
        name in known,
        saw=f"format={name!r}",
        expected=f"one of {', '.join(known)}",
        cure=did_you_mean(name, known, "choose one, or leave it out"),
    )
    return known[name]


def _formats_for(wanted: Wanted) -> tuple[Format, ...]:
    # The formats that one kind of data is read from, in the order in which they are tried.
    return FORMATS if wanted not in _SPECIAL else (*_SPECIAL[wanted], *PAIRS)


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
        matching = [format_ for format_ in _formats_for(wanted) if format_.recognises(row)]
        if matching:
            return _choose(matching, row, source, wanted)
    row = rows[0]
    if fallback is not None and fallback.recognises(row):
        return fallback
    # Data of another kind is refused by naming who reads it.
    listed = ("candidates", (*TREES, *LISTED), ": prompts with responses")
    for kind, formats, what in (*((*item, "") for item in _SPECIAL.items()), listed):
        other = next((format_ for format_ in formats if format_.recognises(row)), None)
        if other is not None and kind != wanted:
            raise DataError.of(
                saw=f"{source}, which is read as {other.name}{what}",
                expected="labelled responses" if wanted == "unpaired" else wanted,
                cure=f"load it with load_{kind}",
            )
    # The columns of the format and of the row that resemble each other most; of equals the
    # general format, which stands after the special ones.
    names = [name.lower() for name in _first_names(row, _COMPARED_NAMES)]
    near = max(
        reversed(_formats_for(wanted)),
        key=lambda format_: _likeness(format_.fields, names) + _likeness(names, format_.fields),
    )
    example = {
        "unpaired": "'prompt': ..., 'completion': ..., 'label': ...",
        "conversations": "'prompt': ..., 'completion': ...",
    }.get(wanted, "'prompt': ..., 'chosen': ..., 'rejected': ...")
    raise DataError.of(
        saw=f"{source} with the columns {_list(row)}, which fit no known format"
        + ("" if any(name not in row for name in near.fields) else " by their values"),
        expected=f"e.g. {near.name} ({', '.join(near.fields)})",
        cure=f"name the columns, e.g. columns={{{example}}}",
    )


def _choose(matching: Sequence[Format], row: Row, source: str, wanted: Wanted) -> Format:
    if matching[0].kind == wanted and wanted in _SPECIAL:
        return matching[0]
    pairs = [format_ for format_ in matching if format_.kind == "pairs"]
    listed = [format_ for format_ in matching if format_.kind != "pairs"]
    if listed and wanted == "candidates":
        return listed[0]
    if not pairs:
        raise DataError.of(
            saw=f"{source}, which is read as {listed[0].name}: responses without a chosen one",
            expected="pairs",
            cure="load it with load_candidates, and let a judge or the scores make pairs "
            "(prefstage build)",
        )
    by_choice = [format_ for format_ in pairs if "chosen" in format_.fields]
    by_verdict = [format_ for format_ in pairs if "chosen" not in format_.fields]
    if by_choice and by_verdict:
        raise DataError.of(
            saw=f"{source} with the columns {_list(row)}, which fit both {by_choice[0].name} "
            f"and {by_verdict[0].name}",
            expected="one way to read it",
            cure=f"say which, e.g. format={by_choice[0].name!r}",
        )
    return pairs[0]


def _likeness(names: Collection[str], others: Iterable[str]) -> float:
    # How much each of the names resembles the one of the others that is nearest, on average.
    return sum(
        max((SequenceMatcher(None, name, other).ratio() for other in others), default=0.0)
        for name in names
    ) / max(1, len(names))


def _list(row: Row) -> str:
    more = len(row) - _SHOWN_NAMES
    return (", ".join(_first_names(row, _SHOWN_NAMES)) or "(none)") + (
        f" and {more:,} more" if more > 0 else ""
    )


def _first_names(row: Row, count: int) -> list[str]:
    # of how ever many columns, and the beginnings of how ever long names
    return [str(name)[:_NAME_CHARACTERS] for name in islice(row, count)]
