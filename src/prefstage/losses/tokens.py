"""Losses that read the tokens of a pair's responses, or their number, and not only sums."""

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Int
from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid

from prefstage.losses.base import Items, Need, PairBatch, Responses, StatelessLoss
from prefstage.losses.pairwise import DPO, Beta

TOKEN_NEEDS: frozenset[Need] = frozenset({"reference", "tokens"})


class SGDPO(
    StatelessLoss,
    name="sgdpo",
    formula="-½ log σ(β(a - sg[p_l])) - ½ log σ(β(sg[p_w] - b))",
    source="Self-Guided DPO, arXiv:2505.12435, appendix B (loss) and C (gradients)",
    needs=TOKEN_NEEDS,
    random=True,
):
    """Self-guided DPO: each side against a pilot drawn from the other."""

    beta: Beta = 0.1
    r1: float = Field(default=0.6, gt=0, le=1, description="Share of tokens, chosen pilot.")
    r2: float = Field(default=0.9, gt=0, le=1, description="Share of tokens, rejected pilot.")

    def _items(self, batch: Any) -> Items:
        counts = (pilot_counts(_shorter(batch), share=share) for share in (self.r1, self.r2))
        pilots = _drawn_ratios(batch, *counts)
        return self.of_pilots(batch.chosen.log_ratios, batch.rejected.log_ratios, *pilots)

    def of_pilots(
        self, chosen: Items, rejected: Items, chosen_pilot: Items, rejected_pilot: Items
    ) -> Items:
        """The loss from log-ratios and pilots.

        Args:
            chosen: a, log-ratio of the preferred response. [items], nats.
            rejected: b, log-ratio of the other response. [items], nats.
            chosen_pilot: p_w, the log-ratio summed over drawn tokens of the preferred
                response; its gradient is stopped here. [items], nats.
            rejected_pilot: p_l, the same of the other response. [items], nats.

        Returns:
            Loss of every pair, unreduced. [items], nats.
        """
        up = logsigmoid(self.beta * (chosen - rejected_pilot.detach()))
        return -0.5 * up - 0.5 * logsigmoid(self.beta * (chosen_pilot.detach() - rejected))


class SamPO(
    StatelessLoss,
    name="sampo",
    formula="-log σ(β(a_m - b_m)), sums over m = min(L_w, L_l) random tokens",
    source="arXiv:2406.10957",
    needs=TOKEN_NEEDS,
    random=True,
):
    """DPO on equally many random tokens of each side."""

    beta: Beta = 0.1

    def _items(self, batch: Any) -> Items:
        shorter = _shorter(batch)
        return DPO(beta=self.beta).of_ratios(*_drawn_ratios(batch, shorter, shorter))


class RDPO(
    StatelessLoss,
    name="r_dpo",
    formula="-log σ(βΔ + α(L_w - L_l))",
    source="Park et al. 2024, arXiv:2403.19159",
):
    """DPO with a length term."""

    beta: Beta = 0.1
    alpha: float = Field(default=0.01, ge=0, description="Length term, 1/tokens.")

    def _items(self, batch: Any) -> Items:
        chosen, rejected = batch.chosen, batch.rejected
        extra = (chosen.lengths - rejected.lengths).to(chosen.policy.dtype)
        # The sign of the official code: part of a longer chosen response's margin counts as
        # reached by its length alone.
        margin = chosen.log_ratios - rejected.log_ratios
        return -logsigmoid(self.beta * margin + self.alpha * extra)


class LDDPO(
    StatelessLoss,
    name="ld_dpo",
    formula="DPO on Σ_{t<=m} + α Σ_{t>m}, m = min(L_w, L_l)",
    source="Liu et al. 2024, arXiv:2409.06411",
    needs=TOKEN_NEEDS,
):
    """DPO with the tokens past the shorter response's length damped."""

    beta: Beta = 0.1
    alpha: float = Field(default=0.5, ge=0, le=1, description="Weight past the shorter length.")

    def _items(self, batch: Any) -> Items:
        damped = damped_tails(batch, self.alpha)
        return DPO(beta=self.beta).of_ratios(damped.chosen.log_ratios, damped.rejected.log_ratios)


class WPO(
    StatelessLoss,
    name="wpo",
    formula="min(1, exp(A_w + A_l)) · DPO, A = mean_t[log π(y_t) - log Σ_v π(v)²]",
    source="Zhou et al. 2024, arXiv:2406.11827, Eq. 2; at most 1 as in the official code",
    needs=frozenset({"reference", "tokens", "log_sum_squares"}),
):
    """DPO weighted by how likely the policy itself would write the pair."""

    beta: Beta = 0.1

    def _items(self, batch: Any) -> Items:
        losses = DPO(beta=self.beta).of_ratios(batch.chosen.log_ratios, batch.rejected.log_ratios)
        return policy_weights(batch) * losses


def policy_weights(batch: Any) -> Items:
    """WPO's weight of each pair: how likely the policy itself would write it.

    ``min(1, exp(A_w + A_l))``, A = mean_t[log π(y_t) - log Σ_v π(v)²].

    Args:
        batch: Pairs with `log_sum_squares`.

    Returns:
        Weights in (0, 1], without gradient. [items].

    Source:
        Zhou et al. 2024, arXiv:2406.11827, Eq. 2; at most 1 as in the official code.
    """

    def alignment(side: Any) -> Any:
        return ((side.policy - side.log_sum_squares) * side.mask).sum(1) / side.lengths

    likely: Items = (alignment(batch.chosen) + alignment(batch.rejected)).detach()
    return likely.clamp(max=0).exp()


def damped_tails(batch: PairBatch, alpha: float) -> PairBatch:
    """Pairs whose log-probs past the shorter response's length count for less.

    Args:
        batch: Pairs.
        alpha: What a token counts past min(L_w, L_l), in [0, 1].

    Returns:
        The pairs, log-probs of policy and reference weighed; lengths stay.

    Source:
        Liu et al. 2024, arXiv:2409.06411 (LD-DPO).
    """
    shared = _shorter(batch)[:, None]

    def damped(side: Responses) -> Responses:
        within = torch.arange(side.policy.shape[1], device=shared.device) < shared
        # In the log-probs' own precision: two plain numbers would make float32 of α.
        weights = torch.where(within, side.policy.new_ones(()), alpha)
        reference = None if side.reference is None else weights * side.reference
        return replace(side, policy=weights * side.policy, reference=reference)

    return replace(batch, chosen=damped(batch.chosen), rejected=damped(batch.rejected))


def draw_tokens(
    lengths: Int[Tensor, " items"],
    counts: Int[Tensor, " items"],
    seeds: Int[Tensor, " items"],
    *,
    tokens: int,
    stream: int = 0,
) -> Bool[Tensor, "items tokens"]:
    """Draw token positions uniformly, without replacement.

    Args:
        lengths: Tokens of each response, >= 1. [items].
        counts: How many to draw of each, from 1 to its length. [items].
        seeds: One seed an item and step. [items].
        tokens: Width of the mask.
        stream: 0 for the first draw of an item, 1 for the second.

    Returns:
        True at the drawn positions. [items, tokens], on the device of `lengths`.
    """
    # Every item draws from a generator of its own seed, and always on the CPU, so that a draw
    # depends neither on the other items of the micro-batch nor on the device, and a run that
    # is resumed or spread over processes draws the same.
    mask = torch.zeros(len(lengths), tokens, dtype=torch.bool)
    for row, length, count, seed in zip(
        *(mask, lengths.tolist(), counts.tolist(), seeds.tolist()), strict=True
    ):
        generator = torch.Generator().manual_seed((2 * seed + stream) % 2**63)
        row[torch.randperm(length, generator=generator)[:count]] = True
    return mask.to(lengths.device)


def pilot_counts(shorter: Int[Tensor, " items"], *, share: float) -> Int[Tensor, " items"]:
    """Tokens of a pilot: ``max(⌊r · min(L_w, L_l)⌋, 1)``.

    Args:
        shorter: min(L_w, L_l). [items].
        share: r, in (0, 1].

    Returns:
        Counts. [items].

    Source:
        Self-Guided DPO, arXiv:2505.12435, appendix B.
    """
    # In float64 with a rounding's tolerance: 0.7 · 10 is 7 tokens, not 6.
    return (share * shorter.double() + 1e-9).floor().long().clamp(min=1)


def _shorter(batch: PairBatch) -> Tensor:
    return torch.minimum(batch.chosen.lengths, batch.rejected.lengths)


# Both sides' log-ratios, summed over drawn tokens. [items] each.
def _drawn_ratios(batch: Any, *counts: Tensor) -> list[Items]:
    return [
        (
            side.token_log_ratios
            * draw_tokens(
                side.lengths, count, batch.seeds, tokens=side.policy.shape[1], stream=stream
            )
        ).sum(1)
        for stream, (side, count) in enumerate(
            zip((batch.chosen, batch.rejected), counts, strict=True)
        )
    ]
