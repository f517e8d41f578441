"""Losses on single responses, each desirable or not, or to be imitated."""

import math
from typing import Any

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from prefstage.losses.base import (
    DataKind,
    Items,
    Loss,
    LossState,
    LossValues,
    PairBatch,
    Responses,
    StatelessLoss,
    UnpairedBatch,
)
from prefstage.losses.pairwise import NO_NEEDS, Beta

UNPAIRED: frozenset[DataKind] = frozenset({"unpaired"})
SUREST_Q = 0.99
"""Beyond it -log(1 - q) of PIPA-M, which q = 1 makes infinite, goes on as a straight line."""


class KTO(
    StatelessLoss,
    name="kto",
    formula="λ_D(1-σ(β(a-z))) or λ_U(1-σ(β(z-b))), z = max(0, mean mismatched log-ratio)",
    source="Ethayarajh et al. 2024, arXiv:2402.01306; mismatched pairs as in the official code",
    data=UNPAIRED,
    needs=frozenset({"reference", "mismatched"}),
    whole_batch=True,
):
    """Gains and losses of single responses about a reference point."""

    beta: Beta = 0.1
    desirable_weight: float = Field(default=1.0, ge=0, description="λ_D.")
    undesirable_weight: float = Field(default=1.0, ge=0, description="λ_U.")

    def _items(self, batch: Any) -> Items:
        gain: Items = self.beta * (batch.responses.log_ratios - reference_point(batch.mismatched))
        return torch.where(
            batch.desirable,
            self.desirable_weight * torch.sigmoid(-gain),
            self.undesirable_weight * torch.sigmoid(gain),
        )


def reference_point(mismatched: Responses) -> Float[Tensor, ""]:
    """Z of KTO: an estimate of the policy's divergence from its reference, nats, no gradient.

    ``max(0, mean log-ratio of prompts with other prompts' responses)``: a KL divergence is
    never negative, though its estimate from a few responses is.

    Args:
        mismatched: The prompts with the responses of other prompts.
    """
    return mismatched.log_ratios.detach().mean().clamp(min=0)


class UnpairedAPOZero(
    StatelessLoss,
    name="apo_zero_unpaired",
    formula="λ_D(1-σ(βa)) or λ_U σ(βb)",
    source="D'Oosterlinck et al. 2024, arXiv:2408.06266, Eq. 7, its two terms apart",
    data=UNPAIRED,
):
    """Anchored: desirable responses up, the others down."""

    beta: Beta = 0.1
    desirable_weight: float = Field(default=1.0, ge=0, description="λ_D.")
    undesirable_weight: float = Field(default=1.0, ge=0, description="λ_U.")

    def _items(self, batch: Any) -> Items:
        reward = self.beta * batch.responses.log_ratios
        return torch.where(
            batch.desirable,
            self.desirable_weight * torch.sigmoid(-reward),
            self.undesirable_weight * torch.sigmoid(reward),
        )


class UnpairedBCO(
    Loss,
    name="bco_unpaired",
    formula="-log σ(βa - δ) or -log σ(-(βb - δ)), δ = ½(running mean of βa + that of βb)",
    source="Jung et al. 2024, arXiv:2404.04656",
    data=UNPAIRED,
    whole_batch=True,
    initial={"means": {}, "counts": {}},
):
    """Binary classifier of desirable responses, shifted by the mean reward."""

    beta: Beta = 0.1

    def _compute(self, batch: Any, state: LossState) -> LossValues:
        rewards = self.beta * batch.responses.log_ratios
        means, counts = dict(state["means"]), dict(state["counts"])
        # Of each label by itself, so that their shares in the data do not move δ. The increment
        # form, in float64, keeps its digits however many responses there were.
        for label, rows in (("desirable", batch.desirable), ("undesirable", ~batch.desirable)):
            if number := int(rows.sum()):
                present = float(rewards.detach()[rows].double().mean())
                counts[label] = counts.get(label, 0) + number
                mean = means.get(label, 0.0)
                means[label] = mean + (present - mean) * number / counts[label]
        # A label that has not come yet has no mean.
        shifted = rewards - sum(means.values()) / len(means)
        values = -logsigmoid(torch.where(batch.desirable, shifted, -shifted))
        return LossValues(values * self.weights(batch), {"means": means, "counts": counts})

    def weights(self, batch: Any) -> Items:
        """What each response counts for. [items]."""
        return torch.ones_like(batch.responses.log_probs)


class MatchedBCO(
    UnpairedBCO,
    name="bco_udm",
    formula="-log σ(βa - δ) or -w log σ(-(βb - δ)), w = clip(p(x|desirable)/p(x|undesirable))",
    source="Jung et al. 2024, arXiv:2404.04656 (UDM); bounds as in TRL's former BCOTrainer",
    data=UNPAIRED,
    needs=frozenset({"reference", "density_ratio"}),
    whole_batch=True,
    initial={"means": {}, "counts": {}},
):
    """BCO whose undesirable responses weigh as if their prompts were the desirable ones'."""

    min_ratio: float = Field(default=0.5, ge=0, description="Least weight.")
    max_ratio: float = Field(default=10.0, gt=0, description="Largest weight.")

    def weights(self, batch: Any) -> Items:
        """The density ratio of each undesirable response's prompt; 1 of the others. [items]."""
        ratio = batch.density_ratio.detach().clamp(self.min_ratio, self.max_ratio)
        return torch.where(batch.desirable, torch.ones_like(ratio), ratio)


class PIPAM(
    StatelessLoss,
    name="pipa_m",
    formula="-c log q - (1-c) log(1-q), q = min(1, ρ π/π_ref)",
    source="PIPA, arXiv:2502.05773: derived from its framework (marginal prior, p(y|x) = π_ref), "
    "not checked against its listing",
    data=UNPAIRED,
):
    """Likelihood of the label, if the reference wrote desirable and other responses alike."""

    prior: float = Field(default=0.5, gt=0, lt=1, description="ρ: share of desirable responses.")

    def _items(self, batch: Any) -> Items:
        log_q = batch.responses.log_ratios + math.log(self.prior)
        surest = math.log(SUREST_Q)
        # Of q = 1 the loss is infinite and its slope too; a straight line goes on pulling down.
        below = -torch.log(-torch.expm1(log_q.clamp(max=surest)))
        beyond = SUREST_Q / (1 - SUREST_Q) * torch.relu(log_q - surest)
        return torch.where(batch.desirable, torch.relu(-log_q), below + beyond)


class PIPAN(
    StatelessLoss,
    name="pipa_n",
    formula="-c log q - (1-c) log(1-q), q = σ(log π - log π_ref + logit ρ)",
    source="PIPA, arXiv:2502.05773: derived from its framework (negative prior, "
    "p(y|x,c=0) = π_ref), not checked against its listing",
    data=UNPAIRED,
):
    """Likelihood of the label, if the reference wrote the undesirable responses."""

    prior: float = Field(default=0.5, gt=0, lt=1, description="ρ: share of desirable responses.")

    def _items(self, batch: Any) -> Items:
        logit = batch.responses.log_ratios + math.log(self.prior) - math.log1p(-self.prior)
        return -logsigmoid(torch.where(batch.desirable, logit, -logit))


class SFT(
    StatelessLoss,
    name="sft",
    aliases=("nll",),
    formula="-ℓ_w / L_w, as a mean over the batch's tokens",
    source="maximum likelihood",
    data=frozenset({"pairs", "responses", "unpaired"}),
    needs=NO_NEEDS,
):
    """Likelihood of the chosen response, of desirable ones, or of given responses."""

    def _items(self, batch: Any) -> Items:
        responses = batch.chosen if isinstance(batch, PairBatch) else batch.responses
        # The mean over the batch's items must be the mean over its tokens, as in transformers
        # and TRL, however the batch is cut into micro-batches: so by the whole batch's counts.
        share: float = batch.totals.items / max(batch.totals.chosen_tokens, 1)
        values = -responses.log_probs * share
        # What is not desirable is not imitated, and its tokens do not count.
        if isinstance(batch, UnpairedBatch):
            return torch.where(batch.desirable, values, 0.0)
        return values
