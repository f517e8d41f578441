"""Tensors that live as long as one layer's pass, and where their memory comes from."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from prefstage.scoring.compat import is_shared

_PADDING_BYTES = 256
_MAX_BUFFERS = 8

_pool: ContextVar[dict[tuple[int, torch.dtype], list[Tensor]] | None]
_pool = ContextVar("pool", default=None)


def at_least_float32(x: Tensor) -> Tensor:
    """A tensor in float32, or in float64 if it is that already: the precision of all sums."""
    return x if x.dtype == torch.float64 else x.float()


@contextmanager
def pooled() -> Iterator[None]:
    """Let what `short_lived` gives out in the block be used anew as soon as nobody holds it."""
    token = _pool.set({})
    try:
        yield
    finally:
        _pool.reset(token)


def short_lived(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """An empty contiguous tensor for values that are gone when the layer is done.

    Args:
        shape: Its shape.
        like: Gives type and device.
    """
    if like.device.type != "cpu":
        return like.new_empty(shape)
    # glibc finds aligned memory in blocks up to 96 bytes longer than requested, and cuts the
    # rest off: a freed block never serves another tensor of its size. A little longer from the
    # start, what a layer keeps, of the same shape, can stand where an earlier layer had this.
    size = math.prod(shape) + _PADDING_BYTES // like.element_size()
    pool = _pool.get()
    whole = like.new_empty(size) if pool is None else _from_pool(pool, size, like)
    return whole[: math.prod(shape)].view(shape)


# A buffer that nobody holds; who takes it holds it by a view.
def _from_pool(
    pool: dict[tuple[int, torch.dtype], list[Tensor]], size: int, like: Tensor
) -> Tensor:
    # Otherwise a pass whose layers keep less than they let go would leave holes in the heap,
    # between what is kept, that nothing of another size fits into.
    buffers = pool.setdefault((size, like.dtype), [])
    for buffer in buffers:
        if not is_shared(buffer):
            return buffer
    # The oldest of many is one that somebody keeps.
    if len(buffers) == _MAX_BUFFERS:
        del buffers[0]
    buffers.append(like.new_empty(size))
    return buffers[-1]


def mapped(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``x Wᵀ + b``, short-lived.

    Args:
        rows: x. [tokens, inputs].
        weight: W. [outputs, inputs].
        bias: b, or None. [outputs].

    Returns:
        [tokens, outputs].
    """
    result = short_lived((len(rows), len(weight)), rows)
    if bias is None:
        return torch.mm(rows, weight.t(), out=result)
    return torch.addmm(bias, rows, weight.t(), out=result)
