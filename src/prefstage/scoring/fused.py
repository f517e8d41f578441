"""Norm and gated MLP of a layer as single steps: fewer passes, fewer tensors kept."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from prefstage.scoring.activations import current_store
from prefstage.scoring.direct import takes_direct_gradient, weight_gradient
from prefstage.scoring.precision import at_least_float32

Activation = Callable[[Tensor], Tensor]


def rms_norm(
    x: Float[Tensor, "*places hidden"],
    weight: Float[Tensor, " hidden"],
    *,
    eps: float,
    offset: float = 0.0,
) -> Float[Tensor, "*places hidden"]:
    """Root-mean-square norm: ``x / sqrt(mean(x²) + eps) · (offset + weight)``.

    Computed in float32 at least. The backward pass keeps `x` and one number a place, where
    the formula written out keeps `x` in float32 and the normalised `x` too.

    Args:
        x: Hidden states. [*places, hidden].
        weight: [hidden].
        eps: Added to the mean square, > 0.
        offset: 0 as in Llama, which rounds to the type of `x` before the weight; 1 as in
            Gemma, which rounds after it.

    Returns:
        [*places, hidden].

    Source:
        Zhang and Sennrich 2019, arXiv:1910.07467, equation 4.
    """
    result: Tensor = _RmsNorm.apply(x, weight, eps, offset)  # type: ignore[no-untyped-call]  # untyped in torch
    store = current_store()
    if store is not None and result.requires_grad:
        kept = store.keep(x)
        store.computed_by(result, lambda: _normal(kept, weight, eps, offset)[0])
    return result


@dataclass(frozen=True)
class GatedWeights:
    """The linear maps of a gated MLP, each with its bias or None.

    Attributes:
        gate: [inner, hidden], and [inner].
        up: Likewise.
        down: [hidden, inner], and [hidden].
    """

    gate: tuple[Tensor, Tensor | None]
    up: tuple[Tensor, Tensor | None]
    down: tuple[Tensor, Tensor | None]


def gated_mlp(
    x: Float[Tensor, "*places hidden"], weights: GatedWeights, activation: Activation
) -> Float[Tensor, "*places hidden"]:
    """A gated MLP: ``(activation(x W_gᵀ + b_g) · (x W_uᵀ + b_u)) W_dᵀ + b_d``.

    The backward pass keeps the two inner products and computes the activation and what
    it multiplies again: two passes over them, for half of what an MLP otherwise keeps.

    Args:
        x: Hidden states. [*places, hidden].
        weights: Its linear maps.
        activation: Elementwise, without parameters.

    Returns:
        [*places, hidden].

    Source:
        Shazeer 2020, arXiv:2002.05202, equation 6.
    """
    result: Tensor = _GatedMlp.apply(  # type: ignore[no-untyped-call]  # untyped in torch
        x, *weights.gate, *weights.up, *weights.down, activation
    )
    return result


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, offset: float) -> Tensor:
        result, inverse = _normal(x, weight, eps, offset)
        ctx.save_for_backward(x, weight, inverse)
        ctx.offset = offset
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, inverse = ctx.saved_tensors
        precise, grad = at_least_float32(x), at_least_float32(grad_output)
        factor = weight.to(precise.dtype)
        factor = factor + ctx.offset if ctx.offset else factor
        product = (precise * inverse).mul_(grad)
        grad_x = grad_weight = None
        if ctx.needs_input_grad[1]:
            grad_weight = product.flatten(0, -2).sum(0).to(weight.dtype)
        if ctx.needs_input_grad[0]:
            # The mean square falls in every direction but that of x.
            along = (product @ factor)[..., None].mul_(inverse).div_(-x.shape[-1])
            grad_x = torch.mul(grad, factor).addcmul_(precise, along).mul_(inverse).to(x.dtype)
        return grad_x, grad_weight, None, None


class _GatedMlp(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917 - autograd passes its inputs by place
        ctx: Any,
        x: Tensor,
        gate_weight: Tensor,
        gate_bias: Tensor | None,
        up_weight: Tensor,
        up_bias: Tensor | None,
        down_weight: Tensor,
        down_bias: Tensor | None,
        activation: Activation,
    ) -> Tensor:
        keeps = any(ctx.needs_input_grad)
        ctx.store = store = current_store() if keeps else None
        if store is not None:
            store.tidy()
        rows = x.flatten(0, -2)
        gate = _map(rows, gate_weight, gate_bias, None if store is None else store.new)
        up = _map(rows, up_weight, up_bias, None if store is None else store.new)
        ctx.save_for_backward(x, gate, up, gate_weight, up_weight, down_weight)
        ctx.activation = activation
        ctx.owners = [w if takes_direct_gradient(w) else None for w in (gate_weight, up_weight)]
        ctx.owners.append(down_weight if takes_direct_gradient(down_weight) else None)
        opened = activation(gate)
        own = opened.data_ptr() != gate.data_ptr() and opened.dtype == up.dtype
        inner = opened.mul_(up) if own else opened * up
        return linear(inner, down_weight, down_bias).view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.store is not None:
            ctx.store.tidy()
        x, gate, up, gate_weight, up_weight, down_weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        rows, grad = x.flatten(0, -2), grad_output.flatten(0, -2)
        with torch.enable_grad():
            source = gate.detach().requires_grad_()
            opened = ctx.activation(source)
        grads: list[Tensor | None] = [None] * 8
        if wanted[5]:
            grads[5] = weight_gradient(grad, opened.detach() * up, ctx.owners[2])
        if wanted[6]:
            grads[6] = grad.sum(0)
        grad_inner = grad @ down_weight
        grad_up = grad_inner * opened.detach()
        (grad_gate,) = torch.autograd.grad(opened, source, grad_inner.mul_(up))
        for place, each, owner in ((1, grad_gate, ctx.owners[0]), (3, grad_up, ctx.owners[1])):
            if wanted[place]:
                grads[place] = weight_gradient(each, rows, owner)
            if wanted[place + 1]:
                grads[place + 1] = each.sum(0)
        if wanted[0]:
            grad_rows = grad_gate @ gate_weight
            grads[0] = grad_rows.addmm_(grad_up, up_weight).view(x.shape)
        return tuple(grads)


def _map(
    rows: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    place: Callable[[tuple[int, ...], torch.dtype], Tensor] | None,
) -> Tensor:
    """A linear map, into a place of its own if there is one."""
    if place is None:
        return linear(rows, weight, bias)
    result = place((len(rows), len(weight)), rows.dtype)
    if bias is None:
        return torch.mm(rows, weight.t(), out=result)
    return torch.addmm(bias, rows, weight.t(), out=result)


def _normal(x: Tensor, weight: Tensor, eps: float, offset: float) -> tuple[Tensor, Tensor]:
    """The norm's result, and 1 / sqrt(mean(x²) + eps)."""
    precise = at_least_float32(x)
    root = torch.linalg.vector_norm(precise, dim=-1, keepdim=True)
    inverse = root.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    normal = precise * inverse
    if offset:
        return normal.mul_(weight.to(precise.dtype) + offset).to(x.dtype), inverse
    normal = normal.to(x.dtype)
    result = normal.mul_(weight) if normal.dtype == weight.dtype else normal * weight
    return result, inverse
