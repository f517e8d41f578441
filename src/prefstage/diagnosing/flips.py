"""What flips a ranking, what training can learn, and how far apart the sides of pairs are."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import logsigmoid

from prefstage.core import InputError
from prefstage.diagnosing.rankings import check_positive, check_some, exact

FLIP_GROUPS = (
    "correct->correct",
    "correct->incorrect",
    "incorrect->correct",
    "incorrect->incorrect",
)
"""The reference's ranking, then the policy's; a group's number is its place here."""

# Relative. What four roundings of float64 can move a loss or a threshold by.
ROUNDING = 2.0**-50


@dataclass(frozen=True)
class FlipGroup:
    """One of the four groups of pairs.

    Attributes:
        pairs: How many pairs are in it.
        share: Of all pairs, in [0, 1].
        loss: Their mean DPO loss, nats; None for an empty group.
        reward_margin: Their mean reward margin βΔ; None for an empty group.
    """

    pairs: int
    share: float
    loss: float | None
    reward_margin: float | None


def reference_log_ratio(
    reference_chosen: Float[Tensor, " pairs"], reference_rejected: Float[Tensor, " pairs"]
) -> Float[Tensor, " pairs"]:
    """How much likelier the reference finds the rejected response: how hard the pair is.

    ``c = log π_ref(y_l|x) - log π_ref(y_w|x)``; positive where the reference is wrong.

    Args:
        reference_chosen: log π_ref(y_w|x), summed over tokens. [pairs], nats.
        reference_rejected: log π_ref(y_l|x), likewise. [pairs], nats.

    Returns:
        c. [pairs], nats, float64.

    Raises:
        InputError: If shapes differ or a value is not finite.

    Source:
        Chen et al. 2024, arXiv:2405.19534, Definition 2.2 (without the factor β).
    """
    chosen, rejected = exact(
        reference_chosen=reference_chosen, reference_rejected=reference_rejected
    )
    return rejected - chosen


def dpo_losses(
    chosen: Float[Tensor, " pairs"],
    rejected: Float[Tensor, " pairs"],
    log_ratio: Float[Tensor, " pairs"],
    *,
    beta: float,
) -> Float[Tensor, " pairs"]:
    """DPO loss of each pair, computed so that its side of the flip threshold is exact.

    ``-log σ(β[(ℓ_w - ℓ_l) + c])``. The model's own log-ratio is taken first: the sign of a
    floating-point difference is exact and adding it to c is monotone, so that a right
    ranking never gives a loss above `flip_threshold`, and a tie gives the threshold itself.

    Args:
        chosen: ℓ_w = log π(y_w|x) under the policy, summed over tokens. [pairs], nats.
        rejected: ℓ_l, the same of the rejected response. [pairs], nats.
        log_ratio: c of `reference_log_ratio`. [pairs], nats.
        beta: Pull towards the reference, > 0. 1/nats.

    Returns:
        The loss. [pairs], nats, float64.

    Raises:
        InputError: If β is not positive, shapes differ, or a value is not finite.

    Source:
        Rafailov et al. 2023, arXiv:2305.18290, Eq. 7, in the form of Chen et al. 2024,
        arXiv:2405.19534, Definition 2.2, second line.
    """
    check_positive(beta=beta)
    first, second, c = exact(chosen=chosen, rejected=rejected, log_ratio=log_ratio)
    return -logsigmoid(beta * ((first - second) + c))


def flip_threshold(log_ratio: Float[Tensor, " pairs"], *, beta: float) -> Float[Tensor, " pairs"]:
    """The DPO loss at which a pair is ranked rightly: right if and only if at or below it.

    ``-log σ(βc)``: log 2 where the reference is indifferent, about e^(-βc) for large c, so
    that a pair which the reference has clearly wrong must be learnt to a tiny loss.

    Args:
        log_ratio: c of `reference_log_ratio`. [pairs], nats.
        beta: Pull towards the reference, > 0. 1/nats.

    Returns:
        The threshold. [pairs], nats, float64; 0 where βc > 745 (beyond float64).

    Raises:
        InputError: If β is not positive or a value is not finite.

    Source:
        Chen et al. 2024, arXiv:2405.19534, Theorem 4.1.
    """
    check_positive(beta=beta)
    return -logsigmoid(beta * exact(log_ratio=log_ratio)[0])


def largest_flippable(loss: float, *, beta: float) -> float:
    """The largest reference log-ratio that a loss overcomes: the inverse of `flip_threshold`.

    ``c* = -log(e^L - 1)/β``: a pair that is trained to the loss L is ranked rightly if and
    only if its c is at most c*.

    Args:
        loss: L, > 0. Nats.
        beta: Pull towards the reference, > 0. 1/nats.

    Returns:
        c*, nats.

    Raises:
        InputError: If a setting is not positive.

    Source:
        Chen et al. 2024, arXiv:2405.19534, Theorem 4.1, solved for c.
    """
    check_positive(loss=loss, beta=beta)
    return -(loss + math.log(-math.expm1(-loss))) / beta


def ipo_flip_threshold(
    log_ratio: Float[Tensor, " pairs"], *, tau: float
) -> Float[Tensor, " pairs"]:
    """The IPO loss that guarantees the right ranking; NaN where no loss does.

    ``(1/(2τ) - c)²`` where c <= 1/(2τ). Beyond, the optimum itself is ranked wrongly: zero
    loss implies the wrong order. Unlike DPO's this is one-sided: above it either order is
    possible.

    Args:
        log_ratio: c of `reference_log_ratio` (the paper's Proposition A.7 uses -c). For the
            IPO loss on sums of token log-probs; with the per-token means of the authors'
            code, c of the means. [pairs], nats.
        tau: IPO's τ, > 0. 1/nats.

    Returns:
        The threshold. [pairs], nats², float64; NaN where the right order is not guaranteed
        at any loss.

    Raises:
        InputError: If τ is not positive or a value is not finite.

    Source:
        Chen et al. 2024, arXiv:2405.19534, Proposition A.7.
    """
    check_positive(tau=tau)
    room = 1 / (2 * tau) - exact(log_ratio=log_ratio)[0]
    return torch.where(room >= 0, room**2, torch.nan)


def threshold_violations(
    loss: Float[Tensor, " pairs"],
    threshold: Float[Tensor, " pairs"],
    correct: Bool[Tensor, " pairs"],
    *,
    rounding: float = ROUNDING,
) -> Bool[Tensor, " pairs"]:
    """Pairs that stand on the wrong side of their flip threshold; by Theorem 4.1 there is none.

    A right ranking with a loss above the threshold, or a wrong one with a loss below it. One
    that is found means that loss, β, reference or ranking are not of the same pair and model.

    Args:
        loss: DPO loss of each pair. [pairs], nats.
        threshold: `flip_threshold` of each. [pairs], nats.
        correct: Whether the policy ranks the pair rightly, ties included. [pairs].
        rounding: Relative distance that is not told apart. A loss this close to its
            threshold belongs to either side (see `at_threshold`). The default is for losses
            of `dpo_losses`; float32 losses need about 1e-5.

    Returns:
        Where the theorem is broken. [pairs].

    Raises:
        InputError: If shapes differ or a value is not finite.

    Source:
        Chen et al. 2024, arXiv:2405.19534, Theorem 4.1.
    """
    value, limit = exact(loss=loss, threshold=threshold)
    wrong_side = torch.where(correct, value > limit, value < limit)
    return wrong_side & ~at_threshold(value, limit, rounding=rounding)


def at_threshold(
    loss: Float[Tensor, " pairs"], threshold: Float[Tensor, " pairs"], *, rounding: float = ROUNDING
) -> Bool[Tensor, " pairs"]:
    """Pairs whose loss cannot be told from their flip threshold.

    Ties of the policy stand here, which the ranking counts as right; and pairs whose
    rejected response is likelier by less than a float64 loss can show.

    Args:
        loss: DPO loss of each pair. [pairs], nats.
        threshold: `flip_threshold` of each. [pairs], nats.
        rounding: Relative distance that is not told apart.

    Returns:
        Whether the loss is at the threshold. [pairs].

    Raises:
        InputError: If shapes differ or a value is not finite.
    """
    value, limit = exact(loss=loss, threshold=threshold)
    return (value - limit).abs() <= rounding * limit


def flip_groups(
    reference_correct: Bool[Tensor, " pairs"], correct: Bool[Tensor, " pairs"]
) -> Int[Tensor, " pairs"]:
    """Which of the four groups each pair is in: kept right, unlearnt, flipped, kept wrong.

    Args:
        reference_correct: Whether the reference ranks the pair rightly. [pairs].
        correct: Whether the policy does now. [pairs].

    Returns:
        The group's place in `FLIP_GROUPS`. [pairs].

    Source:
        Chen et al. 2024, arXiv:2405.19534, §4.1, Figures 2 and 5 to 7.
    """
    return 2 * (~reference_correct).long() + (~correct).long()


def summarise_flip_groups(
    groups: Int[Tensor, " pairs"],
    loss: Float[Tensor, " pairs"],
    reward_margin: Float[Tensor, " pairs"],
) -> dict[str, FlipGroup]:
    """Share, mean loss and mean reward margin of the four groups.

    Args:
        groups: As of `flip_groups`. [pairs].
        loss: DPO loss of each pair. [pairs], nats.
        reward_margin: βΔ of each pair. [pairs].

    Returns:
        Every group by its name in `FLIP_GROUPS`, empty ones too; the shares add up to 1.

    Raises:
        InputError: If there is no pair, shapes differ, or a value is not finite.

    Source:
        Chen et al. 2024, arXiv:2405.19534, §4.1, Figure 2 (a) to (c).
    """
    check_some("loss", loss)
    values, margins, _ = exact(loss=loss, reward_margin=reward_margin, groups=groups)
    summary = {}
    for number, name in enumerate(FLIP_GROUPS):
        inside = groups == number
        count = int(inside.sum())
        summary[name] = FlipGroup(
            pairs=count,
            share=count / len(values),
            loss=float(values[inside].mean()) if count else None,
            reward_margin=float(margins[inside].mean()) if count else None,
        )
    return summary


LEARNABILITY_GROUPS = ("easy", "easy to flip", "between", "hard")
"""A group's number is its place here."""

# Nats. At β = 0.1 a pair at 5 flips at a loss of 0.47, one at 50 at a loss of 0.007.
EASY_BELOW, FLIP_BELOW, HARD_ABOVE = -50.0, 5.0, 50.0


def learnability_groups(
    log_ratio: Float[Tensor, " pairs"],
    *,
    easy_below: float = EASY_BELOW,
    flip_below: float = FLIP_BELOW,
    hard_above: float = HARD_ABOVE,
) -> Int[Tensor, " pairs"]:
    """Sort pairs by how far the reference is from ranking them rightly.

    Easy: c <= `easy_below`; easy to flip: 0 < c <= `flip_below`; hard: c >= `hard_above`;
    between: the rest.

    Args:
        log_ratio: c = log π_ref(y_l|x) - log π_ref(y_w|x). [pairs], nats.
        easy_below: At most 0. Nats.
        flip_below: Above 0. Nats.
        hard_above: Above `flip_below`. Nats.

    Returns:
        The group's place in `LEARNABILITY_GROUPS`. [pairs].

    Raises:
        InputError: If the limits are not in order, or a value is not finite.

    Source:
        Chen et al. 2024, arXiv:2405.19534, App. F, Tables 7 (hard: c from 419 to 458),
        8 (easy: -676 to -523) and 9 (easy to flip: 0.26 to 0.45). The limits are ours.
    """
    InputError.unless(
        easy_below <= 0 < flip_below < hard_above,
        saw=f"easy_below={easy_below}, flip_below={flip_below}, hard_above={hard_above}",
        expected="easy_below <= 0 < flip_below < hard_above",
        cure="leave them out for -50, 5 and 50 nats",
    )
    (c,) = exact(log_ratio=log_ratio)
    groups = torch.full(c.shape, LEARNABILITY_GROUPS.index("between"), device=c.device)
    groups[c <= easy_below] = LEARNABILITY_GROUPS.index("easy")
    groups[(c > 0) & (c <= flip_below)] = LEARNABILITY_GROUPS.index("easy to flip")
    groups[c >= hard_above] = LEARNABILITY_GROUPS.index("hard")
    return groups


def right_at_loss(
    log_ratio: Float[Tensor, " pairs"], *, loss: float, beta: float
) -> Bool[Tensor, " pairs"]:
    """Which pairs are ranked rightly once each of them is trained to a DPO loss.

    Args:
        log_ratio: c, as for `learnability_groups`. [pairs], nats.
        loss: The loss that training is expected to reach on each pair, > 0. Nats.
        beta: Pull towards the reference, > 0. 1/nats.

    Returns:
        Whether c <= c* of `largest_flippable`. [pairs]; its mean over the pairs with c > 0
        is the share of the reference's errors that training can mend.

    Raises:
        InputError: If a setting is not positive or a value is not finite.

    Source:
        Chen et al. 2024, arXiv:2405.19534, Theorem 4.1.
    """
    return exact(log_ratio=log_ratio)[0] <= largest_flippable(loss, beta=beta)


QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class IntraDiversity:
    """Log-probability of chosen over rejected, over the pairs of a set.

    Attributes:
        mean: Of log π(y_w|x) - log π(y_l|x), nats.
        std: Over the pairs (population), nats.
        quantiles: Value at each of `QUANTILES`, nats.
        pairs: How many.
    """

    mean: float
    std: float
    quantiles: dict[float, float]
    pairs: int


def intra_diversity(
    chosen: Float[Tensor, " pairs"], rejected: Float[Tensor, " pairs"]
) -> IntraDiversity:
    """Mean log-probability of chosen over rejected under the policy, and its spread.

    ``E[log π_θ(y_w|x) - log π_θ(y_l|x)]``. On-policy pairs stay near a constant while a
    policy trains on them; off-policy pairs wander. See `fluctuation_range`.

    Args:
        chosen: log π_θ(y_w|x), summed over tokens. [pairs], nats.
        rejected: log π_θ(y_l|x), likewise. [pairs], nats.

    Returns:
        Mean, standard deviation and quantiles over the pairs.

    Raises:
        InputError: If there is no pair, shapes differ, or a value is not finite.

    Source:
        Sun et al. 2025, arXiv:2508.10530, Eq. 14; the spread is ours.
    """
    check_some("chosen", chosen)
    first, second = exact(chosen=chosen, rejected=rejected)
    apart = (first - second).cpu().numpy()
    return IntraDiversity(
        mean=float(apart.mean()),
        std=float(apart.std()),
        quantiles=dict(zip(QUANTILES, np.quantile(apart, QUANTILES).tolist(), strict=True)),
        pairs=len(apart),
    )


def fluctuation_range(means: Sequence[float]) -> float:
    """How far intra-diversity wandered over training.

    Args:
        means: `IntraDiversity.mean` at each evaluation, in order. Nats.

    Returns:
        Greatest less least, nats.

    Raises:
        InputError: If there is no value.

    Source:
        Sun et al. 2025, arXiv:2508.10530, Figure 3.
    """
    InputError.unless(
        means,
        saw="no evaluation",
        expected="at least one",
        cure="evaluate during training",
    )
    return max(means) - min(means)
