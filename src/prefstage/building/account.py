"""What a build did: every prompt, response and pair that was left out, and why."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from prefstage.building.reversal import Reversal

_EXAMPLES = 3


@dataclass
class Account:
    """Counts of a build, filled as it goes.

    Attributes:
        prompts: Prompts (or pairs, where pairs go in) that were read.
        pairs: Pairs that were built, before filters.
        skipped: How many were left out, by reason.
        examples: The first prompt ids of each reason.
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
