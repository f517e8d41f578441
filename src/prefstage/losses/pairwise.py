"""Losses on the two log-ratios of a pair.

Throughout, `chosen` is a = log π(y_w|x) - log π_ref(y_w|x), `rejected` is b, the same of
the other response, and Δ = a - b.
"""

import math

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.functional import logsigmoid

from prefstage.losses.batches import Items


def sigmoid_loss(chosen: Items, rejected: Items, *, beta: float, flip_rate: float = 0.0) -> Items:
    """Bradley-Terry negative log-likelihood (DPO; conservative DPO if flip_rate > 0).

    ``-(1-ε) log σ(βΔ) - ε log σ(-βΔ)``, with ε = flip_rate.

    Args:
        chosen: log π(y|x) - log π_ref(y|x) of the preferred response. [items], nats.
        rejected: The same of the other response. [items], nats.
        beta: Pull towards the reference, > 0. 1/nats.
        flip_rate: Assumed share of flipped labels, in [0, 0.5).

    Returns:
        Loss of each pair, unreduced. [items], nats.

    Source:
        Rafailov et al. 2023, arXiv:2305.18290, Eq. 7; ε: Mitchell 2023, cDPO note, Eq. 3.
    """
    scaled = beta * (chosen - rejected)
    return -(1 - flip_rate) * logsigmoid(scaled) - flip_rate * logsigmoid(-scaled)


def gamma_loss(policy: Items, reference: Items, *, beta: float, gamma: float) -> Items:
    """DPO with a reference of adjustable weight.

    ``-log σ(β[(ℓ_w - ℓ_l) - γ(ℓ_w^ref - ℓ_l^ref)])``; γ = 1 is DPO, γ = 0 has no reference.

    Args:
        policy: ℓ_w - ℓ_l. [items], nats.
        reference: ℓ_w^ref - ℓ_l^ref. [items], nats.
        beta: Steepness, > 0. 1/nats.
        gamma: Weight of the reference, >= 0.

    Returns:
        Loss of each pair, unreduced. [items], nats.

    Source:
        Chen et al. 2024, arXiv:2405.19534, Eq. 4.
    """
    return -logsigmoid(beta * (policy - gamma * reference))


def hinge_loss(chosen: Items, rejected: Items, *, beta: float) -> Items:
    """Hinge on the normalised margin: ``max(0, 1 - βΔ)``.

    Args:
        chosen: log-ratio of the preferred response. [items], nats.
        rejected: log-ratio of the other response. [items], nats.
        beta: 1/β is the margin wanted, > 0. 1/nats.

    Returns:
        Loss of each pair, unreduced. [items].

    Source:
        Liu et al. 2023 (RSO), arXiv:2309.06657 (hinge-norm).
    """
    return torch.relu(1 - beta * (chosen - rejected))


def ipo_loss(chosen: Items, rejected: Items, *, tau: float) -> Items:
    """Squared distance of the margin from its goal: ``(Δ - 1/(2τ))²``.

    Args:
        chosen: log-ratio of the preferred response, as a mean over its tokens (the
            authors' choice) or as a sum. [items], nats.
        rejected: The same of the other response. [items], nats.
        tau: Regularisation, > 0. 1/nats.

    Returns:
        Loss of each pair, unreduced. [items], nats².

    Source:
        Azar et al. 2023, arXiv:2310.12036, Eq. 17.
    """
    return (chosen - rejected - 1 / (2 * tau)).square()


def robust_loss(chosen: Items, rejected: Items, *, beta: float, flip_rate: float) -> Items:
    """DPO made unbiased under a known rate of flipped labels.

    ``[-(1-ε) log σ(βΔ) + ε log σ(-βΔ)] / (1-2ε)``.

    Args:
        chosen: log-ratio of the preferred response. [items], nats.
        rejected: log-ratio of the other response. [items], nats.
        beta: Pull towards the reference, > 0. 1/nats.
        flip_rate: ε, in [0, 0.5).

    Returns:
        Loss of each pair, unreduced; may be negative. [items], nats.

    Source:
        Chowdhury et al. 2024, arXiv:2403.00409.
    """
    scaled = beta * (chosen - rejected)
    clean, flipped = -(1 - flip_rate) * logsigmoid(scaled), flip_rate * logsigmoid(-scaled)
    return (clean + flipped) / (1 - 2 * flip_rate)


def exo_loss(chosen: Items, rejected: Items, *, beta: float, flip_rate: float) -> Items:
    """Reverse KL of the policy's preference from the smoothed label (EXO for pairs).

    ``s(ln s - ln(1-ε)) + (1-s)(ln(1-s) - ln ε)`` with s = σ(βΔ).

    Args:
        chosen: log-ratio of the preferred response. [items], nats.
        rejected: log-ratio of the other response. [items], nats.
        beta: β_π, > 0. 1/nats.
        flip_rate: ε, in (0, 0.5).

    Returns:
        Loss of each pair, unreduced. [items], nats.

    Source:
        Ji et al. 2024, arXiv:2402.00856, Eq. 16.
    """
    scaled = beta * (chosen - rejected)
    share = torch.sigmoid(scaled)
    kept = share * (logsigmoid(scaled) - math.log1p(-flip_rate))
    return kept + torch.sigmoid(-scaled) * (logsigmoid(-scaled) - math.log(flip_rate))


def nca_loss(chosen: Items, rejected: Items, *, beta: float) -> Items:
    """Noise-contrastive alignment on pairs.

    ``-log σ(βa) - ½ log σ(-βa) - ½ log σ(-βb)``.

    Args:
        chosen: a. [items], nats.
        rejected: b. [items], nats.
        beta: Pull towards the reference, > 0. 1/nats.

    Returns:
        Loss of each pair, unreduced. [items], nats.

    Source:
        Chen et al. 2024, arXiv:2402.05369 (NCA for pairs).
    """
    up, down = beta * chosen, beta * rejected
    return -logsigmoid(up) - 0.5 * logsigmoid(-up) - 0.5 * logsigmoid(-down)


def bco_loss(chosen: Items, rejected: Items, *, beta: float, shift: float | Tensor) -> Items:
    """Binary classifier of chosen against rejected responses.

    ``-log σ(βa - δ) - log σ(-(βb - δ))``.

    Args:
        chosen: a. [items], nats.
        rejected: b. [items], nats.
        beta: Pull towards the reference, > 0. 1/nats.
        shift: δ, the running mean of ½(βa + βb), no gradient; 0 leaves it out.

    Returns:
        Loss of each pair, unreduced. [items], nats.

    Source:
        Jung et al. 2024, arXiv:2404.04656.
    """
    return -logsigmoid(beta * chosen - shift) - logsigmoid(shift - beta * rejected)


def r_dpo_loss(
    chosen: Items,
    rejected: Items,
    extra_tokens: Int[Tensor, " items"],
    *,
    beta: float,
    alpha: float,
) -> Items:
    """DPO with a length term: ``-log σ(βΔ + α(L_w - L_l))``.

    Args:
        chosen: log-ratio of the preferred response. [items], nats.
        rejected: log-ratio of the other response. [items], nats.
        extra_tokens: L_w - L_l. [items], tokens.
        beta: Pull towards the reference, > 0. 1/nats.
        alpha: Discount of a longer chosen response, >= 0. 1/tokens.

    Returns:
        Loss of each pair, unreduced. [items], nats.

    Source:
        Park et al. 2024, arXiv:2403.19159, with the sign of the official code: part
        of a longer chosen response's margin counts as reached by its length alone.
    """
    return -logsigmoid(beta * (chosen - rejected) + alpha * extra_tokens.to(chosen.dtype))


def dpop_loss(chosen: Items, rejected: Items, *, beta: float, penalty: float) -> Items:
    """DPO that holds the chosen response up: ``-log σ(β(Δ - λ max(0, -a)))``.

    Args:
        chosen: a. [items], nats.
        rejected: b. [items], nats.
        beta: Pull towards the reference, > 0. 1/nats.
        penalty: λ, >= 0.

    Returns:
        Loss of each pair, unreduced. [items], nats.

    Source:
        Pal et al. 2024 (Smaug), arXiv:2402.13228.
    """
    return -logsigmoid(beta * (chosen - rejected - penalty * torch.relu(-chosen)))


def cal_dpo_loss(chosen: Items, rejected: Items, *, beta: float) -> Items:
    """DPO with log-ratios calibrated to ±1/(2β).

    ``-log σ(Δ) + ½[(a - 1/(2β))² + (b + 1/(2β))²]``.

    Args:
        chosen: a. [items], nats.
        rejected: b. [items], nats.
        beta: 1/(2β) is each log-ratio's goal, > 0. 1/nats.

    Returns:
        Loss of each pair, unreduced. [items].

    Source:
        Xiao et al. 2024, arXiv:2412.14516, with the weights of the official code.
    """
    goal = 1 / (2 * beta)
    squares = (chosen - goal).square() + (rejected + goal).square()
    return -logsigmoid(chosen - rejected) + 0.5 * squares


def sppo_loss(chosen: Items, rejected: Items, preference: Items | float, *, beta: float) -> Items:
    """Self-play: each log-ratio goes to its win rate's share.

    ``½[(a - (P_w - ½)/β)² + (b - (P_l - ½)/β)²]``, P_l = 1 - P_w.

    Args:
        chosen: a. [items], nats.
        rejected: b. [items], nats.
        preference: P_w, the judge's P(chosen ≻ rejected), in [0, 1]. [items] or a number.
        beta: 1/η, > 0. 1/nats.

    Returns:
        Loss of each pair, unreduced. [items], nats².

    Source:
        Wu et al. 2024, arXiv:2405.00675, Eq. 4.7; the factor ½ as in the official code.
    """
    goal = (preference - 0.5) / beta
    return 0.5 * ((chosen - goal).square() + (rejected + goal).square())


def apo_zero_loss(chosen: Items, rejected: Items, *, beta: float) -> Items:
    """Anchored: chosen up, rejected down. ``1 - σ(βa) + σ(βb)``.

    Args:
        chosen: a. [items], nats.
        rejected: b. [items], nats.
        beta: Pull towards the reference, > 0. 1/nats.

    Returns:
        Loss of each pair, unreduced. [items], in (0, 2).

    Source:
        D'Oosterlinck et al. 2024, arXiv:2408.06266, Eq. 7.
    """
    return torch.sigmoid(-beta * chosen) + torch.sigmoid(beta * rejected)


def apo_down_loss(chosen: Items, rejected: Items, *, beta: float) -> Items:
    """Anchored: both down, rejected more. ``σ(βa) + 1 - σ(βΔ)``.

    Args:
        chosen: a. [items], nats.
        rejected: b. [items], nats.
        beta: Pull towards the reference, > 0. 1/nats.

    Returns:
        Loss of each pair, unreduced. [items], in (0, 2).

    Source:
        D'Oosterlinck et al. 2024, arXiv:2408.06266, Eq. 8.
    """
    return torch.sigmoid(beta * chosen) + torch.sigmoid(-beta * (chosen - rejected))


def discopop_loss(chosen: Items, rejected: Items, *, beta: float, tau: float) -> Items:
    """The discovered blend of logistic and exponential loss.

    ``(1-m)(-log σ(βΔ)) + m e^{-βΔ}`` with m = σ(βΔ/τ).

    Args:
        chosen: log-ratio of the preferred response. [items], nats.
        rejected: log-ratio of the other response. [items], nats.
        beta: Pull towards the reference, > 0. 1/nats.
        tau: Temperature of the blend, in (0, 1], where the product m e^{-βΔ} is bounded.

    Returns:
        Loss of each pair, unreduced. [items].

    Source:
        Lu et al. 2024, arXiv:2406.08414, Eq. 5 (LRML); m e^{-βΔ} is computed in logs.
    """
    scaled = beta * (chosen - rejected)
    logistic = -torch.sigmoid(-scaled / tau) * logsigmoid(scaled)
    return logistic + torch.exp(logsigmoid(scaled / tau) - scaled)


def wpo_weights(chosen: Items, rejected: Items) -> Items:
    """How likely the policy itself would write the pair: ``min(1, exp(A_w + A_l))``.

    Args:
        chosen: A_w, the mean over tokens of log π(y_t) - log Σ_v π(v)². [items], nats.
        rejected: A_l, the same of the other response. [items], nats.

    Returns:
        Weight of each pair, without gradient, in (0, 1]. [items].

    Source:
        Zhou et al. 2024, arXiv:2406.11827, Eq. 2 and its aligned sampling weights; capped
        at 1 as in the official code.
    """
    return torch.exp((chosen + rejected).detach().clamp(max=0))
