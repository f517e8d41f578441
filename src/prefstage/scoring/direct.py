"""Gradients of large weights, added where they are summed up.

As autograd passes gradients on, each micro-batch makes a further tensor the size of every
weight, and adds it. Head, input embeddings and MLPs hold most of a model's weights.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding

_on: ContextVar[bool] = ContextVar("direct gradients", default=False)


@contextmanager
def direct_gradients() -> Iterator[None]:
    """Let head, embeddings and MLPs computed in the block add their gradients to `.grad`.

    For ``loss.backward()`` in a single process: `torch.autograd.grad` does not see them, nor
    do wrappers that exchange gradients as they are passed on.
    """
    token = _on.set(True)
    try:
        yield
    finally:
        _on.reset(token)


def takes_direct_gradient(weight: Tensor) -> bool:
    """Whether a weight's gradient may be added to `.grad` in passing now."""
    return (
        _on.get()
        and torch.is_grad_enabled()
        and weight.is_leaf
        and weight.requires_grad
        and weight.device.type == "cpu"
        and weight.dtype in (torch.float32, torch.float64)
        and not weight._backward_hooks
        and not weight._post_accumulate_grad_hooks
    )


def weight_gradient(grad: Tensor, rows: Tensor, owner: Tensor | None) -> Tensor | None:
    """Gradient of a linear map's weight.

    Args:
        grad: Gradient by the map's results. [places, outputs].
        rows: What it was applied to. [places, inputs].
        owner: The weight, if its gradient may be added in passing; else None.

    Returns:
        [outputs, inputs]; None if it was added to the owner's.
    """
    if owner is None:
        return grad.t() @ rows
    if owner.grad is None:
        owner.grad = grad.t() @ rows
    else:
        owner.grad.addmm_(grad.t(), rows)
    return None


def embed(ids: Tensor, weight: Tensor, padding_id: int | None) -> Tensor:
    """Rows of a weight, whose gradient is added to the weight's `.grad`.

    Args:
        ids: Tokens. [*places].
        weight: [vocabulary, hidden].
        padding_id: Token whose row gets no gradient, as `torch.nn.Embedding` has it; or None.

    Returns:
        [*places, hidden].
    """
    result: Tensor = _Embed.apply(ids, weight, padding_id)  # type: ignore[no-untyped-call]  # untyped in torch
    return result


class _Embed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ids: Tensor, weight: Tensor, padding_id: int | None) -> Tensor:
        ctx.ids, ctx.weight, ctx.padding_id = ids, weight, padding_id
        return embedding(ids, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[None, None, None]:
        ids, rows = ctx.ids.flatten(), grad_output.flatten(0, -2)
        if ctx.padding_id is not None:
            learning = ids != ctx.padding_id
            ids, rows = ids[learning], rows[learning]
        if ctx.weight.grad is None:
            ctx.weight.grad = torch.zeros_like(ctx.weight)
        ctx.weight.grad.index_add_(0, ids, rows.to(ctx.weight.dtype))
        return None, None, None
