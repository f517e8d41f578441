"""What a forward pass keeps for its backward pass, in memory of its own on a CPU.

The C library's heap is where layers put short-lived and kept tensors side by side; between the
kept ones it is left with holes that fit nothing, a third of what is kept and more. Kept tensors
go to blocks here instead, one behind the other.
"""

import ctypes
import math
import platform
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef

BLOCK_BYTES = 64 << 20
SMALLEST_BYTES = 1 << 10
"""Smaller tensors stay where they are."""

TIDY_CALLS = 15
"""Layers after which the heap's free pages are given back (malloc_trim(3))."""

_ALIGNMENT = 64
_trim = None if platform.libc_ver()[0] != "glibc" else ctypes.CDLL(None).malloc_trim
_current: ContextVar["ActivationStore | None"] = ContextVar("activation store", default=None)


def current_store() -> "ActivationStore | None":
    """The store that keeps what is computed now, if there is one."""
    return _current.get()


@dataclass
class _Block:
    """A run of bytes, filled from its start."""

    data: Tensor
    used: int = 0

    def room(self) -> int:
        return len(self.data) - self.used


@dataclass(frozen=True)
class _Recipe:
    """A kept tensor that is computed again when it is wanted."""

    again: Callable[[], Tensor]
    shape: torch.Size
    stride: tuple[int, ...]
    offset: int


class ActivationStore:
    """Keeps tensors for one backward pass at a time.

    Values are copied as they are kept, a storage once however many steps keep it, so that
    the gradient is what it is without the store. Weights are not copied.
    """

    def __init__(self) -> None:
        self._blocks: list[_Block] = []
        self._known: dict[tuple[int, int], tuple[StorageWeakRef, Any]] = {}
        self._unmoved: set[int] = set()
        self._calls = 0
        self._last: tuple[_Recipe, Tensor] | None = None

    @property
    def used_bytes(self) -> int:
        """Bytes kept now."""
        return sum(block.used for block in self._blocks)

    @contextmanager
    def keeping(self, weights: Iterable[Tensor]) -> Iterator[None]:
        """Keep here what steps inside the block keep for their backward pass.

        Args:
            weights: The model's parameters, which stay where they are.
        """
        self.let_go()
        self._unmoved = {weight.untyped_storage()._cdata for weight in weights}
        token = _current.set(self)
        try:
            with saved_tensors_hooks(self._keep, self._give):
                yield
        finally:
            _current.reset(token)

    def let_go(self) -> None:
        """Leave what is kept to the backward pass, which frees each block when done with it.

        So what it has used makes room for the gradients that it makes.
        """
        self._blocks = []
        self._known.clear()
        self._last = None

    def tidy(self) -> None:
        """Give the heap's free pages back, every few calls; layers call it once a pass."""
        self._calls += 1
        if _trim is not None and self._calls % TIDY_CALLS == 0:
            _trim(0)

    def computed_by(self, result: Tensor, again: Callable[[], Tensor]) -> None:
        """Let a tensor be computed again instead of kept.

        Args:
            result: A contiguous tensor, just computed.
            again: Computes the same, bit for bit, from what is kept anyway.
        """
        storage = result.untyped_storage()
        self._known[storage._cdata, result._version] = (_reference(storage), again)

    def keep(self, tensor: Tensor) -> Tensor:
        """A tensor's copy in the store, made once; itself if it is small or a weight."""
        kept: Tensor = self._keep(tensor)
        return kept

    def new(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """An empty tensor in the store, which is the caller's."""
        place = self._place(math.prod(shape) * dtype.itemsize)
        return place.view(dtype).view(shape)

    def copy(self, tensor: Tensor) -> Tensor:
        """A new copy in the store, which is the caller's."""
        return self.new(tuple(tensor.shape), tensor.dtype).copy_(tensor.detach())

    def _keep(self, tensor: Tensor) -> Any:
        storage = tensor.untyped_storage()
        if (
            tensor.device.type != "cpu"
            or storage.nbytes() < SMALLEST_BYTES
            or storage._cdata in self._unmoved
        ):
            return tensor
        whole = storage.nbytes() <= 2 * tensor.nbytes
        if not whole:  # a small part of something large
            return self.copy(tensor)
        key = (storage._cdata, tensor._version)
        if key not in self._known:
            flat = tensor.detach().as_strided((storage.nbytes() // tensor.itemsize,), (1,), 0)
            self._known[key] = (_reference(storage), self.copy(flat))
        kept = self._known[key][1]
        if callable(kept):
            return _Recipe(kept, tensor.shape, tensor.stride(), int(tensor.storage_offset()))
        offset = kept.storage_offset() + tensor.storage_offset()
        return kept.as_strided(tensor.shape, tensor.stride(), offset)

    def _give(self, kept: Any) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        # A layer's maps want their common input one after another.
        if self._last is None or self._last[0].again is not kept.again:
            with torch.no_grad():
                self._last = (kept, kept.again())
        return self._last[1].as_strided(kept.shape, kept.stride, kept.offset)

    def _place(self, size: int) -> Tensor:
        wanted = -(-size // _ALIGNMENT) * _ALIGNMENT
        block = next((one for one in self._blocks if one.room() >= wanted), None)
        if block is None:
            block = _Block(torch.empty(max(BLOCK_BYTES, wanted), dtype=torch.uint8))
            self._blocks.append(block)
            self._unmoved.add(block.data.untyped_storage()._cdata)
        start, block.used = block.used, block.used + wanted
        return block.data[start : start + size]


def _reference(storage: Any) -> StorageWeakRef:
    """A weak reference, which keeps the storage's address from being given to another."""
    return StorageWeakRef(storage)  # type: ignore[no-untyped-call]  # untyped in torch
