"""Losses on responses that are no pairs: scored groups, single ones, and ones to imitate."""

from typing import Any

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from prefstage.losses.base import StatelessLoss
from prefstage.losses.batches import Items, PairBatch, Responses
from prefstage.losses.pairwise import NO_NEEDS, beta_field

Groups = Float[Tensor, " groups"]


class GroupLoss(
    StatelessLoss, data=frozenset({"groups"}), needs=frozenset({"reference", "scores"})
):
    """A loss that compares two distributions over the K responses of a prompt."""

    def log_shares(self, batch: Any, temperature: float, beta: float) -> tuple[Items, Items]:
        """Log-softmax of βa and of the scores within every prompt. [items] each.

        Args:
            batch: The groups.
            temperature: Of the scores, > 0, in their units.
            beta: Pull towards the reference, > 0. 1/nats.
        """
        # Scores are data, even if they come as somebody's differentiable output.
        goal = group_log_softmax(batch.responses.scores.detach() / temperature, batch.group)
        return group_log_softmax(beta * batch.responses.log_ratios, batch.group), goal


class RewardEXO(
    GroupLoss,
    name="exo_rw",
    formula="KL(softmax(β_π a) ‖ softmax(r/β_r))",
    source="Ji et al. 2024, arXiv:2402.00856 (EXO on rewards)",
):
    """Reverse KL from the policy's to the rewards' distribution over K responses."""

    beta: float = beta_field(0.5)
    temperature: float = Field(default=0.5, gt=0, description="β_r, in units of the scores.")

    def _items(self, batch: Any) -> Groups:
        shares, goal = self.log_shares(batch, self.temperature, self.beta)
        return _group_sum(shares.exp() * (shares - goal), batch.group)


class InfoNCA(
    GroupLoss,
    name="infonca",
    formula="-Σ q_i log softmax(βa)_i, q = softmax(r/α)",
    source="Chen et al. 2024, arXiv:2402.05369 (InfoNCA)",
):
    """Cross-entropy of the rewards' distribution over K responses."""

    beta: float = beta_field(0.01)
    temperature: float = Field(default=1.0, gt=0, description="α, in units of the scores.")

    def _items(self, batch: Any) -> Groups:
        shares, goal = self.log_shares(batch, self.temperature, self.beta)
        return -_group_sum(goal.exp() * shares, batch.group)


class KTO(
    StatelessLoss,
    name="kto",
    formula="λ_D(1-σ(β(a-z))) or λ_U(1-σ(β(z-b))), z = max(0, mean mismatched log-ratio)",
    source="Ethayarajh et al. 2024, arXiv:2402.01306; mismatched pairs as in the official code",
    data=frozenset({"unpaired"}),
    needs=frozenset({"reference", "mismatched"}),
    whole_batch=True,
):
    """Gains and losses of single responses about a reference point."""

    beta: float = beta_field(0.1)
    desirable_weight: float = Field(default=1.0, ge=0, description="λ_D.")
    undesirable_weight: float = Field(default=1.0, ge=0, description="λ_U.")

    def _items(self, batch: Any) -> Items:
        gain: Items = self.beta * (batch.responses.log_ratios - reference_point(batch.mismatched))
        won = self.desirable_weight * torch.sigmoid(-gain)
        return torch.where(batch.desirable, won, self.undesirable_weight * torch.sigmoid(gain))


def reference_point(mismatched: Responses) -> Float[Tensor, ""]:
    """Z of KTO: an estimate of the policy's divergence from its reference, nats, no gradient.

    ``max(0, mean log-ratio of prompts with other prompts' responses)``: a KL divergence is
    never negative, though its estimate from a few responses is.

    Args:
        mismatched: The prompts with the responses of other prompts.
    """
    return mismatched.log_ratios.detach().mean().clamp(min=0)


class SFT(
    StatelessLoss,
    name="sft",
    aliases=("nll",),
    formula="-ℓ_w / L_w, as a mean over the batch's tokens",
    source="maximum likelihood",
    data=frozenset({"pairs", "responses"}),
    needs=NO_NEEDS,
):
    """Likelihood of the chosen response, or of given responses."""

    def _items(self, batch: Any) -> Items:
        pairs = isinstance(batch, PairBatch)
        responses: Responses = batch.chosen if pairs else batch.responses
        # The mean over the batch's items must be the mean over its tokens, as in transformers
        # and TRL, however the batch is cut into micro-batches: so by the whole batch's counts.
        share: float = batch.totals.items / batch.totals.chosen_tokens
        return -responses.log_probs * share


def group_log_softmax(values: Items, group: Int[Tensor, " items"]) -> Items:
    """Log-softmax within every group.

    Args:
        values: Logits. [items].
        group: Group of each, ascending from 0. [items].

    Returns:
        Log-probabilities; those of a group add up to 1. [items].
    """
    # The largest value of the group goes first, or e^x overflows; it cancels, so that its
    # gradient may be left out.
    top = values.detach().new_full((_count(group),), -torch.inf)
    top = top.scatter_reduce(0, group, values.detach(), "amax")
    shifted = values - top[group]
    return shifted - _group_sum(shifted.exp(), group).log()[group]


def _group_sum(values: Items, group: Tensor) -> Groups:
    return values.new_zeros(_count(group)).index_add(0, group, values)


def _count(group: Tensor) -> int:
    return int(group.max()) + 1
