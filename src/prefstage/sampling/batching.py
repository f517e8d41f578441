"""Which responses are generated together."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class RowBatch:
    """Rows that are generated together.

    Attributes:
        rows: Positions in the list that was planned.
        longest: Tokens of the longest prompt among them.
    """

    rows: tuple[int, ...]
    longest: int


def plan_batches(lengths: Sequence[int], *, new_tokens: int, token_budget: int) -> list[RowBatch]:
    """Put rows of like length together, so that padding wastes little.

    Rows are taken from the longest prompt down (if memory does not suffice, it shows at
    once); rows of equal length keep their order, so that the responses to one prompt stay
    together and share its computation.

    Args:
        lengths: Prompt tokens of each row. [rows].
        new_tokens: Tokens that a row may grow by.
        token_budget: Tokens that a batch may hold when every row is full-grown, padding
            included; a single row may exceed it.

    Returns:
        Batches that hold each row once.
    """
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    batches: list[RowBatch] = []
    start = 0
    while start < len(order):
        longest = lengths[order[start]]
        rows = max(1, token_budget // (longest + new_tokens))
        batches.append(RowBatch(tuple(order[start : start + rows]), longest))
        start += rows
    return batches
