"""Content hashes: the names under which inputs and results are known."""

import hashlib
import json
from pathlib import Path
from typing import Any

_CHUNK_BYTES = 1 << 20


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
    hasher = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            hasher.update(chunk)
    return hasher.hexdigest()[:length]
