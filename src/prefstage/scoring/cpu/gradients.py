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

from prefstage.scoring.compat import has_gradient_hooks

_on: ContextVar[bool] = ContextVar("direct gradients", default=False)


@contextmanager
def direct_gradients(*, on: bool = True) -> Iterator[None]:
    """Let head, embeddings, norms and MLPs in the block add their gradients to `.grad`.

    For ``loss.backward()`` in a single process: `torch.autograd.grad` does not see them, nor
    do wrappers that exchange gradients as they are passed on.
    """
    token = _on.set(on)
    try:
        yield
    finally:
        _on.reset(token)


def is_direct() -> bool:
    """Whether gradients are added in passing now."""
    return _on.get()


def takes_direct_gradient(weight: Tensor) -> bool:
    """Whether a weight's gradient may be added to `.grad` in passing now."""
    return (
        _on.get()
        and torch.is_grad_enabled()
        and weight.is_leaf
        and weight.requires_grad
        and weight.device.type == "cpu"
        and weight.dtype in (torch.float32, torch.float64)
        and not has_gradient_hooks(weight)
    )


def owner_of(weight: Tensor) -> Tensor | None:
    """The weight, if its gradient may be added in passing now; else None."""
    return weight if takes_direct_gradient(weight) else None


def weight_gradient(grad: Tensor, rows: Tensor, owner: Tensor | None) -> Tensor | None:
    """Gradient of a linear map's weight.

    Args:
        grad: Gradient by the map's results. [tokens, outputs].
        rows: What it was applied to. [tokens, inputs].
        owner: The weight, if its gradient may be added in passing; else None.

    Returns:
        [outputs, inputs]; None if it was added to the owner's.
    """
    if owner is None:
        return grad.t() @ rows
    if owner.grad is None:
        owner.grad = grad.t() @ rows
    else:
        # The matrix product adds up in place: no tensor of the weight's size is made.
        owner.grad.addmm_(grad.t(), rows)
    return None


def add_gradient(gradient: Tensor, owner: Tensor | None) -> Tensor | None:
    """Add a gradient to that of a weight.

    Args:
        gradient: The gradient, in the weight's shape and type.
        owner: The weight, if its gradient may be added in passing; else None.

    Returns:
        The gradient; None if it was added to the owner's.
    """
    if owner is None:
        return gradient
    if owner.grad is None:
        owner.grad = gradient
    else:
        owner.grad += gradient
    return None


def embed(ids: Tensor, weight: Tensor, padding_id: int | None) -> Tensor:
    """Rows of a weight, whose gradient is added to the weight's `.grad`.

    Args:
        ids: Tokens. [*tokens].
        weight: [vocabulary, hidden].
        padding_id: Token whose row gets no gradient, as `torch.nn.Embedding` has it; or None.

    Returns:
        [*tokens, hidden].
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
        # A few hundred rows are added; autograd would make a zero tensor of the whole
        # vocabulary for them, and where the head is tied to the embeddings add that to its.
        if ctx.weight.grad is None:
            ctx.weight.grad = torch.zeros_like(ctx.weight)
        ctx.weight.grad.index_add_(0, ids, rows.to(ctx.weight.dtype))
        return None, None, None
