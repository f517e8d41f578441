"""Norms, gated MLPs and embeddings as single steps, inside any transformers model of a known form.

A single step takes fewer passes over memory, and keeps less for the backward pass.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding, linear

from prefstage.scoring.compat import has_hooks, replaced
from prefstage.scoring.cpu.lean import (
    add_gradient,
    at_least_float32,
    computed_by,
    owner_of,
    short_lived,
    weight_gradient,
)

Activation = Callable[[Tensor], Tensor]
Forward = Callable[[Tensor], Tensor]
LinearMap = tuple[Tensor, Tensor | None]
"""W, [outputs, inputs], and b, [outputs], or None."""

_TRIAL_TOKENS = 3
_MLP_PARTS = (
    ({"gate_proj", "up_proj", "down_proj", "act_fn"}, "act_fn"),
    ({"gate_up_proj", "down_proj", "activation_fn"}, "activation_fn"),
)

# Modules of a model, each with what computes the same.
_layers: "WeakKeyDictionary[nn.Module, list[tuple[nn.Module, Forward]]]" = WeakKeyDictionary()


# --- The steps --------------------------------------------------------------------------------


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


def gated_mlp(
    x: Float[Tensor, "*tokens hidden"],
    *,
    gate: LinearMap,
    up: LinearMap,
    down: LinearMap,
    activation: Activation,
) -> Float[Tensor, "*tokens hidden"]:
    """A gated MLP: ``(activation(x W_gᵀ + b_g) · (x W_uᵀ + b_u)) W_dᵀ + b_d``.

    The backward pass keeps the two inner products and computes the activation and what
    it multiplies again: two passes over them, for half of what an MLP otherwise keeps.

    Args:
        x: Hidden states. [*tokens, hidden].
        gate: W_g, [inner, hidden], and b_g, [inner], or None.
        up: W_u and b_u, likewise.
        down: W_d, [hidden, inner], and b_d, [hidden], or None.
        activation: Elementwise, without parameters.

    Returns:
        [*tokens, hidden].

    Source:
        Shazeer 2020, arXiv:2002.05202, equation 6.
    """
    owners = tuple(owner_of(weight) for weight, _ in (gate, up, down))
    result: Tensor = _GatedMlp.apply(x, *gate, *up, *down, activation, owners)  # type: ignore[no-untyped-call]  # untyped in torch
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
            grad_weight = add_gradient(product.flatten(0, -2).sum(0).to(weight.dtype), ctx.owner)
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
        result, weight = short_lived((len(rows), len(down_weight)), rows), down_weight.t()
        if down_bias is None:
            torch.mm(inner, weight, out=result)
        else:
            torch.addmm(down_bias, inner, weight, out=result)
        return result.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        x, gate, up, gate_weight, up_weight, down_weight = ctx.saved_tensors
        wanted, owners = ctx.needs_input_grad, ctx.owners
        rows, grad = x.flatten(0, -2), grad_output.flatten(0, -2)
        # The activation may be anything elementwise: autograd knows its slope.
        with torch.enable_grad():
            source = gate.detach().requires_grad_()
            opened = ctx.activation(source)
        grads: list[Tensor | None] = [None] * 9
        if wanted[5]:
            grads[5] = weight_gradient(grad, opened.detach() * up, owners[2])
        if wanted[6]:
            grads[6] = grad.sum(0)
        grad_inner = grad @ down_weight
        grad_up = grad_inner * opened.detach()
        (grad_gate,) = torch.autograd.grad(opened, source, grad_inner.mul_(up))
        for index, gradient, owner in ((1, grad_gate, owners[0]), (3, grad_up, owners[1])):
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


# Rows of a weight, whose gradient is added to the weight's `.grad`; none for the padding's row.
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


# --- Which modules of a model they stand in for -----------------------------------------------


def fused_layers(body: Any) -> AbstractContextManager[None]:
    """Let what of a model can run fused do so while the block runs.

    Args:
        body: A transformers model, whose modules were tried by `find_fused_layers`; nothing
            is fused otherwise.
    """
    # Who put a forward of his there (accelerate, or an outer block) keeps it; what an outer
    # block did is for that block to undo.
    free = ((m, forward) for m, forward in _layers.get(body, []) if "forward" not in vars(m))
    return replaced({module: {"forward": forward} for module, forward in free})


def find_fused_layers(body: Any) -> int:
    """Find the modules that can run fused: those of a known form that give the same values.

    Args:
        body: A transformers model, not yet sharded.

    Returns:
        How many there are.
    """
    if body in _layers:
        return len(_layers[body])
    layers, chosen = list[tuple[nn.Module, Forward]](), dict[tuple[type, type], int | None]()
    for module in body.modules():
        candidates = [*_norm_forwards(module), *_mlp_forwards(module)]
        if not candidates:
            continue
        # A name and attributes promise nothing: the first module of each class is tried.
        kind = (type(module), type(_activation(module)))
        if kind not in chosen:
            chosen[kind] = next(
                (i for i, forward in enumerate(candidates) if _same_values(module, forward)), None
            )
        if (index := chosen[kind]) is not None:
            layers.append((module, candidates[index]))
    embeddings = body.get_input_embeddings()
    if (
        type(embeddings) is nn.Embedding
        and embeddings.max_norm is None
        and not embeddings.scale_grad_by_freq
        and not embeddings.sparse
    ):
        layers.append((embeddings, partial(_run_embedding, embeddings)))
    _layers[body] = layers
    return len(layers)


def has_fused_form(body: Any) -> bool:
    """Whether a model's norms and MLPs look as if they could run fused; none of them is tried.

    Args:
        body: A transformers model, on any device.
    """
    modules = list(body.modules())
    return any(map(_norm_forwards, modules)) and any(map(_mlp_forwards, modules))


# What a norm may be: as in Llama or as in Gemma.
def _norm_forwards(module: nn.Module) -> list[Forward]:
    if not type(module).__name__.endswith("RMSNorm") or list(module.children()):
        return []
    weight = getattr(module, "weight", None)
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if not isinstance(eps, float) or not isinstance(weight, Tensor) or weight.ndim != 1:
        return []
    return [partial(_run_norm, module, eps, offset) for offset in (0.0, 1.0)]


def _mlp_forwards(module: nn.Module) -> list[Forward]:
    activation: Any = _activation(module)
    if activation is None or any(True for _ in activation.parameters()):
        return []
    return [partial(_run_mlp, module, activation)]


def _activation(module: nn.Module) -> nn.Module | None:
    names = dict(module.named_children())
    return next((names[name] for parts, name in _MLP_PARTS if set(names) == parts), None)


# Each run looks anew whether the module is still what was tried: adapters, hooks and autocast
# come and go. If not, it runs as its class does.
def _run_norm(module: Any, eps: float, offset: float, x: Tensor) -> Any:
    if not _is_plain(module.weight):
        return type(module).forward(module, x)
    return rms_norm(x, module.weight, eps=eps, offset=offset)


def _run_mlp(module: Any, activation: nn.Module, x: Tensor) -> Any:
    maps = [child for child in module.children() if child is not activation]
    if not all(map(_is_plain_map, maps)) or torch.is_autocast_enabled(x.device.type):
        return type(module).forward(module, x)
    if hasattr(module, "gate_up_proj"):  # one map for both
        weights, bias = module.gate_up_proj.weight.chunk(2), module.gate_up_proj.bias
        gate, up = zip(weights, (None, None) if bias is None else bias.chunk(2), strict=True)
    else:
        gate, up = ((one.weight, one.bias) for one in (module.gate_proj, module.up_proj))
    down = (module.down_proj.weight, module.down_proj.bias)
    return gated_mlp(x, gate=gate, up=up, down=down, activation=activation)


def _run_embedding(module: Any, ids: Tensor) -> Any:
    if owner_of(module.weight) is None:
        return type(module).forward(module, ids)
    return _Embed.apply(ids, module.weight, module.padding_idx)  # type: ignore[no-untyped-call]  # untyped in torch


# Whether it is a linear map and nothing else, without hooks that its call would run.
def _is_plain_map(module: Any) -> bool:
    return (
        type(module) is nn.Linear
        and _is_plain(module.weight)
        and not has_hooks(module)
        and "forward" not in vars(module)
    )


# Whether it is no quantised or distributed tensor.
def _is_plain(weight: Any) -> bool:
    return type(weight) in (nn.Parameter, Tensor) and weight.is_floating_point()


# Whether a replacement gives a module's values.
def _same_values(module: Any, forward: Forward) -> bool:
    weight = next(module.parameters())
    if not _is_plain(weight) or weight.is_meta or "forward" in vars(module):
        return False
    width = next((m.in_features for m in module.children() if hasattr(m, "in_features")), None)
    shape = (_TRIAL_TOKENS, width or len(weight))
    x = torch.arange(shape[0] * shape[1], dtype=torch.float32).mul_(0.7).sin_().view(shape)
    # The smallest numbers show where eps stands.
    x = (x * torch.tensor([1.0, 1e-3, 30.0])[:, None]).to(weight)
    modes = {part: part.training for part in module.modules()}
    try:
        # In training mode, so that a layer with dropout differs and stays as it is.
        module.train()
        with torch.no_grad():
            expected, computed = module(x), forward(x)
    finally:
        for part, mode in modes.items():
            part.training = mode
    allowed = 1e-5 if weight.dtype in (torch.float32, torch.float64) else 2e-2
    scale = allowed * float(expected.abs().max())
    return computed.shape == expected.shape and torch.allclose(
        computed.float(), expected.float(), rtol=allowed, atol=scale
    )
