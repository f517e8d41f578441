"""Norm and gated map of a layer as single steps: fewer passes, fewer tensors kept."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

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
    return result


def gated_map(
    gate: Float[Tensor, "*places inner"],
    up: Float[Tensor, "*places inner"],
    weight: Float[Tensor, "hidden inner"],
    bias: Float[Tensor, " hidden"] | None,
    activation: Activation,
) -> Float[Tensor, "*places hidden"]:
    """The end of a gated MLP: ``(activation(gate) · up) Wᵀ + b``.

    The backward pass keeps `gate` and `up` and computes the activation and the product
    again, which takes two passes over them and saves half of what an MLP keeps.

    Args:
        gate: [*places, inner].
        up: [*places, inner].
        weight: W. [hidden, inner].
        bias: b. [hidden], or None.
        activation: Elementwise, without parameters.

    Returns:
        [*places, hidden].

    Source:
        Shazeer 2020, arXiv:2002.05202, equation 6.
    """
    result: Tensor = _GatedMap.apply(gate, up, weight, bias, activation)  # type: ignore[no-untyped-call]  # untyped in torch
    return result


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, offset: float) -> Tensor:
        precise = _at_least_float32(x)
        root = torch.linalg.vector_norm(precise, dim=-1, keepdim=True)
        inverse = root.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        ctx.offset = offset
        normal = precise * inverse
        if offset:
            scaled: Tensor = normal.mul_(weight.to(precise.dtype) + offset).to(x.dtype)
            return scaled
        normal = normal.to(x.dtype)
        return normal.mul_(weight) if normal.dtype == weight.dtype else normal * weight

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, inverse = ctx.saved_tensors
        precise, grad = _at_least_float32(x), _at_least_float32(grad_output)
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


class _GatedMap(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917 - autograd passes its inputs by place
        ctx: Any,
        gate: Tensor,
        up: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        activation: Activation,
    ) -> Tensor:
        ctx.save_for_backward(gate, up, weight)
        ctx.activation = activation
        opened = activation(gate)
        own = opened.data_ptr() != gate.data_ptr() and opened.dtype == up.dtype
        return linear(opened.mul_(up) if own else opened * up, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        gate, up, weight = ctx.saved_tensors
        wants_gate, wants_up, wants_weight, wants_bias = ctx.needs_input_grad[:4]
        with torch.enable_grad():
            source = gate.detach().requires_grad_(wants_gate)
            opened = ctx.activation(source)
        grad_gate = grad_up = grad_weight = grad_bias = None
        rows = grad_output.flatten(0, -2)
        if wants_weight:
            grad_weight = rows.t() @ (opened.detach() * up).flatten(0, -2)
        if wants_bias:
            grad_bias = rows.sum(0)
        if wants_gate or wants_up:
            grad_inner = grad_output @ weight
            if wants_up:
                grad_up = grad_inner * opened.detach()
            if wants_gate:
                (grad_gate,) = torch.autograd.grad(opened, source, grad_inner.mul_(up))
        return grad_gate, grad_up, grad_weight, grad_bias, None


def _at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
