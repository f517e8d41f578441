"""Which of two responses a label means: declared, spelled out, or read by position and said so."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from prefstage.core.errors import DataError, InputError

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

    def read(self, label: Any) -> Verdict | None:
        """The verdict of one label, or None if the scheme does not know it."""
        return self.verdicts.get(spell(label))

    def __str__(self) -> str:
        """For reports and errors: ``0 = first, 1 = second, 2 = tie (why)``."""
        shown = [label for label in self.verdicts if not self.seen or label in self.seen]
        return ", ".join(f"{label} = {self.verdicts[label]}" for label in shown) + (
            f" ({self.reason})"
        )


def spell(label: Any) -> str:
    """One spelling for a label whatever its type: 1, 1.0, "1" and " 1 " are the same."""
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    return " ".join(str(label).split()).lower()


def declared_scheme(labels: Mapping[Any, str]) -> LabelScheme:
    """The scheme that a user declares, e.g. ``{0: "tie", 1: "first", 2: "second"}``.

    Raises:
        InputError: If a value is no verdict, or nothing says first or second.
    """
    wrong = [verdict for verdict in labels.values() if verdict not in VERDICTS]
    if wrong or not {"first", "second"} & set(labels.values()):
        raise InputError.of(
            saw=f"labels={dict(labels)}",
            expected=f"each label value mapped to one of {', '.join(VERDICTS)}",
            cure="write e.g. labels={'A': 'first', 'B': 'second', 'C': 'tie'}",
        )
    verdicts = {spell(label): cast("Verdict", verdict) for label, verdict in labels.items()}
    return LabelScheme(verdicts, "as declared")


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
    seen = tuple(sorted({spell(label) for label in labels if not _is_missing(label)}))
    words = _words(names)
    if words.keys() & set(seen):  # a label that is no such word is then a bad row
        return LabelScheme(words, "by their words", seen)
    numbers = _ends(names)
    if seen and numbers and set(seen) <= set(numbers):
        return _positional(numbers, f"by the names {names[0]!r} and {names[1]!r}")
    for pair, telling in ((("0", "1"), "0"), (("1", "2"), "2")):  # 1 alone may be either's
        if not numbers and telling in seen and set(seen) <= set(pair):
            return _positional(pair, "by position; if wrong, pass labels=")
    shown = ", ".join(seen[:6]) + (", …" if len(seen) > 6 else "")  # noqa: PLR2004 - a short list
    raise DataError.of(
        saw=f"{source}: column {column!r} with the labels {shown or 'nothing'}, which datasets "
        "use with different meanings",
        expected=f"words (A, B, tie), or values that name {names[0]!r} and {names[1]!r}",
        cure=_CURE,
    )


def _is_missing(label: Any) -> bool:
    # Tables write a missing label as NaN.
    return label in (None, "") or (isinstance(label, float) and math.isnan(label))


def _positional(values: Sequence[str], reason: str) -> LabelScheme:
    return LabelScheme({values[0]: "first", values[1]: "second"}, reason, tuple(values))


def _words(names: tuple[str, str]) -> dict[str, Verdict]:
    words: dict[str, Verdict] = {word: verdict for verdict in VERDICTS for word in _WORDS[verdict]}
    words[spell(names[0])] = "first"
    words[spell(names[1])] = "second"
    ends = _ends(names)
    if ends:
        for stem in ("model", "response", "output", "answer", "assistant"):
            words[f"{stem}_{ends[0]}"] = "first"
            words[f"{stem}_{ends[1]}"] = "second"
    return words


def _ends(names: tuple[str, str]) -> tuple[str, str] | None:
    first, second = names[0][-1], names[1][-1]
    return (first, second) if first.isdigit() and second.isdigit() else None
