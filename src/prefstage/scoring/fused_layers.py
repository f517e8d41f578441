"""Fused steps inside any transformers model whose norms and MLPs are of a known form."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from prefstage.scoring.direct import embed, map_linearly, maps_directly, takes_direct_gradient
from prefstage.scoring.fused import GatedWeights, gated_mlp, rms_norm
from prefstage.scoring.fused_rotary import NAME, Rotation, rotation_of

_TRIAL_PLACES = 3
_MLP_PARTS = (
    ({"gate_proj", "up_proj", "down_proj", "act_fn"}, "act_fn"),
    ({"gate_up_proj", "down_proj", "activation_fn"}, "activation_fn"),
)
_ACTIVATIONS = ("act_fn", "activation_fn")

Forward = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class FusedLayer:
    """A module and what computes the same.

    Attributes:
        module: The module.
        forward: Its replacement.
    """

    module: nn.Module
    forward: Forward


@dataclass(frozen=True)
class FusedParts:
    """What of a model runs fused.

    Attributes:
        layers: Modules.
        rotations: Functions of model files, each with its namespace.
    """

    layers: tuple[FusedLayer, ...] = ()
    rotations: tuple[tuple[dict[str, Any], Rotation], ...] = ()


_found: "WeakKeyDictionary[nn.Module, FusedParts]" = WeakKeyDictionary()


@contextmanager
def fused_layers(body: Any) -> Iterator[None]:
    """Let what of a model can run fused do so while the block runs.

    Which modules can was found by `find_fused_layers`, if that was called for `body`.

    Args:
        body: A transformers model.
    """
    # Who placed a forward of its own there (accelerate, or an outer block) keeps it.
    parts = _found.get(body, FusedParts())
    replaced = [one for one in parts.layers if "forward" not in vars(one.module)]
    for one in replaced:
        vars(one.module)["forward"] = one.forward
    try:
        for namespace, rotation in parts.rotations:
            namespace[NAME] = rotation
        yield
    finally:
        # Layers that run again in the backward pass must then do what they did.
        if not (torch.is_grad_enabled() and recomputes_layers(body)):
            for one in replaced:
                vars(one.module).pop("forward", None)
            # Another thread may have put its own there, or taken it away: all give the same.
            for namespace, rotation in parts.rotations:
                namespace[NAME] = rotation.replaced


def weights_of(body: Any) -> list[Tensor]:
    """Weights of the modules that run fused.

    Args:
        body: A transformers model, after `find_fused_layers`.
    """
    layers = _found.get(body, FusedParts()).layers
    return [weight for one in layers for weight in one.module.parameters()]


def find_fused_layers(body: Any) -> int:
    """Find the modules that can run fused: those of a known form that give the same values.

    The first module of each class is tried on a few numbers, in training mode, so that a
    layer that does anything else, such as dropout, keeps its own forward.

    Args:
        body: A transformers model, not yet sharded.

    Returns:
        How many there are.
    """
    if body in _found:
        return len(_found[body].layers)
    found, right = list[FusedLayer](), dict[tuple[type, type], int | None]()
    for module in body.modules():
        candidates = [*_norm_forwards(module), *_mlp_forwards(module)]
        if not candidates:
            continue
        kind = (type(module), type(_activation(module)))
        if kind not in right:
            same = (i for i, forward in enumerate(candidates) if _same(module, forward))
            right[kind] = next(same, None)
        index = right[kind]
        if index is not None:
            found.append(FusedLayer(module, candidates[index]))
    embeddings = body.get_input_embeddings()
    if _is_plain_embedding(embeddings):
        found.append(FusedLayer(embeddings, partial(_run_embedding, embeddings)))
    inside = {id(part) for one in found for part in one.module.modules()}
    maps = [m for m in body.modules() if type(m) is nn.Linear and id(m) not in inside]
    found += [FusedLayer(module, partial(_run_map, module)) for module in maps]
    rotations = map(rotation_of, sorted({type(module).__module__ for module in body.modules()}))
    _found[body] = FusedParts(tuple(found), tuple(each for each in rotations if each))
    return len(found)


def has_fused_form(body: Any) -> bool:
    """Whether a model's norms and MLPs look as if they could run fused; none of them is tried.

    Args:
        body: A transformers model, on any device.
    """
    modules = list(body.modules())
    return any(map(_norm_forwards, modules)) and any(map(_mlp_forwards, modules))


def recomputes_layers(body: Any) -> bool:
    """Whether layers run again in the backward pass (the model's own flag changed its name)."""
    return any(getattr(module, "gradient_checkpointing", False) for module in body.modules())


def _norm_forwards(module: nn.Module) -> list[Forward]:
    """What a norm may be: as in Llama or as in Gemma."""
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


def _run_norm(module: Any, eps: float, offset: float, x: Tensor) -> Tensor:
    if not _is_plain(module.weight):
        return _own_forward(module, x)
    return rms_norm(x, module.weight, eps=eps, offset=offset)


def _run_mlp(module: Any, activation: nn.Module, x: Tensor) -> Tensor:
    maps = [each for name, each in module.named_children() if name not in _ACTIVATIONS]
    if not all(map(_is_plain_map, maps)) or torch.is_autocast_enabled(x.device.type):
        return _own_forward(module, x)
    return gated_mlp(x, _weights(module), activation)


def _run_map(module: Any, x: Tensor) -> Tensor:
    if not maps_directly(module.weight) or torch.is_autocast_enabled(x.device.type):
        return _own_forward(module, x)
    return map_linearly(x, module.weight, module.bias)


def _weights(module: Any) -> GatedWeights:
    down = (module.down_proj.weight, module.down_proj.bias)
    if not hasattr(module, "gate_up_proj"):
        gate, up = module.gate_proj, module.up_proj
        return GatedWeights((gate.weight, gate.bias), (up.weight, up.bias), down)
    both, bias = module.gate_up_proj.weight.chunk(2), module.gate_up_proj.bias
    biases = (None, None) if bias is None else bias.chunk(2)
    return GatedWeights((both[0], biases[0]), (both[1], biases[1]), down)


def _is_plain_map(module: Any) -> bool:
    """Whether it is a linear map and nothing else, without hooks that its call would run."""
    return (
        type(module) is nn.Linear
        and _is_plain(module.weight)
        and not module._forward_hooks
        and not module._forward_pre_hooks
        and "forward" not in vars(module)
    )


def _run_embedding(module: Any, ids: Tensor) -> Tensor:
    if not takes_direct_gradient(module.weight):
        return _own_forward(module, ids)
    return embed(ids, module.weight, module.padding_idx)


def _is_plain_embedding(module: Any) -> bool:
    return (
        type(module) is nn.Embedding
        and module.max_norm is None
        and not module.scale_grad_by_freq
        and not module.sparse
    )


def _own_forward(module: Any, x: Tensor) -> Tensor:
    result: Tensor = type(module).forward(module, x)
    return result


def _is_plain(weight: Any) -> bool:
    """Whether it is no quantised or distributed tensor."""
    return type(weight) in (nn.Parameter, Tensor) and weight.is_floating_point()


def _same(module: Any, forward: Forward) -> bool:
    """Whether a replacement gives a module's values."""
    weight = next(module.parameters())
    if not _is_plain(weight) or weight.is_meta or "forward" in vars(module):
        return False
    width = next((m.in_features for m in module.children() if hasattr(m, "in_features")), None)
    shape = (_TRIAL_PLACES, width or len(weight))
    x = torch.arange(shape[0] * shape[1], dtype=torch.float32).mul_(0.7).sin_().view(shape)
    # The smallest numbers show where eps stands.
    x = (x * torch.tensor([1.0, 1e-3, 30.0])[:, None]).to(weight)
    modes = {each: each.training for each in module.modules()}
    try:
        module.train()
        with torch.no_grad():
            expected, found = module(x), forward(x)
    finally:
        for each, mode in modes.items():
            each.training = mode
    allowed = 1e-5 if weight.dtype in (torch.float32, torch.float64) else 2e-2
    return found.shape == expected.shape and torch.allclose(
        found.float(), expected.float(), rtol=allowed, atol=allowed * float(expected.abs().max())
    )
