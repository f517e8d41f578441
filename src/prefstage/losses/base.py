"""What a loss is (constants, formula, source, needs), and the log-probs of responses it reads."""

import inspect
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from prefstage.core import Config, InputError

Items = Float[Tensor, " items"]
"""A value for every item."""


@dataclass(frozen=True)
class Responses:
    """Log-probs of responses, one an item, padded with 0 to the longest.

    Attributes:
        policy: log π(y_t | x, y_<t), exactly 0 past the end. [items, tokens], nats.
        lengths: Tokens of each response, >= 1. [items].
        reference: log π_ref(y_t | x, y_<t), likewise, without gradient; None where there is
            no reference.
        scores: A judge's or reward model's score of each response. [items].
        log_sum_squares: log Σ_v π(v | x, y_<t)², without gradient. [items, tokens].
    """

    policy: Float[Tensor, "items tokens"]
    lengths: Int[Tensor, " items"]
    reference: Float[Tensor, "items tokens"] | None = None
    scores: Items | None = None
    log_sum_squares: Float[Tensor, "items tokens"] | None = None

    @cached_property
    def mask(self) -> Bool[Tensor, "items tokens"]:
        """True at the tokens of each response."""
        return (
            torch.arange(self.policy.shape[1], device=self.lengths.device) < self.lengths[:, None]
        )

    @cached_property
    def log_probs(self) -> Items:
        """ℓ = Σ_t log π(y_t). [items], nats."""
        return self.policy.sum(1)

    @cached_property
    def reference_log_probs(self) -> Items:
        """The same of the reference. [items], nats.

        Raises:
            InputError: If there is no reference.
        """
        return self._reference_or_error().sum(1)

    @cached_property
    def token_log_ratios(self) -> Float[Tensor, "items tokens"]:
        """Log π(y_t) - log π_ref(y_t), 0 past the end. [items, tokens], nats.

        Raises:
            InputError: If there is no reference.
        """
        return self.policy - self._reference_or_error()

    @cached_property
    def log_ratios(self) -> Items:
        """Log π(y|x) - log π_ref(y|x). [items], nats.

        Raises:
            InputError: If there is no reference.
        """
        # Subtracted token by token, then summed: each of the two sums is some hundred nats,
        # their difference often a hundredth of one, and float32 keeps seven digits.
        return self.token_log_ratios.sum(1)

    @cached_property
    def mean_log_probs(self) -> Items:
        """ℓ / L, the mean over tokens. [items], nats a token."""
        return self.log_probs / self.lengths

    def _reference_or_error(self) -> Tensor:
        if self.reference is None:
            raise InputError.of(
                saw="responses without reference log-probs",
                expected="those of the model that training starts from",
                cure="give `reference`, or take a loss without one",
            )
        return self.reference.detach()


@dataclass(frozen=True)
class Totals:
    """Counts of the whole optimiser batch, over all micro-batches and processes.

    Attributes:
        items: Pairs, groups, or single responses.
        chosen_tokens: Tokens of the chosen, or desirable, responses; where there are no sides,
            of all.
        rejected_tokens: Tokens of the other responses.
    """

    items: int
    chosen_tokens: int
    rejected_tokens: int = 0


@dataclass(frozen=True)
class PairBatch:
    """Pairs of a chosen and a rejected response.

    Attributes:
        chosen: The preferred responses.
        rejected: The others, in the same order.
        totals: Of the whole optimiser batch.
        seeds: One seed a pair and step, for losses that draw tokens or pairs. [items].
        preference: P(chosen ≻ rejected) by the judge, in [0, 1]. [items].
        annotators: Who labelled each pair, None where nobody is named.
        gold: A third response to each prompt, to imitate.
    """

    chosen: Responses
    rejected: Responses
    totals: Totals
    seeds: Int[Tensor, " items"] | None = None
    preference: Items | None = None
    annotators: tuple[str | None, ...] | None = None
    gold: Responses | None = None


@dataclass(frozen=True)
class GroupBatch:
    """Several scored responses a prompt.

    Attributes:
        responses: All responses.
        group: Index of each response's prompt, ascending from 0. [items].
        totals: Of the whole optimiser batch.
    """

    responses: Responses
    group: Int[Tensor, " items"]
    totals: Totals


@dataclass(frozen=True)
class UnpairedBatch:
    """Single responses, each desirable or not.

    Attributes:
        responses: The responses.
        desirable: Whether each is desirable. [items].
        totals: Of the whole optimiser batch.
        mismatched: The same prompts with the response of another item, without gradient.
        density_ratio: p(x | desirable) / p(x | undesirable) of each prompt, > 0. [items].
    """

    responses: Responses
    desirable: Bool[Tensor, " items"]
    totals: Totals
    mismatched: Responses | None = None
    density_ratio: Items | None = None


@dataclass(frozen=True)
class ResponseBatch:
    """Responses to imitate.

    Attributes:
        responses: The responses.
        totals: Of the whole optimiser batch.
    """

    responses: Responses
    totals: Totals


LossBatch = PairBatch | GroupBatch | UnpairedBatch | ResponseBatch

DataKind = Literal["pairs", "groups", "unpaired", "responses"]
Need = Literal[
    "reference",
    "tokens",
    "scores",
    "preference",
    "mismatched",
    "log_sum_squares",
    "annotators",
    "gold",
    "density_ratio",
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
    "gold": "give each pair a third response (column reference), or choose cpo",
    "density_ratio": "train by PreferenceTrainer, which estimates it, or choose bco_unpaired",
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

    def reward_scale(self, lengths: Items) -> Items | float | None:
        """What a response's log-ratio (or log-prob, without a reference) counts for as a reward.

        Args:
            lengths: Tokens of each response. [items].

        Returns:
            β, or τ; divided by the lengths where the loss is one of means over tokens (it is
            `per_token`); None of a loss without such a constant. [items], or one for all.
        """
        scale: float | None = getattr(self, "beta", getattr(self, "tau", None))
        return scale / lengths if scale and getattr(self, "per_token", False) else scale

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
        InputError.unless(
            set(state) == set(self.initial),
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
        kinds = " or ".join(sorted(cls.data))
        InputError.unless(
            any(isinstance(batch, BATCHES[kind]) for kind in cls.data),
            saw=f"loss {cls.name!r} with a {type(batch).__name__}",
            expected=f"data of the kind {kinds}",
            cure=f"train on {kinds}, or choose a loss for this data",
        )
        wanted = {*cls.needs, *(["seeds"] if cls.random else [])}
        missing = sorted(name for name in wanted if _lacks(batch, name))
        if missing:
            raise InputError.of(
                saw=f"loss {cls.name!r} on a batch without {', '.join(missing)}",
                expected=f"a batch with {', '.join(sorted(wanted))}",
                cure=_CURES.get(missing[0], "give it, or choose a loss that does without"),
            )


class StatelessLoss(Loss):
    """A loss that keeps no running statistics: it is the loss of each item, and nothing more."""

    def _compute(self, batch: Any, state: LossState) -> LossValues:
        return LossValues(self._items(batch))

    # The loss of each item of a batch that was checked, unreduced. [items].
    @abstractmethod
    def _items(self, batch: Any) -> Items: ...


def _lacks(batch: LossBatch, name: str) -> bool:
    sides = [batch.chosen, batch.rejected] if isinstance(batch, PairBatch) else [batch.responses]
    holders = sides if name in Responses.__dataclass_fields__ else [batch]
    # Every batch holds values token by token.
    return name != "tokens" and any(getattr(holder, name, None) is None for holder in holders)
