"""Files that are whole or absent: atomic writes, and append-only line files."""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; rename it over `path` on success.

    After a crash or an exception `path` is what it was before: complete or absent.

    Args:
        path: Where the finished file shall stand; its folder is made if missing.

    Yields:
        A path in the same folder with the same suffix, to be written and closed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON atomically (keys in their own order)."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def append_json_line(path: Path, value: Any) -> None:
    """Append one JSON line and flush it to disk, so that a kill loses nothing written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = (json.dumps(value, ensure_ascii=False) + "\n").encode()
    with path.open("ab") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def read_json_lines(path: Path, *, repair: bool = False) -> list[Any]:
    """Read a JSON-lines file that a kill may have left with a torn last line.

    Args:
        path: The file; a missing one reads as empty.
        repair: Cut a torn last line off the file, so that appending goes on cleanly.

    Returns:
        The value of each complete line, in order.

    Raises:
        json.JSONDecodeError: If a complete line is not JSON.
    """
    if not path.exists():
        return []
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if repair and len(whole) < len(data):
        with path.open("r+b") as stream:
            stream.truncate(len(whole))
    return [json.loads(line) for line in whole.splitlines() if line.strip()]


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
