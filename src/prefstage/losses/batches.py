"""What losses read: log-probs of responses, by side, by group, or singly."""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from prefstage.core.errors import InputError

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
        position = torch.arange(self.policy.shape[1], device=self.policy.device)
        return position < self.lengths[:, None]

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
        chosen_tokens: Tokens of the chosen responses; where there are no sides, of all.
        rejected_tokens: Tokens of the rejected responses.
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
    """

    chosen: Responses
    rejected: Responses
    totals: Totals
    seeds: Int[Tensor, " items"] | None = None
    preference: Items | None = None
    annotators: tuple[str | None, ...] | None = None


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
    """

    responses: Responses
    desirable: Bool[Tensor, " items"]
    totals: Totals
    mismatched: Responses | None = None


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
