"""What a build did: what was left out and why, and how often a judge reverses labels."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from prefstage.core.errors import InputError
from prefstage.judging.judged import wilson_interval

REVERSAL_LIMIT = 0.4
"""Largest share of reversed labels that needs no yes.

Above it the judge and the labels measure different things, or nearly so. A judge whose agreement
lies below one half with its whole 95 % interval reverses more than that of what it decides.
"""

SETTING = "accept_reversal"

_EXAMPLES = 3


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

    def as_dict(self) -> dict[str, Any]:
        """JSON-serialisable, with the share and its 95 % Wilson interval."""
        interval = wilson_interval(self.share or 0.0, self.decided)
        return {**asdict(self), "share": self.share, "interval": list(interval)}


@dataclass
class Account:
    """Counts of a build, filled as it goes.

    Attributes:
        prompts: Prompts (or pairs, where pairs go in) that were read.
        pairs: Pairs that were built, before filters.
        skipped: How many were left out, by reason.
        examples: The first prompt ids of every reason.
        figures: Other figures of the method (flips, on-policy share, ...), by name.
        notes: What else a reader should know.
        reversal: What the judge says of the labels that it replaces; None if it replaces none.
    """

    prompts: int = 0
    pairs: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    reversal: Reversal | None = None

    def skip(self, reason: str, prompt_id: str, count: int = 1) -> None:
        """Count something that is left out.

        Args:
            reason: What it is, in a few words; counted by it.
            prompt_id: Where.
            count: How many.
        """
        if count < 1:
            return
        self.skipped[reason] += count
        seen = self.examples.setdefault(reason, [])
        if len(seen) < _EXAMPLES and prompt_id not in seen:
            seen.append(prompt_id)

    def add(self, figure: str, count: int = 1) -> None:
        """Raise a figure.

        Args:
            figure: Its name.
            count: By how much.
        """
        self.figures[figure] = self.figures.get(figure, 0) + count

    def as_dict(self) -> dict[str, Any]:
        """JSON-serialisable."""
        return {
            "prompts_read": self.prompts,
            "pairs_built": self.pairs,
            "left_out": dict(self.skipped),
            "examples": self.examples,
            "figures": self.figures,
            "notes": self.notes,
            "reversal": None if self.reversal is None else self.reversal.as_dict(),
        }


def describe_reversal(reversal: Mapping[str, Any]) -> str:
    """Say how often a judge reverses labels.

    Args:
        reversal: As of `Reversal.as_dict`.

    Returns:
        Such as "24 of 40 labels reversed by the judge: 60.0 % (95 % interval 44.6 % to 73.7 %)",
        with what has no part in it.
    """
    decided = reversal["kept"] + reversal["reversed"]
    text = f"{reversal['reversed']} of {decided} labels reversed by the judge"
    if reversal["share"] is not None:
        share, low, high = (100 * value for value in (reversal["share"], *reversal["interval"]))
        text += f": {share:.1f} % (95 % interval {low:.1f} % to {high:.1f} %)"
    others = {
        "found equal": reversal["equal"],
        "without a readable judgment": reversal["unreadable"],
        "without a label (a tie in the data)": reversal["unlabelled"],
    }
    listed = ", ".join(f"{count} {what}" for what, count in others.items() if count)
    return f"{text}; not counted: {listed}" if listed else text


def is_excessive(reversal: Mapping[str, Any]) -> bool:
    """Whether more labels are reversed than go without a yes."""
    return reversal["share"] is not None and reversal["share"] > REVERSAL_LIMIT


def check_reversal(
    reversal: Mapping[str, Any], *, accepted: bool, judge: str, setting: str = SETTING
) -> None:
    """Stop before labels are replaced by a judge that mostly contradicts them.

    Args:
        reversal: As of `Reversal.as_dict`.
        accepted: Whether the recipe says yes to any share.
        judge: Its name.
        setting: Where the recipe says so.

    Raises:
        InputError: If more than `REVERSAL_LIMIT` of the labels are reversed, and nobody said yes.
    """
    if accepted or not is_excessive(reversal):
        return
    raise InputError.of(
        saw=f"{describe_reversal(reversal)} ({judge})",
        expected=f"at most {100 * REVERSAL_LIMIT:.0f} % before labels are replaced",
        cure=f"ask another judge, or set {setting}: true to go by this one's labels (a run "
        "folder keeps what it judged)",
    )
