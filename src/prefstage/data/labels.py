"""Which of two responses a label means: declared, spelled out, or read by position and said so."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from prefstage.core import DataError, InputError
from prefstage.data.rows import expect

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
    # Tables write a missing label as NaN.
    known = (x for x in labels if not (isinstance(x, float) and math.isnan(x)))
    met = {spell(label) for label in known if label not in (None, "")}
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
