"""Which of two responses a label means: schemes that are declared, named or reported."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Verdict = Literal["first", "second", "tie"]


@dataclass(frozen=True)
class LabelScheme:
    """What each label value says: the first response is better, the second, or a tie."""

    verdicts: Mapping[str, Verdict]

    def read(self, label: Any) -> Verdict | None:
        """The verdict of one label, or None if the scheme does not know it."""
        return self.verdicts.get(spell(label))

    def __str__(self) -> str:
        """For the report: ``0 = first, 1 = second, 2 = tie``."""
        return ", ".join(f"{label} = {verdict}" for label, verdict in self.verdicts.items())


def spell(label: Any) -> str:
    """One spelling for a label whatever its type: 1, 1.0, "1" and " 1 " are the same."""
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    return " ".join(str(label).split()).lower()


def distinct_labels(labels: Iterable[Any]) -> tuple[str, ...]:
    """The different labels met, sorted."""
    return tuple(sorted({spell(label) for label in labels if label is not None}))
