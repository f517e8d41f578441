"""Losses over K scored responses a prompt."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from prefstage.losses.batches import Items

Groups = Float[Tensor, " groups"]


def exo_rw_loss(
    log_ratios: Items,
    scores: Items,
    group: Int[Tensor, " items"],
    *,
    beta: float,
    temperature: float,
) -> Groups:
    """Reverse KL from the policy's to the reward's distribution over a prompt's responses.

    ``KL(softmax(β_π a_i) ‖ softmax(r_i / β_r))``.

    Args:
        log_ratios: a_i, log π(y_i|x) - log π_ref(y_i|x). [items], nats.
        scores: r_i. [items].
        group: Index of each response's prompt, from 0. [items].
        beta: β_π, > 0. 1/nats.
        temperature: β_r, > 0, in units of the scores.

    Returns:
        Loss of each group, unreduced. [groups], nats.

    Source:
        Ji et al. 2024, arXiv:2402.00856 (EXO on rewards).
    """
    own = group_log_softmax(beta * log_ratios, group)
    goal = group_log_softmax(scores / temperature, group)
    return _group_sum(own.exp() * (own - goal), group)


def infonca_loss(
    log_ratios: Items,
    scores: Items,
    group: Int[Tensor, " items"],
    *,
    beta: float,
    temperature: float,
) -> Groups:
    """Cross-entropy of the reward's distribution over a prompt's responses.

    ``-Σ_i q_i log softmax(βa)_i`` with q = softmax(r / α).

    Args:
        log_ratios: a_i. [items], nats.
        scores: r_i. [items].
        group: Index of each response's prompt, from 0. [items].
        beta: Pull towards the reference, > 0. 1/nats.
        temperature: α, > 0, in units of the scores.

    Returns:
        Loss of each group, unreduced. [groups], nats.

    Source:
        Chen et al. 2024, arXiv:2402.05369 (InfoNCA).
    """
    own = group_log_softmax(beta * log_ratios, group)
    goal = group_log_softmax(scores / temperature, group).exp()
    return -_group_sum(goal * own, group)


def group_log_softmax(values: Items, group: Int[Tensor, " items"]) -> Items:
    """Log-softmax within each group.

    Args:
        values: Logits. [items].
        group: Group of each, ascending from 0. [items].

    Returns:
        Log-probabilities; those of a group add up to 1. [items].
    """
    top = values.detach().new_full((_count(group),), -torch.inf)
    top = top.scatter_reduce(0, group, values.detach(), "amax")
    shifted = values - top[group]
    return shifted - _group_sum(shifted.exp(), group).log()[group]


def _group_sum(values: Items, group: Tensor) -> Groups:
    return values.new_zeros(_count(group)).index_add(0, group, values)


def _count(group: Tensor) -> int:
    return int(group.max()) + 1
