"""What the registry says of a loss, and the check that a batch has what the loss needs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from prefstage.core.config import Config
from prefstage.core.errors import InputError
from prefstage.losses.batches import (
    GroupBatch,
    Items,
    LossBatch,
    PairBatch,
    ResponseBatch,
    UnpairedBatch,
)

DataKind = Literal["pairs", "groups", "unpaired", "responses"]
Need = Literal[
    "reference", "tokens", "scores", "preference", "mismatched", "log_sum_squares", "annotators"
]
LossState = dict[str, Any]
"""JSON-serialisable running statistics of a loss."""

BATCHES: Mapping[str, type] = {
    "pairs": PairBatch,
    "groups": GroupBatch,
    "unpaired": UnpairedBatch,
    "responses": ResponseBatch,
}


class LossSettings(Config):
    """Constants of a loss; subclasses name them."""


@dataclass(frozen=True)
class LossValues:
    """What a loss makes of a batch.

    Attributes:
        values: Loss of each item (of each group, for groups), unreduced.
        state: Running statistics after this batch, if it was the whole optimiser batch.
        metrics: Further values by name, one for each item that has one; no gradient.
    """

    values: Items
    state: LossState = field(default_factory=dict)
    metrics: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Loss:
    """An entry of the registry.

    Attributes:
        name: Name in configurations.
        summary: What it does, in one line.
        formula: Its formula in the notation of the documentation.
        source: Where it comes from.
        settings: Its constants, with defaults and ranges.
        function: From a batch, its settings and its state to its values.
        data: Kinds of batch that it takes.
        needs: What the batch must hold beyond log-probs and lengths.
        optional: What it reads besides if the batch holds it.
        whole_batch: Whether an item's value depends on the other items of the optimiser's
            batch.
        random: Whether it draws at random and needs one seed an item.
        aliases: Further names, such as TRL's.
        initial: Running statistics before the first step.
    """

    name: str
    summary: str
    formula: str
    source: str
    settings: type[LossSettings]
    function: Callable[[Any, Any, LossState], LossValues]
    data: frozenset[DataKind] = frozenset({"pairs"})
    needs: frozenset[Need] = frozenset({"reference"})
    optional: frozenset[Need] = frozenset()
    whole_batch: bool = False
    random: bool = False
    aliases: tuple[str, ...] = ()
    initial: Mapping[str, Any] = field(default_factory=dict)

    def start_state(self) -> LossState:
        """Running statistics before the first step."""
        return {
            name: dict(value) if isinstance(value, dict) else value
            for name, value in self.initial.items()
        }

    def compute(self, batch: LossBatch, settings: LossSettings, state: LossState) -> LossValues:
        """Compute the loss of each item.

        Args:
            batch: The items; the whole optimiser batch where `whole_batch` says so.
            settings: Constants, of this loss's own type.
            state: Running statistics before the batch; see `start_state`.

        Returns:
            Values, the state after the batch, and metrics.

        Raises:
            InputError: If the batch is of another kind or lacks what the loss needs, or the
                state is not one of this loss.
        """
        self.check(batch)
        if set(state) != set(self.initial):
            raise InputError.of(
                saw=f"loss {self.name!r} with a state of {sorted(state) or 'nothing'}",
                expected=f"one of {sorted(self.initial) or 'nothing'}",
                cure="begin with start_state(), then pass on what the last step gave",
            )
        return self.function(batch, settings, state)

    def check(self, batch: LossBatch) -> None:
        """Check that a batch holds what the loss needs.

        Args:
            batch: The items.

        Raises:
            InputError: If it is of another kind or lacks something.
        """
        if not any(isinstance(batch, BATCHES[kind]) for kind in self.data):
            kinds = " or ".join(sorted(self.data))
            raise InputError.of(
                saw=f"loss {self.name!r} with a {type(batch).__name__}",
                expected=f"data of the kind {kinds}",
                cure=f"train on {kinds}, or choose a loss for this data",
            )
        missing: list[str] = sorted(need for need in self.needs if not _has(batch, need))
        if self.random and getattr(batch, "seeds", None) is None:
            missing.append("seeds")
        if missing:
            raise InputError.of(
                saw=f"loss {self.name!r} on a batch without {', '.join(missing)}",
                expected=f"a batch with {', '.join(sorted({*self.needs, *missing}))}",
                cure=_CURES.get(missing[0], "give it, or choose a loss that does without"),
            )


_CURES = {
    "reference": "set a reference, or choose a loss without one, such as simpo",
    "scores": "judge the responses first, so that each has a score",
    "preference": "judge the pairs first, so that each has a preference",
    "mismatched": "train by PreferenceTrainer, which adds the mismatched responses",
    "log_sum_squares": "ask the engine for the statistic log_sum_squares",
    "seeds": "give one seed an item and step, as PreferenceTrainer does",
}


def _has(batch: LossBatch, need: Need) -> bool:
    sides = [batch.chosen, batch.rejected] if isinstance(batch, PairBatch) else [batch.responses]
    if need in ("preference", "mismatched", "annotators"):
        return getattr(batch, need, None) is not None
    if need == "tokens":
        return True  # every batch holds values token by token
    return all(getattr(side, need) is not None for side in sides)
