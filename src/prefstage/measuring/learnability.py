"""Which pairs will training learn? Seen in the reference alone, before any training."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from prefstage.core.errors import InputError
from prefstage.measuring.checks import exact
from prefstage.measuring.flips import largest_flippable

LEARNABILITY_GROUPS = ("easy", "easy to flip", "between", "hard")
"""A group's number is its place here."""

EASY_BELOW, FLIP_BELOW, HARD_ABOVE = -50.0, 5.0, 50.0
"""Nats. At β = 0.1 a pair at 5 flips at a loss of 0.47, one at 50 at a loss of 0.007."""


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
    if not easy_below <= 0 < flip_below < hard_above:
        raise InputError.of(
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
    (c,) = exact(log_ratio=log_ratio)
    return c <= largest_flippable(loss, beta=beta)
