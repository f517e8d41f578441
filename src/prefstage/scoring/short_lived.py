"""Memory for tensors that soon go again."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

_PADDING_BYTES = 256
_MOST_BUFFERS = 8
_OWN_REFERENCES = 2  # the tensor's, and that through which they are counted

_pool: ContextVar["_Pool | None"] = ContextVar("pool", default=None)


@contextmanager
def pooled() -> Iterator[None]:
    """Let what `short_lived` gives out in the block be used again as soon as nobody holds it."""
    token = _pool.set(_Pool())
    try:
        yield
    finally:
        _pool.reset(token)


def short_lived(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """An empty tensor for values that are gone when the layer is done.

    glibc finds aligned memory in blocks that are up to 96 bytes longer than asked for, and
    takes the rest away again: a freed block never serves another tensor of its own size. So
    this is a little longer than it need be, and what a layer keeps, of the same shape, can
    stand where an earlier layer had this. Inside `pooled` it serves the next one of its size
    itself; otherwise a pass whose layers keep less than they let go would leave holes.

    Args:
        shape: Its shape.
        like: Gives type and device.

    Returns:
        A contiguous tensor.
    """
    if like.device.type != "cpu":
        return like.new_empty(shape)
    size = math.prod(shape) + _PADDING_BYTES // like.element_size()
    pool = _pool.get()
    whole = like.new_empty(size) if pool is None else pool.take(size, like)
    return whole[: math.prod(shape)].view(shape)


def mapped(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``x Wᵀ + b``, short-lived.

    Args:
        rows: x. [places, inputs].
        weight: W. [outputs, inputs].
        bias: b, or None. [outputs].

    Returns:
        [places, outputs].
    """
    result = short_lived((len(rows), len(weight)), rows)
    if bias is None:
        return torch.mm(rows, weight.t(), out=result)
    return torch.addmm(bias, rows, weight.t(), out=result)


def is_held_elsewhere(tensor: Tensor) -> bool:
    """Whether a view of a tensor, or an array that shares its memory, is held by somebody."""
    uses: int = torch._C._storage_Use_Count(tensor.untyped_storage()._cdata)
    return uses > _OWN_REFERENCES


class _Pool:
    """Buffers by size and type, the oldest first."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[int, torch.dtype], list[Tensor]] = {}

    def take(self, size: int, like: Tensor) -> Tensor:
        """A buffer that nobody holds; who takes it holds it by a view."""
        buffers = self._buffers.setdefault((size, like.dtype), [])
        for buffer in buffers:
            if not is_held_elsewhere(buffer):
                return buffer
        # The oldest of many is one that somebody keeps.
        if len(buffers) == _MOST_BUFFERS:
            del buffers[0]
        buffers.append(like.new_empty(size))
        return buffers[-1]
