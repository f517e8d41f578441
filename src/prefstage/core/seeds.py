"""Seeds by name: a result depends on its prompt, never on its batch or order."""

import hashlib


def seed_for(seed: int, *names: str | int) -> int:
    """Derive an independent seed for one named thing.

    Args:
        seed: The run's seed.
        names: What the seed is for, e.g. ``("sample", prompt_id, sample_index)``.

    Returns:
        An integer in [0, 2**63), the same on every machine and in every order of calls.
    """
    text = "\x1f".join([str(seed), *(f"{type(name).__name__}:{name}" for name in names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
