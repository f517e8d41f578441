"""Files that are whole or absent, content hashes, and seeds by name.

A result depends on its prompt, never on batch or order: its seed is a hash.
"""

import csv
import hashlib
import io
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prefstage.core.foreign import escaped, parse_json

PARTIAL = ".partial-"  # begins the names of what is being written


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
    # In the same folder, since a rename is atomic only within one file system.
    prefix = f"{PARTIAL}{path.stem}-"
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=prefix, suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # The content first: a rename that reaches the disk before it would name an empty file.
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        # mkstemp makes files that nobody else can read; a result is shared as others are.
        mask = os.umask(0)  # reading it means setting it
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        error.filename = error.filename or str(path)  # a write to an open file names none
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically.

    Args:
        path: The file, made or replaced as a whole.
        text: All of its text.
    """
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def json_text(value: Any) -> str:
    """Write a value as indented JSON that every reader accepts.

    Args:
        value: JSON-serialisable; NaN and infinities, which JSON lacks, become null.

    Returns:
        The JSON text, its keys in their own order, with a line end.

    Raises:
        TypeError: If the value is not JSON-serialisable.
    """
    # Control characters of C1 and lone surrogates, which JSON need not escape, are escaped too: the
    # text may go to a terminal.
    return (
        escaped(
            json.dumps(
                # Read back from text in which NaN and infinities are bare words, and each as None.
                json.loads(json.dumps(value), parse_constant=lambda word: None),
                indent=2,
                ensure_ascii=False,
                allow_nan=False,
            )
        )
        + "\n"
    )


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    """Rows as CSV in which no cell is a formula.

    Args:
        rows: A value a cell; None is an empty one.

    Returns:
        The text. What a spreadsheet would compute (text that begins with = + - @, a tab or a line
        end, and is no number) stands behind an apostrophe, which tells it that it is text.
    """
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows([map(_cell, row) for row in rows])
    return stream.getvalue()


def _cell(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        float(value)
    except ValueError:
        formula = value.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) and len(value) > 1
        # the writer does not quote a carriage return, which readers take for a line end
        return ("'" if formula else "") + value.replace("\r", "\n")
    return value


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON atomically, its keys in their own order.

    Args:
        path: The file, made or replaced as a whole.
        value: As for `json_text`.
    """
    write_text(path, json_text(value))


def write_json_lines(path: Path, values: Iterable[Any]) -> None:
    """Write JSON lines atomically.

    Args:
        path: The file, made or replaced as a whole.
        values: What stands in each line; JSON-serialisable.
    """
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        stream.writelines(map(_json_line, values))


def append_json_line(path: Path, value: Any) -> None:
    """Append one JSON line and flush it to disk, so that a kill loses nothing written.

    Args:
        path: The file; made with its folders if missing.
        value: JSON-serialisable.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as stream:
        stream.write(_json_line(value))
        stream.flush()
        os.fsync(stream.fileno())


def read_json_lines(path: Path) -> list[Any]:
    """Read a JSON-lines file that a kill may have left with a torn last line.

    Args:
        path: The file; a missing one reads as empty.

    Returns:
        The value of each complete line, in order.

    Raises:
        ValueError: If a complete line is not JSON.
    """
    if not path.exists():
        return []
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    return [parse_json(line) for line in whole.splitlines() if line.strip()]


def sync_folder(folder: Path) -> None:
    """Make renames in a folder outlast a power cut; only POSIX can open a folder.

    Args:
        folder: The folder that holds the renamed names.
    """
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _json_line(value: Any) -> bytes:
    # A lone surrogate, as "\\ud800" in a server's JSON gives one, is written so again.
    return (json.dumps(value, ensure_ascii=False) + "\n").encode(errors="backslashreplace")


# --- Content hashes, and seeds by name -----------------------------------------------------------


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
    return hashlib.sha256(
        json.dumps(
            value, sort_keys=True, ensure_ascii=True, separators=(",", ":"), allow_nan=False
        ).encode()
    ).hexdigest()[:length]


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
