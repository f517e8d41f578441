"""Prompts drawn at random in exact numbers, in flat memory, whatever their order."""

import hashlib
from array import array
from collections.abc import Callable, Iterable

import numpy as np

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
    text = f"{seed}\0{name}\0{prompt_id}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=_BITS // 8).digest(), "big")


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
    numbers = np.unique(
        np.array(array("Q", (number_of(seed, name, each) for each in prompt_ids)), dtype=np.uint64)
    )
    # 0.1 * 30 is just below 3 in binary; a share that means a whole number gives that number.
    count = int(np.floor(share * len(numbers) + 1e-9))
    limit = int(numbers[count - 1]) if count else -1
    return lambda prompt_id: number_of(seed, name, prompt_id) <= limit, count, len(numbers)
