"""Columns of numbers on disk, so that figures over many rows take no memory that grows."""

import hashlib
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, Self

import numpy as np

from prefstage.data.storage import scratch_file

Numbers = np.ndarray[Any, Any]

_PIECE = 1 << 14


class DiskNumbers:
    """Numbers that stand in a temporary file and are memory-mapped to be looked at.

    What is mapped is the kernel's cache of the file, which goes when memory is needed. A
    context manager: the file goes at the end of the block.

    Args:
        dtype: A numpy type of numbers.
    """

    def __init__(self, dtype: str = "float64") -> None:
        self._dtype, self._count = np.dtype(dtype), 0
        self._path = scratch_file("numbers")
        self._stream = self._path.open("wb")

    def __enter__(self) -> Self:
        """Nothing to do: the file is open."""
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the file."""
        self._stream.close()
        self._path.unlink(missing_ok=True)

    def __len__(self) -> int:
        """How many numbers there are."""
        return self._count

    def extend(self, values: Iterable[Any]) -> None:
        """Add numbers at the end.

        Args:
            values: As many as fit into memory.
        """
        piece = np.asarray(values, dtype=self._dtype)
        self._stream.write(piece.tobytes())
        self._count += len(piece)

    def sort(self) -> Numbers:
        """Sort in place, on disk; NaN stand last.

        Returns:
            The numbers, least first, memory-mapped. [rows].
        """
        numbers = self.mapped()
        numbers.sort()
        return numbers

    def mapped(self) -> Numbers:
        """The numbers as they stand, memory-mapped. [rows]."""
        self._stream.flush()
        if not self._count:  # an empty file cannot be mapped
            return np.zeros(0, dtype=self._dtype)
        return np.memmap(self._path, dtype=self._dtype, mode="r+", shape=(self._count,))


def pieces(values: Numbers) -> Iterator[Numbers]:
    """Cut numbers into pieces that fit a processor's cache.

    Args:
        values: Numbers, perhaps memory-mapped. [rows].

    Yields:
        Views of them, in order.
    """
    for start in range(0, len(values), _PIECE):
        yield values[start : start + _PIECE]


def text_number(text: str) -> int:
    """A text's hash of 64 bits, the same on every machine.

    Args:
        text: Any text.

    Returns:
        An integer in [0, 2**64).
    """
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def hashes_of(texts: Iterable[str]) -> DiskNumbers:
    """Write the hashes of texts to disk, some at a time.

    Args:
        texts: The texts, read once.

    Returns:
        The hashes, in order; close it when it is no longer needed.
    """
    hashes, rest = DiskNumbers("uint64"), iter(texts)
    while piece := list(islice(rest, _PIECE)):
        hashes.extend(list(map(text_number, piece)))
    return hashes


def count_different(numbers: DiskNumbers) -> int:
    """How many different numbers there are; sorts them.

    Args:
        numbers: Hashes of texts, say. Two different texts have the same hash once in 2**64.

    Returns:
        The count.
    """
    return sum(map(len, different(numbers)))


def different(numbers: DiskNumbers) -> Iterator[Numbers]:
    """Every different number once, least first; sorts them.

    Args:
        numbers: The numbers.

    Yields:
        Pieces of the different numbers.
    """
    last: Any = None
    for piece in pieces(numbers.sort()):
        # After sorting, equal numbers are neighbours: the first of each run differs from the
        # one before it, which may stand in the piece before.
        fresh = np.ones(len(piece), dtype=bool)
        fresh[1:] = piece[1:] != piece[:-1]
        fresh[0] = last is None or piece[0] != last
        last = piece[-1]
        yield np.asarray(piece[fresh])
