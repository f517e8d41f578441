"""Losses that read some tokens of a response only."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import logsigmoid

from prefstage.losses.batches import Items

TokenMask = Bool[Tensor, "items tokens"]
TokenValues = Float[Tensor, "items tokens"]


def sgdpo_loss(
    chosen: Items, rejected: Items, chosen_pilot: Items, rejected_pilot: Items, *, beta: float
) -> Items:
    """Self-guided DPO: each side is compared with a pilot of the other.

    ``-½ log σ(β(a - sg[p_l])) - ½ log σ(β(sg[p_w] - b))``.

    Args:
        chosen: a, log-ratio of the preferred response. [items], nats.
        rejected: b, log-ratio of the other response. [items], nats.
        chosen_pilot: p_w, the log-ratio summed over drawn tokens of the preferred
            response; its gradient is stopped here. [items], nats.
        rejected_pilot: p_l, the same of the other response. [items], nats.
        beta: Pull towards the reference, > 0. 1/nats.

    Returns:
        Loss of each pair, unreduced. [items], nats.

    Source:
        Self-Guided DPO, arXiv:2505.12435, appendix B (loss) and C (gradients).
    """
    up = logsigmoid(beta * (chosen - rejected_pilot.detach()))
    down = logsigmoid(beta * (chosen_pilot.detach() - rejected))
    return -0.5 * up - 0.5 * down


def draw_tokens(
    lengths: Int[Tensor, " items"],
    counts: Int[Tensor, " items"],
    seeds: Int[Tensor, " items"],
    *,
    tokens: int,
    stream: int = 0,
) -> TokenMask:
    """Draw token positions uniformly, without replacement.

    Each item draws from a generator of its own seed, so that a draw depends neither on
    the batch nor on the device.

    Args:
        lengths: Tokens of each response, >= 1. [items].
        counts: How many to draw of each, from 1 to its length. [items].
        seeds: One seed an item and step. [items].
        tokens: Width of the mask.
        stream: 0 for the first draw of an item, 1 for the second.

    Returns:
        True at the drawn positions. [items, tokens], on the device of `lengths`.
    """
    mask = torch.zeros(len(lengths), tokens, dtype=torch.bool)
    triples = zip(lengths.tolist(), counts.tolist(), seeds.tolist(), strict=True)
    for item, (length, count, seed) in enumerate(triples):
        generator = torch.Generator().manual_seed((2 * seed + stream) % 2**63)
        mask[item, torch.randperm(length, generator=generator)[:count]] = True
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


def damped_sums(values: TokenValues, shared: Int[Tensor, " items"], *, alpha: float) -> Items:
    """Sum with the tokens past the shorter response's length damped.

    ``Σ_{t<=m} v_t + α Σ_{t>m} v_t``.

    Args:
        values: Value of each token, 0 past the end. [items, tokens].
        shared: m = min(L_w, L_l). [items].
        alpha: α, in [0, 1].

    Returns:
        Sums. [items].

    Source:
        Liu et al. 2024 (LD-DPO), arXiv:2409.06411.
    """
    place = torch.arange(values.shape[1], device=values.device)
    return torch.where(place < shared[:, None], values, alpha * values).sum(1)
