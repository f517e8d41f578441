"""Losses that need no reference model."""

import torch
from torch.nn.functional import logsigmoid

from prefstage.losses.batches import Items


def slic_loss(chosen: Items, rejected: Items, *, margin: float, imitation: float) -> Items:
    """Sequence likelihood calibration: ``max(0, δ - ℓ_w + ℓ_l) - λ ℓ_w``.

    The response to imitate is the chosen one.

    Args:
        chosen: ℓ_w, log π(y_w|x). [items], nats.
        rejected: ℓ_l. [items], nats.
        margin: δ, >= 0. nats.
        imitation: λ, >= 0.

    Returns:
        Loss of each pair, unreduced. [items], nats.

    Source:
        Zhao et al. 2023 (SLiC-HF), arXiv:2305.10425; arXiv:2508.10530, Eq. 25.
    """
    return torch.relu(margin - chosen + rejected) - imitation * chosen


def simpo_loss(chosen: Items, rejected: Items, *, beta: float, margin: float) -> Items:
    """Mean log-probs with a target margin: ``-log σ(β(ℓ_w/L_w - ℓ_l/L_l) - γ)``.

    Args:
        chosen: ℓ_w / L_w. [items], nats a token.
        rejected: ℓ_l / L_l. [items], nats a token.
        beta: Scale of the reward, > 0.
        margin: γ, >= 0.

    Returns:
        Loss of each pair, unreduced. [items], nats.

    Source:
        Meng et al. 2024, arXiv:2405.14734.
    """
    return -logsigmoid(beta * (chosen - rejected) - margin)


def orpo_loss(chosen: Items, rejected: Items, *, weight: float) -> Items:
    """Imitation and an odds ratio: ``-ℓ_w/L_w - λ log σ(log-odds_w - log-odds_l)``.

    The odds are those of the mean token likelihood p = e^{ℓ/L}: log p - log(1 - p).

    Args:
        chosen: ℓ_w / L_w, <= 0. [items], nats a token.
        rejected: ℓ_l / L_l, <= 0. [items], nats a token.
        weight: λ, >= 0.

    Returns:
        Loss of each pair, unreduced. [items], nats.

    Source:
        Hong et al. 2024, arXiv:2403.07691.
    """
    return -chosen - weight * logsigmoid(_log_odds(chosen) - _log_odds(rejected))


def cpo_loss(
    chosen: Items, rejected: Items, chosen_mean: Items, *, beta: float, imitation: float
) -> Items:
    """DPO without a reference, and imitation: ``-log σ(β(ℓ_w - ℓ_l)) - α ℓ_w/L_w``.

    Args:
        chosen: ℓ_w. [items], nats.
        rejected: ℓ_l. [items], nats.
        chosen_mean: ℓ_w / L_w. [items], nats a token.
        beta: Steepness, > 0. 1/nats.
        imitation: α, >= 0.

    Returns:
        Loss of each pair, unreduced. [items], nats.

    Source:
        Xu et al. 2024, arXiv:2401.08417; the imitation as a mean over tokens, as
        in the official code.
    """
    return -logsigmoid(beta * (chosen - rejected)) - imitation * chosen_mean


def sft_loss(log_probs: Items, *, items: int, tokens: int) -> Items:
    """Share of each response in the mean negative log-likelihood of the batch's tokens.

    ``-ℓ · items / tokens``: its mean over the batch's items is the mean over its tokens.

    Args:
        log_probs: ℓ of the responses to imitate. [items], nats.
        items: Items of the whole optimiser batch.
        tokens: Their tokens.

    Returns:
        Loss of each response, unreduced. [items], nats a token.

    Source:
        Maximum likelihood; the token mean is that of transformers and TRL.
    """
    return -log_probs * (items / tokens)


def _log_odds(mean: Items) -> Items:
    """Log-odds of p = e^mean, finite for p = 1 (then as if 1 - p were one rounding)."""
    mean = mean.clamp(max=-torch.finfo(mean.dtype).eps)
    return mean - torch.log(-torch.expm1(mean))
