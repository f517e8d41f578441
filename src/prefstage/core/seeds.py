"""Seeds by name: a result depends on its prompt, never on its batch or order."""

import hashlib
import json


def seed_for(seed: int, *names: str | int) -> int:
    """Derive an independent seed for one named thing.

    Args:
        seed: The run's seed.
        names: What the seed is for, e.g. ``("sample", prompt_id, sample_index)``.

    Returns:
        An integer in [0, 2**63), the same on every machine and in every order of calls.
    """
    text = json.dumps([seed, *names])  # tells "1" from 1 and ("a", "b") from ("ab",)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
