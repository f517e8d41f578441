"""Losses in which a pair's value depends on the other pairs, or on pairs seen before."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import logsigmoid

from prefstage.losses.batches import Items


def aot_loss(left: Items, right: Items, *, beta: float, flip_rate: float = 0.0) -> Items:
    """Alignment by optimal transport: sorted values against sorted values.

    ``-(1-ε) log σ(βd) - ε log σ(-βd)`` with d = sort(left) - sort(right): one quantile
    function shall lie above the other. Each quantile's value stands where its left value
    stood, so that it belongs to an item.

    Args:
        left: ℓ_w - ℓ_l (paired form) or a (unpaired form). [items], nats.
        right: ℓ_w^ref - ℓ_l^ref, or b. [items], nats.
        beta: Steepness, > 0. 1/nats.
        flip_rate: ε, in [0, 0.5).

    Returns:
        Loss of the quantile of each item's left value, unreduced. [items], nats.

    Source:
        Melnyk et al. 2024, arXiv:2406.05882.
    """
    rank = left.detach().argsort(stable=True).argsort()
    scaled = beta * (left - right.sort(stable=True).values[rank])
    return -(1 - flip_rate) * logsigmoid(scaled) - flip_rate * logsigmoid(-scaled)


def dynamic_beta(
    kept_margins: Items, mean: float | Tensor, *, beta: float, gain: float
) -> Float[Tensor, ""]:
    """β of a batch: ``max(1e-3, β_0 (1 + a (mean Δ_kept - μ)))``, no gradient.

    Args:
        kept_margins: Δ of the pairs that the filter kept. [items], nats.
        mean: μ, the running mean of Δ. nats.
        beta: β_0, > 0. 1/nats.
        gain: a, >= 0. 1/nats.

    Returns:
        β of this batch, a number.

    Source:
        Wu et al. 2024, arXiv:2407.08639; the floor as in the official code.
    """
    return (beta * (1 + gain * (kept_margins.detach().mean() - mean))).clamp(min=1e-3)


def filter_pairs(
    margins: Items, seeds: Int[Tensor, " items"], *, mean: float, std: float, share: float
) -> Bool[Tensor, " items"]:
    """Draw the pairs to keep, those of usual margin more often.

    Without replacement, with weights N(Δ; μ, s): the largest log-weights plus Gumbel noise,
    each pair's from its own seed.

    Args:
        margins: Δ. [items], nats.
        seeds: One seed a pair and step. [items].
        mean: μ, nats.
        std: s, > 0, nats.
        share: Share to keep, in (0, 1].

    Returns:
        True at the pairs kept, at least one. [items].

    Source:
        Wu et al. 2024, arXiv:2407.08639 (β-guided filtering).
    """
    log_weights = -0.5 * ((margins.detach().double().cpu() - mean) / std).square()
    noise = torch.tensor([_gumbel(seed) for seed in seeds.tolist()], dtype=torch.float64)
    count = max(1, int(share * len(margins) + 1e-9))
    kept = torch.zeros(len(margins), dtype=torch.bool)
    kept[torch.topk(log_weights + noise, count).indices] = True
    return kept.to(margins.device)


def label_trust(chosen: Items, rejected: Items, reliability: Items, *, beta: float) -> Items:
    """Posterior that a label is right: ``w = pη / (pη + (1-p)(1-η))``, p = σ(βΔ).

    Args:
        chosen: log-ratio of the preferred response. [items], nats.
        rejected: log-ratio of the other response. [items], nats.
        reliability: η of the pair's annotator, in (0, 1). [items].
        beta: Pull towards the reference, > 0. 1/nats.

    Returns:
        w without gradient. [items], in [0, 1].

    Source:
        RE-PO, arXiv:2509.24159; computed as a logistic of log-odds.
    """
    return torch.sigmoid(beta * (chosen - rejected).detach() + torch.logit(reliability))


def trusted_loss(chosen: Items, rejected: Items, trust: Items, *, beta: float) -> Items:
    """Cross-entropy with a soft label: ``-w ln p - (1-w) ln(1-p)``, p = σ(βΔ).

    Args:
        chosen: log-ratio of the preferred response. [items], nats.
        rejected: log-ratio of the other response. [items], nats.
        trust: w, in [0, 1]. [items].
        beta: Pull towards the reference, > 0. 1/nats.

    Returns:
        Loss of each pair, unreduced. [items], nats.

    Source:
        RE-PO, arXiv:2509.24159.
    """
    scaled = beta * (chosen - rejected)
    return -trust * logsigmoid(scaled) - (1 - trust) * logsigmoid(-scaled)


def _gumbel(seed: int) -> float:
    generator = torch.Generator().manual_seed(seed % 2**63)
    drawn = torch.rand((), generator=generator, dtype=torch.float64).clamp(min=1e-300)
    return float(-torch.log(-torch.log(drawn)))
