"""Batches of similar length, padded on the right: a judgment does not feel its neighbours."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def batches_by_length(lengths: Sequence[int], *, batch_size: int) -> Iterator[list[int]]:
    """Group positions into batches of similar length, longest first.

    The longest first, so that a batch that does not fit into memory fails at the start.

    Args:
        lengths: Tokens of each sequence. [sequences].
        batch_size: Sequences a batch at most, >= 1.

    Yields:
        Positions into `lengths`; each position occurs once over all batches.
    """
    order = sorted(range(len(lengths)), key=lambda position: (-lengths[position], position))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def padded(
    encodings: Sequence[Mapping[str, Sequence[int]]], *, pad_id: int, device: Any
) -> dict[str, Tensor]:
    """Stack encodings into tensors, padded on the right to the longest of them.

    Args:
        encodings: Each has `input_ids` and may have `token_type_ids`. [batch].
        pad_id: Token id of the padding.
        device: Where the tensors shall be.

    Returns:
        `input_ids`, `attention_mask` (1 on real tokens), and `token_type_ids` if the
        encodings have them. [batch, longest], int64.
    """
    longest = max(len(encoding["input_ids"]) for encoding in encodings)

    def stack(rows: Sequence[Sequence[int]], fill: int) -> Tensor:
        filled = [[*row, *[fill] * (longest - len(row))] for row in rows]
        return torch.tensor(filled, dtype=torch.long, device=device)

    tensors = {
        "input_ids": stack([encoding["input_ids"] for encoding in encodings], pad_id),
        "attention_mask": stack([[1] * len(encoding["input_ids"]) for encoding in encodings], 0),
    }
    if "token_type_ids" in encodings[0]:
        types = [encoding["token_type_ids"] for encoding in encodings]
        tensors["token_type_ids"] = stack(types, 0)
    return tensors
