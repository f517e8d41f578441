"""Memory for tensors that soon go again."""

import math

import torch
from torch import Tensor

_PADDING_BYTES = 256


def short_lived(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """An empty tensor for values that are gone when the layer is done.

    glibc finds aligned memory in blocks that are up to 96 bytes longer than asked for, and
    takes the rest away again: a freed block never serves another tensor of its own size. So
    this is a little longer than it need be, and what a layer keeps, of the same shape, can
    stand where an earlier layer had this.

    Args:
        shape: Its shape.
        like: Gives type and device.

    Returns:
        A contiguous tensor.
    """
    size = math.prod(shape)
    if like.device.type != "cpu":
        return like.new_empty(shape)
    return like.new_empty(size + _PADDING_BYTES // like.element_size())[:size].view(shape)


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
