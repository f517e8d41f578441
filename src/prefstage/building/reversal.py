"""How often a judge reverses the labels that it replaces; too often needs a yes."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from prefstage.core.errors import InputError
from prefstage.judging.agreement import wilson_interval

REVERSAL_LIMIT = 0.4
"""Largest share of reversed labels that needs no yes.

Above it the judge and the labels measure different things, or nearly so. A judge whose agreement
lies below one half with its whole 95 % interval reverses more than that of what it decides.
"""

SETTING = "accept_reversal"


@dataclass(frozen=True)
class Reversal:
    """What a judge says of labels, summed up before it replaces them.

    Attributes:
        kept: Labels that the judge confirms.
        reversed: Labels that it turns round.
        equal: Labelled pairs that it finds equal; they count for nothing.
        unreadable: Labelled pairs without a readable judgment; likewise.
        unlabelled: Pairs that are a tie in the data, which have no label to reverse.
    """

    kept: int = 0
    reversed: int = 0
    equal: int = 0
    unreadable: int = 0
    unlabelled: int = 0

    @property
    def decided(self) -> int:
        """Labels that the judge confirms or turns round."""
        return self.kept + self.reversed

    @property
    def share(self) -> float | None:
        """Reversed labels, of those decided, in [0, 1]; None of none."""
        return self.reversed / self.decided if self.decided else None

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson interval of the share."""
        return wilson_interval(self.share or 0.0, self.decided)

    def as_dict(self) -> dict[str, Any]:
        """JSON-serialisable, with share and interval."""
        return {**asdict(self), "share": self.share, "interval": list(self.interval)}


def reversal_told(found: Mapping[str, Any]) -> str:
    """Say how often a judge reverses labels.

    Args:
        found: As of `Reversal.as_dict`.

    Returns:
        Such as "24 of 40 labels reversed by the judge: 60.0 % (95 % interval 44.6 % to 73.7 %)",
        with what has no part in it.
    """
    decided = found["kept"] + found["reversed"]
    text = f"{found['reversed']} of {decided} labels reversed by the judge"
    if found["share"] is not None:
        share, low, high = (100 * each for each in (found["share"], *found["interval"]))
        text += f": {share:.1f} % (95 % interval {low:.1f} % to {high:.1f} %)"
    others = {
        "found equal": found["equal"],
        "without a readable judgment": found["unreadable"],
        "without a label (a tie in the data)": found["unlabelled"],
    }
    told = [f"{count} {what}" for what, count in others.items() if count]
    return f"{text}; not counted: {', '.join(told)}" if told else text


def is_excessive(found: Mapping[str, Any]) -> bool:
    """Whether more labels are reversed than go without a yes."""
    return found["share"] is not None and found["share"] > REVERSAL_LIMIT


def check_reversal(
    found: Mapping[str, Any], *, accepted: bool, judge: str, setting: str = SETTING
) -> None:
    """Stop before labels are replaced by a judge that mostly contradicts them.

    Args:
        found: As of `Reversal.as_dict`.
        accepted: Whether the recipe says yes to any share.
        judge: Its name.
        setting: Where the recipe says so.

    Raises:
        InputError: If more than `REVERSAL_LIMIT` of the labels are reversed, and nobody said yes.
    """
    if accepted or not is_excessive(found):
        return
    raise InputError.of(
        saw=f"{reversal_told(found)} ({judge})",
        expected=f"at most {100 * REVERSAL_LIMIT:.0f} % before labels are replaced",
        cure=f"ask another judge, or set {setting}: true to go by this one's labels (a run "
        "folder keeps what it judged)",
    )
