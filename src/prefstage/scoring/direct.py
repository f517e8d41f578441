"""Gradients of large weights, added where they are summed up.

As autograd passes gradients on, each micro-batch makes a further tensor the size of every
weight, and adds it. Head, input embeddings and linear maps hold most of a model's weights.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding
from torch.utils.weak import WeakTensorKeyDictionary

from prefstage.scoring.short_lived import is_held_elsewhere, mapped

_on: ContextVar[bool] = ContextVar("direct gradients", default=False)
_maps: ContextVar[bool] = ContextVar("direct gradients of single maps", default=False)
_places = WeakTensorKeyDictionary()
"""Memory for the gradients of weights, by weight."""


@contextmanager
def direct_gradients(*, maps: bool = True) -> Iterator[None]:
    """Let head, embeddings, norms and linear maps in the block add their gradients to `.grad`.

    For ``loss.backward()`` in a single process: `torch.autograd.grad` does not see them, nor
    do wrappers that exchange gradients as they are passed on.

    Args:
        maps: Whether single linear maps do so too. They then keep other tensors than
            otherwise, which checkpointing takes for an error unless it runs them the same.
    """
    tokens = _on.set(True), _maps.set(maps)
    try:
        yield
    finally:
        _on.reset(tokens[0])
        _maps.reset(tokens[1])


def reserve_gradients(weights: Iterable[Tensor]) -> None:
    """Set memory aside for gradients, to be used in every step from now on.

    A gradient that is made between activations leaves holes around it when it and they are
    gone. Its memory is used again only when nobody else holds the gradient any longer.

    Args:
        weights: A model's parameters; those that take no gradient in passing are left out.
    """
    with direct_gradients(), torch.enable_grad():
        for weight in weights:
            if takes_direct_gradient(weight) and weight not in _places:
                _places[weight] = torch.empty_like(weight, requires_grad=False)


def new_gradient(weight: Tensor) -> Tensor:
    """An empty tensor for a weight's gradient: the one set aside for it, if it is free."""
    place: Tensor | None = _places.get(weight)  # type: ignore[no-untyped-call]  # untyped in torch
    if place is not None and weight.grad is None and not is_held_elsewhere(place):
        # A tensor of its own, so that who holds the gradient holds the memory.
        return place.detach()
    return torch.empty_like(weight, requires_grad=False)


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


def maps_directly(weight: Tensor) -> bool:
    """Whether a single linear map's weight may have its gradient added in passing now."""
    return _maps.get() and takes_direct_gradient(weight)


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
        owner.grad = torch.mm(grad.t(), rows, out=new_gradient(owner))
    else:
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
        owner.grad = new_gradient(owner).copy_(gradient)
    else:
        owner.grad += gradient
    return None


def map_linearly(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``x Wᵀ + b``, whose gradient by W is added to the weight's `.grad`.

    Args:
        x: [*places, inputs].
        weight: W, which takes its gradient in passing. [outputs, inputs].
        bias: b, or None. [outputs].

    Returns:
        [*places, outputs].
    """
    result: Tensor = _Map.apply(x, weight, bias)  # type: ignore[no-untyped-call]  # untyped in torch
    return result


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


class _Map(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.owner = weight
        return mapped(x.flatten(0, -2), weight, bias).view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad = grad_output.flatten(0, -2)
        weight_gradient(grad, x.flatten(0, -2), ctx.owner)
        grad_x = (grad @ weight).view(x.shape) if ctx.needs_input_grad[0] else None
        return grad_x, None, grad.sum(0) if ctx.needs_input_grad[2] else None


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
            ctx.weight.grad = new_gradient(ctx.weight).zero_()
        ctx.weight.grad.index_add_(0, ids, rows.to(ctx.weight.dtype))
        return None, None, None
