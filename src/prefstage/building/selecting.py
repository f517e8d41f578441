"""Prompts drawn at random in exact numbers, in flat memory, whatever their order."""

import math
from collections.abc import Callable, Iterable

from prefstage.data.disk_numbers import count_different, different, hashes_of, text_number

_BITS = 64


def number_of(seed: int, name: str, prompt_id: str) -> int:
    """A random number of a prompt, the same on every machine.

    Args:
        seed: Of the draw.
        name: What is drawn.
        prompt_id: The prompt.

    Returns:
        An integer in [0, 2**64).
    """
    return text_number(f"{seed}\0{name}\0{prompt_id}")


def share_of(seed: int, name: str, prompt_id: str) -> float:
    """As `number_of`, as a number in [0, 1)."""
    return number_of(seed, name, prompt_id) / 2.0**_BITS


def draw_prompts(
    prompt_ids: Iterable[str], *, share: float, seed: int, name: str
) -> tuple[Callable[[str], bool], int, int]:
    """Draw ⌊share·N⌋ of N different prompts.

    Args:
        prompt_ids: The prompts; those that stand twice count once.
        share: In [0, 1].
        seed: Of the draw.
        name: What it is for.

    Returns:
        Whether a prompt is drawn; how many are; and N.
    """
    with hashes_of(f"{seed}\0{name}\0{each}" for each in prompt_ids) as numbers:
        total = count_different(numbers)
        # 0.1 * 30 is just below 3 in binary; a share that means a whole number gives that number.
        count = math.floor(share * total + 1e-9)
        limit, left = -1, count
        for piece in different(numbers):
            if left <= 0:
                break
            limit = int(piece[min(left, len(piece)) - 1])
            left -= len(piece)
    return lambda prompt_id: number_of(seed, name, prompt_id) <= limit, count, total
