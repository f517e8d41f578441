"""Tensors that the backward pass computes again, from what is kept anyway."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef

_current: ContextVar["Recipes | None"] = ContextVar("recipes", default=None)


def current_recipes() -> "Recipes | None":
    """Where to say how a tensor is computed again, if anybody wants to know."""
    return _current.get()


@dataclass(frozen=True)
class _Kept:
    """A tensor as it was when a step kept it."""

    tensor: Tensor
    version: int


@dataclass(frozen=True)
class _Recipe:
    """A kept tensor that is computed again when it is wanted."""

    again: Callable[[], Tensor]
    shape: torch.Size
    stride: tuple[int, ...]
    offset: int


class Recipes:
    """Recipes of the tensors of one forward pass.

    A step that would keep such a tensor for its backward pass keeps the recipe instead, so
    the gradient is the same, bit for bit, for less memory.
    """

    def __init__(self) -> None:
        # The weak references keep a storage's address from being given to another.
        self._known: dict[tuple[int, int], tuple[StorageWeakRef, Callable[[], Tensor]]] = {}
        self._last: tuple[Callable[[], Tensor], Tensor] | None = None

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """Let steps inside the block keep recipes where there are some."""
        self.forget()
        token = _current.set(self)
        try:
            with saved_tensors_hooks(self._keep, self._give):
                yield
        finally:
            _current.reset(token)
            self.forget()  # steps have the recipes they kept

    def forget(self) -> None:
        """Let go of everything that steps have not kept."""
        self._known.clear()
        self._last = None

    def computed_by(self, result: Tensor, again: Callable[[], Tensor]) -> None:
        """Let a tensor be computed again instead of kept.

        Args:
            result: A contiguous tensor, just computed.
            again: Computes the same, bit for bit, from what is kept anyway.
        """
        storage = result.untyped_storage()
        reference = StorageWeakRef(storage)  # type: ignore[no-untyped-call]  # untyped in torch
        self._known[storage._cdata, result._version] = (reference, again)

    def _keep(self, tensor: Tensor) -> _Kept | _Recipe:
        known = self._known.get((tensor.untyped_storage()._cdata, tensor._version))
        if known is None:
            return _Kept(tensor, tensor._version)
        return _Recipe(known[1], tensor.shape, tensor.stride(), int(tensor.storage_offset()))

    def _give(self, kept: _Kept | _Recipe) -> Tensor:
        if isinstance(kept, _Kept):
            if kept.tensor._version != kept.version:
                raise RuntimeError(
                    f"a tensor of shape {tuple(kept.tensor.shape)} that the backward pass needs"
                    " was changed in place after the forward pass"
                )
            return kept.tensor
        # A layer's maps want their common input one after another.
        if self._last is None or self._last[0] is not kept.again:
            self._last = None
            with torch.no_grad():
                self._last = (kept.again, kept.again())
        return self._last[1].as_strided(kept.shape, kept.stride, kept.offset)
