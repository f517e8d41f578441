"""Flat layout: one response a row, rows of like length together, padded on the right.

For models whose layers mix tokens otherwise than by attention. Every layer of a causal
model looks back only, so padding on the right changes nothing before it and needs no mask.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from prefstage.scoring.rows import Leaf, Slot

PADDING_ID = 0
"""Any token will do: nothing is read off a padded place."""

MAX_PADDING = 0.1
"""Share of a batch that may be padding; beyond it a new batch begins."""


@dataclass(frozen=True)
class Batch:
    """One forward pass over whole sequences.

    Attributes:
        input_ids: Prompt and response, padded on the right. [sequences, places].
        read_at: Flat index (sequence · places + place) of the hidden state that predicts
            each response token. [targets].
        target_ids: The response tokens. [targets].
        slots: Which targets belong to which response.
    """

    input_ids: Int[Tensor, "sequences places"]
    read_at: Int[Tensor, " targets"]
    target_ids: Int[Tensor, " targets"]
    slots: tuple[Slot, ...]


def pack_batches(leaves: Sequence[Leaf], *, token_budget: int) -> list[Batch]:
    """Lay responses out in padded batches of at most `token_budget` places.

    Args:
        leaves: Responses with their prompts.
        token_budget: Places a batch, padding included; a longer sequence stands alone.

    Returns:
        The batches, longest sequences first, so that memory runs out early if at all.
    """
    ordered = sorted(leaves, key=lambda leaf: -len(leaf.computed_ids))
    batches, members, tokens = list[Batch](), list[Leaf](), 0
    for leaf in ordered:
        size = len(leaf.computed_ids)
        if members:
            places = len(members[0].computed_ids) * (len(members) + 1)
            if places > token_budget or tokens + size < (1 - MAX_PADDING) * places:
                batches.append(build_batch(members))
                members, tokens = [], 0
        members.append(leaf)
        tokens += size
    if members:
        batches.append(build_batch(members))
    return batches


def build_batch(leaves: Sequence[Leaf]) -> Batch:
    """Stack responses with their prompts, padded on the right.

    Args:
        leaves: At least one response.

    Returns:
        The batch.
    """
    places = max(len(leaf.computed_ids) for leaf in leaves)
    ids = torch.full((len(leaves), places), PADDING_ID)
    read_at, targets, slots = list[int](), list[int](), list[Slot]()
    for index, leaf in enumerate(leaves):
        computed = leaf.computed_ids
        ids[index, : len(computed)] = torch.tensor(computed)
        first = index * places + len(leaf.prompt_ids) - 1
        count = len(leaf.response_ids)
        slots.append(Slot(leaf.tree, leaf.response, len(targets), len(targets) + count))
        read_at += range(first, first + count)
        targets += leaf.response_ids
    return Batch(ids, torch.tensor(read_at), torch.tensor(targets), tuple(slots))
