"""A loss is one object: constants, formula, source, what it needs, and the computation."""

import inspect
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

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
_CURES = {
    "reference": "set a reference, or choose a loss without one, such as simpo",
    "scores": "judge the responses first, so that each has a score",
    "preference": "judge the pairs first, so that each has a preference",
    "mismatched": "train by PreferenceTrainer, which adds the mismatched responses",
    "log_sum_squares": "ask the engine for the statistic log_sum_squares",
    "seeds": "give one seed an item and step, as PreferenceTrainer does",
}


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


class Loss(Config):
    """A preference loss: its fields are its constants, the rest stands in the class statement.

    ``DPO(beta=0.2)(batch).values`` is the loss of every pair. A new loss is a subclass with a
    `name` and `_compute`, or of `StatelessLoss` with a `name` and `_items`.

    Attributes:
        name: Name in configurations.
        aliases: Further names, such as TRL's.
        summary: What it does, in one line: the first of the class's docstring.
        formula: In the notation of the documentation.
        source: Where it comes from.
        data: Kinds of batch that it takes.
        needs: What the batch must hold beyond log-probs and lengths.
        optional: What it reads besides if the batch holds it.
        whole_batch: Whether an item's value depends on the other items of the optimiser's
            batch.
        random: Whether it draws at random and needs one seed an item.
        initial: Running statistics before the first step.
    """

    name: ClassVar[str] = ""
    aliases: ClassVar[tuple[str, ...]] = ()
    summary: ClassVar[str] = ""
    formula: ClassVar[str] = ""
    source: ClassVar[str] = ""
    data: ClassVar[frozenset[DataKind]] = frozenset({"pairs"})
    needs: ClassVar[frozenset[Need]] = frozenset({"reference"})
    optional: ClassVar[frozenset[Need]] = frozenset()
    whole_batch: ClassVar[bool] = False
    random: ClassVar[bool] = False
    initial: ClassVar[Mapping[str, Any]] = {}

    def __init_subclass__(
        cls,
        *,
        name: str = "",
        aliases: tuple[str, ...] = (),
        formula: str = "",
        source: str = "",
        data: frozenset[DataKind] | None = None,
        needs: frozenset[Need] | None = None,
        optional: frozenset[Need] = frozenset(),
        whole_batch: bool = False,
        random: bool = False,
        initial: Mapping[str, Any] | None = None,
    ) -> None:
        """Take the description of a loss out of its class statement."""
        super().__init_subclass__()
        cls.name, cls.aliases, cls.formula, cls.source = name, aliases, formula, source
        cls.summary = (inspect.getdoc(cls) or "").partition("\n")[0].removesuffix(".")
        # These two a family of losses has in common.
        cls.data = cls.data if data is None else data
        cls.needs = cls.needs if needs is None else needs
        cls.optional, cls.whole_batch, cls.random = optional, whole_batch, random
        cls.initial = initial or {}

    @classmethod
    def start_state(cls) -> LossState:
        """Running statistics before the first step."""
        return {k: dict(v) if isinstance(v, dict) else v for k, v in cls.initial.items()}

    def __call__(self, batch: LossBatch, state: LossState | None = None) -> LossValues:
        """Compute the loss of each item.

        Args:
            batch: The items; the whole optimiser batch where `whole_batch` says so.
            state: Running statistics before the batch; None for those of `start_state`.

        Returns:
            Values, the state after the batch, and metrics.

        Raises:
            InputError: If the batch is of another kind or lacks what the loss needs, or the
                state is not one of this loss.
        """
        self.check(batch)
        state = self.start_state() if state is None else state
        if set(state) != set(self.initial):
            raise InputError.of(
                saw=f"loss {self.name!r} with a state of {sorted(state) or 'nothing'}",
                expected=f"one of {sorted(self.initial) or 'nothing'}",
                cure="begin with start_state(), then pass on what the last step gave",
            )
        return self._compute(batch, state)

    # The loss of a batch that was checked.
    @abstractmethod
    def _compute(self, batch: Any, state: LossState) -> LossValues: ...

    @classmethod
    def check(cls, batch: LossBatch) -> None:
        """Check that a batch holds what the loss needs.

        Args:
            batch: The items.

        Raises:
            InputError: If it is of another kind or lacks something.
        """
        if not any(isinstance(batch, BATCHES[kind]) for kind in cls.data):
            kinds = " or ".join(sorted(cls.data))
            raise InputError.of(
                saw=f"loss {cls.name!r} with a {type(batch).__name__}",
                expected=f"data of the kind {kinds}",
                cure=f"train on {kinds}, or choose a loss for this data",
            )
        missing: list[str] = sorted(need for need in cls.needs if not _has(batch, need))
        if cls.random and getattr(batch, "seeds", None) is None:
            missing.append("seeds")
        if missing:
            raise InputError.of(
                saw=f"loss {cls.name!r} on a batch without {', '.join(missing)}",
                expected=f"a batch with {', '.join(sorted({*cls.needs, *missing}))}",
                cure=_CURES.get(missing[0], "give it, or choose a loss that does without"),
            )


class StatelessLoss(Loss):
    """A loss that keeps no running statistics: it is the loss of each item, and nothing more."""

    def _compute(self, batch: Any, state: LossState) -> LossValues:
        return LossValues(self._items(batch))

    # The loss of each item of a batch that was checked, unreduced. [items].
    @abstractmethod
    def _items(self, batch: Any) -> Items: ...


def _has(batch: LossBatch, need: Need) -> bool:
    if need == "tokens":
        return True  # every batch holds values token by token
    if need in ("preference", "mismatched", "annotators"):
        return getattr(batch, need, None) is not None
    sides = [batch.chosen, batch.rejected] if isinstance(batch, PairBatch) else [batch.responses]
    return all(getattr(side, need) is not None for side in sides)
