"""Content hashes, and seeds by name: a result depends on its prompt, never on batch or order."""

import hashlib
import json
from pathlib import Path
from typing import Any


def digest(value: Any, *, length: int = 16) -> str:
    """Hash any JSON-serialisable value, independent of key order.

    Args:
        value: JSON-serialisable; mappings are hashed with sorted keys.
        length: Hex digits kept, 1 to 64.

    Returns:
        The first `length` hex digits of SHA-256 of the canonical JSON text.

    Raises:
        TypeError: If the value is not JSON-serialisable.
        ValueError: If it holds NaN or an infinity, which have no canonical text.
    """
    text = json.dumps(
        value, sort_keys=True, ensure_ascii=True, separators=(",", ":"), allow_nan=False
    )
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def digest_file(path: Path, *, length: int = 16) -> str:
    """Hash a file's bytes, reading in chunks.

    Args:
        path: The file.
        length: Hex digits kept, 1 to 64.

    Returns:
        The first `length` hex digits of SHA-256 of its bytes.
    """
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:length]


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
