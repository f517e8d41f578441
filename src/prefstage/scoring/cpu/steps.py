"""Norm and gated MLP as single steps: fewer passes over memory, and less kept."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from prefstage.scoring.cpu.gradients import add_gradient, owner_of, weight_gradient
from prefstage.scoring.cpu.lean import computed_by
from prefstage.scoring.cpu.tensors import at_least_float32, mapped, short_lived

Activation = Callable[[Tensor], Tensor]


def rms_norm(
    x: Float[Tensor, "*tokens hidden"],
    weight: Float[Tensor, " hidden"],
    *,
    eps: float,
    offset: float = 0.0,
) -> Float[Tensor, "*tokens hidden"]:
    """Root-mean-square norm: ``x / sqrt(mean(x²) + eps) · (offset + weight)``.

    Computed in float32 at least. The backward pass keeps `x` and one number a token, where
    the formula written out keeps `x` in float32 and the normalised `x` too.

    Args:
        x: Hidden states. [*tokens, hidden].
        weight: [hidden].
        eps: Added to the mean square, > 0.
        offset: 0 as in Llama, which rounds to the type of `x` before the weight; 1 as in
            Gemma, which rounds after it.

    Returns:
        [*tokens, hidden].

    Source:
        Zhang and Sennrich 2019, arXiv:1910.07467, equation 4.
    """
    result: Tensor
    result, inverse = _RmsNorm.apply(x, weight, eps, offset, owner_of(weight))  # type: ignore[no-untyped-call]  # untyped in torch
    kept = x.detach()
    computed_by(result, lambda: _scaled(kept, inverse, weight, offset))
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
    x: Float[Tensor, "*tokens hidden"], weights: GatedWeights, activation: Activation
) -> Float[Tensor, "*tokens hidden"]:
    """A gated MLP: ``(activation(x W_gᵀ + b_g) · (x W_uᵀ + b_u)) W_dᵀ + b_d``.

    The backward pass keeps the two inner products and computes the activation and what
    it multiplies again: two passes over them, for half of what an MLP otherwise keeps.

    Args:
        x: Hidden states. [*tokens, hidden].
        weights: Its linear maps.
        activation: Elementwise, without parameters.

    Returns:
        [*tokens, hidden].

    Source:
        Shazeer 2020, arXiv:2002.05202, equation 6.
    """
    maps = (weights.gate, weights.up, weights.down)
    owners = tuple(owner_of(weight) for weight, _ in maps)
    result: Tensor = _GatedMlp.apply(  # type: ignore[no-untyped-call]  # untyped in torch
        x, *weights.gate, *weights.up, *weights.down, activation, owners
    )
    return result


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917 - autograd passes its inputs by position
        ctx: Any, x: Tensor, weight: Tensor, eps: float, offset: float, owner: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        # The norm sums squares without a tensor of them.
        root = torch.linalg.vector_norm(at_least_float32(x), dim=-1, keepdim=True)
        inverse = root.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        ctx.mark_non_differentiable(inverse)
        ctx.offset, ctx.owner = offset, owner
        return _scaled(x, inverse, weight, offset), inverse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, inverse = ctx.saved_tensors
        precise, grad = at_least_float32(x), at_least_float32(grad_output)
        factor = weight.to(precise.dtype)
        factor = factor + ctx.offset if ctx.offset else factor
        product = (precise * inverse).mul_(grad)
        grad_x = grad_weight = None
        if ctx.needs_input_grad[1]:
            gradient = product.flatten(0, -2).sum(0).to(weight.dtype)
            grad_weight = add_gradient(gradient, ctx.owner)
        if ctx.needs_input_grad[0]:
            # The mean square falls in every direction but that of x.
            along = (product @ factor)[..., None].mul_(inverse).div_(-x.shape[-1])
            grad_x = torch.mul(grad, factor).addcmul_(precise, along).mul_(inverse).to(x.dtype)
        return grad_x, grad_weight, None, None, None


# A norm's result, from 1 / sqrt(mean(x²) + eps).
def _scaled(x: Tensor, inverse: Tensor, weight: Tensor, offset: float) -> Tensor:
    precise = at_least_float32(x)
    normal = torch.mul(precise, inverse, out=short_lived(tuple(x.shape), precise))
    if offset:
        return normal.mul_(weight.to(normal.dtype) + offset).to(x.dtype)
    normal = normal.to(x.dtype)
    return normal.mul_(weight) if normal.dtype == weight.dtype else normal * weight


class _GatedMlp(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917 - autograd passes its inputs by position
        ctx: Any,
        x: Tensor,
        gate_weight: Tensor,
        gate_bias: Tensor | None,
        up_weight: Tensor,
        up_bias: Tensor | None,
        down_weight: Tensor,
        down_bias: Tensor | None,
        activation: Activation,
        owners: tuple[Tensor | None, ...],
    ) -> Tensor:
        rows = x.flatten(0, -2)
        gate = linear(rows, gate_weight, gate_bias)
        up = linear(rows, up_weight, up_bias)
        ctx.save_for_backward(x, gate, up, gate_weight, up_weight, down_weight)
        ctx.activation, ctx.owners = activation, owners
        inner = _activated(gate, activation).mul_(up)
        return mapped(inner, down_weight, down_bias).view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        x, gate, up, gate_weight, up_weight, down_weight = ctx.saved_tensors
        wanted, (of_gate, of_up, of_down) = ctx.needs_input_grad, ctx.owners
        rows, grad = x.flatten(0, -2), grad_output.flatten(0, -2)
        # The activation may be anything elementwise: autograd knows its slope.
        with torch.enable_grad():
            source = gate.detach().requires_grad_()
            opened = ctx.activation(source)
        grads: list[Tensor | None] = [None] * 9
        if wanted[5]:
            grads[5] = weight_gradient(grad, opened.detach() * up, of_down)
        if wanted[6]:
            grads[6] = grad.sum(0)
        grad_inner = grad @ down_weight
        grad_up = grad_inner * opened.detach()
        (grad_gate,) = torch.autograd.grad(opened, source, grad_inner.mul_(up))
        for index, gradient, owner in ((1, grad_gate, of_gate), (3, grad_up, of_up)):
            if wanted[index]:
                grads[index] = weight_gradient(gradient, rows, owner)
            if wanted[index + 1]:
                grads[index + 1] = gradient.sum(0)
        if wanted[0]:
            grads[0] = (grad_gate @ gate_weight).addmm_(grad_up, up_weight).view(x.shape)
        return tuple(grads)


# The activation's result, in memory that may be written over.
def _activated(gate: Tensor, activation: Activation) -> Tensor:
    if type(activation) is nn.SiLU:
        result: Tensor = torch.ops.aten.silu.out(gate, out=short_lived(tuple(gate.shape), gate))
        return result
    opened = activation(gate)
    # An activation may work in place, or return its input; the backward pass needs the gate.
    fresh = opened.data_ptr() != gate.data_ptr() and opened.dtype == gate.dtype
    return opened if fresh else opened.to(gate.dtype, copy=True)
