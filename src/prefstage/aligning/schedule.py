"""Schedules: which data each iteration trains on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from prefstage.core.config import nearest
from prefstage.core.errors import ConfigError

Data = Literal["off", "on", "mix", "other", "per-prompt"]
"""What pairs are made of: the off-policy data, the policy's own answers, both, another's."""

_WORDS = ("auto", "off", "on", "per-prompt")
_FORMS = "auto, off, on, per-prompt, mix: SHARE, other: MODEL, or a list of these"


@dataclass(frozen=True)
class Rule:
    """How one iteration's data are chosen.

    Attributes:
        kind: "auto" (by the measured stage), or the data themselves.
        share: Of "mix": ρ, the share of prompts that get the policy's best answer.
        model: Of "other": who answers in the policy's place.
    """

    kind: Literal["auto", "off", "on", "mix", "other", "per-prompt"]
    share: float | None = None
    model: str | None = None

    @property
    def measures(self) -> bool:
        """Whether the data depend on a measured stage."""
        return self.kind in ("auto", "per-prompt")

    @property
    def needs_off_policy(self) -> bool:
        """Whether off-policy data may be trained on, or are measured against."""
        return self.kind not in ("on", "other")

    def __str__(self) -> str:
        """As in a recipe."""
        if self.kind == "mix":
            return f"mix: {self.share:g}"
        return f"other: {self.model}" if self.kind == "other" else self.kind


def parse_schedule(given: Any, *, iterations: int) -> tuple[Rule, ...]:
    """Read a recipe's schedule.

    Args:
        given: A word (auto, off, on, per-prompt), a mapping (mix: ρ, other: MODEL), or a list
            of these, one an iteration; words may also stand in one text, "off,on".
        iterations: How many there are.

    Returns:
        The rule of each iteration.

    Raises:
        ConfigError: If it is no schedule, or a list of another length.
    """
    if isinstance(given, str) and "," in given:
        given = [word.strip() for word in given.split(",")]
    if not isinstance(given, Sequence) or isinstance(given, str):
        return (_rule(given),) * iterations
    if len(given) != iterations:
        raise ConfigError.of(
            saw=f"a schedule of {len(given)} entries for {iterations} iterations",
            expected="an entry an iteration, or one for all",
            cure=f"set iterations: {len(given)}, or change the list",
        )
    return tuple(_rule(each) for each in given)


def _rule(given: Any) -> Rule:
    if isinstance(given, bool):  # plain YAML reads off and on as false and true
        given = "on" if given else "off"
    if given in _WORDS:
        return Rule(kind=given)
    if isinstance(given, Mapping) and len(given) == 1:
        ((name, value),) = given.items()
        if name == "mix" and isinstance(value, int | float) and 0 < value <= 1:
            return Rule(kind="mix", share=float(value))
        if name == "other" and isinstance(value, str) and value.strip():
            return Rule(kind="other", model=value)
    guess = nearest(given, list(_WORDS)) if isinstance(given, str) else None
    raise ConfigError.of(
        saw=f"schedule {given!r}",
        expected=_FORMS,
        cure=f"did you mean {guess!r}?" if guess else "write one of them, e.g. mix: 0.1",
    )
