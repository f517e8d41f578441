"""Losses on single responses, each desirable or not."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from prefstage.losses.batches import Items


def kto_loss(
    log_ratios: Items,
    desirable: Bool[Tensor, " items"],
    reference_point: Float[Tensor, ""],
    *,
    beta: float,
    desirable_weight: float,
    undesirable_weight: float,
) -> Items:
    """Gains and losses about a reference point.

    ``λ_D (1 - σ(β(a - z)))`` of a desirable response, ``λ_U (1 - σ(β(z - b)))`` of another.

    Args:
        log_ratios: log π(y|x) - log π_ref(y|x). [items], nats.
        desirable: Whether each response is desirable. [items].
        reference_point: z, see `kto_reference_point`. A number, nats.
        beta: Risk aversion, > 0. 1/nats.
        desirable_weight: λ_D, >= 0.
        undesirable_weight: λ_U, >= 0.

    Returns:
        Loss of each response, unreduced. [items].

    Source:
        Ethayarajh et al. 2024, arXiv:2402.01306.
    """
    gain = beta * (log_ratios - reference_point)
    won = desirable_weight * torch.sigmoid(-gain)
    return torch.where(desirable, won, undesirable_weight * torch.sigmoid(gain))


def kto_reference_point(mismatched: Items) -> Float[Tensor, ""]:
    """Estimate the policy's divergence from its reference.

    ``z = max(0, mean log-ratio of prompts with other prompts' responses)``, no gradient.

    Args:
        mismatched: Their log-ratios. [items], nats.

    Returns:
        z, a number, nats.

    Source:
        Ethayarajh et al. 2024, arXiv:2402.01306; mismatched pairs as in the official code.
    """
    return mismatched.detach().mean().clamp(min=0)
