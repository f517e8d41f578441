"""Fused steps inside any transformers model whose norms and MLPs are of a known form."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from prefstage.scoring.compat import has_hooks
from prefstage.scoring.cpu.gradients import embed, takes_direct_gradient
from prefstage.scoring.cpu.steps import GatedWeights, gated_mlp, rms_norm

_TRIAL_TOKENS = 3
_MLP_PARTS = (
    ({"gate_proj", "up_proj", "down_proj", "act_fn"}, "act_fn"),
    ({"gate_up_proj", "down_proj", "activation_fn"}, "activation_fn"),
)

Forward = Callable[[Tensor], Tensor]


_layers: "WeakKeyDictionary[nn.Module, list[tuple[nn.Module, Forward]]]" = WeakKeyDictionary()
"""Modules of a model, each with what computes the same."""


@contextmanager
def fused_layers(body: Any) -> Iterator[None]:
    """Let what of a model can run fused do so while the block runs.

    Args:
        body: A transformers model, whose modules were tried by `find_fused_layers`; nothing
            is fused otherwise.
    """
    # Who put a forward of his there (accelerate, or an outer block) keeps it; what an outer
    # block did is for that block to undo.
    layers = [(m, forward) for m, forward in _layers.get(body, []) if "forward" not in vars(m)]
    for module, forward in layers:
        vars(module)["forward"] = forward
    try:
        yield
    finally:
        for module, _ in layers:
            vars(module).pop("forward", None)


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
            same = (i for i, forward in enumerate(candidates) if _same_values(module, forward))
            chosen[kind] = next(same, None)
        index = chosen[kind]
        if index is not None:
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


# --- Norms, MLPs and embeddings ---------------------------------------------------------------


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


def _run_norm(module: Any, eps: float, offset: float, x: Tensor) -> Tensor:
    if not _is_plain(module.weight):
        return _unfused(module, x)
    return rms_norm(x, module.weight, eps=eps, offset=offset)


def _run_mlp(module: Any, activation: nn.Module, x: Tensor) -> Tensor:
    maps = [child for child in module.children() if child is not activation]
    # Looked at in every call: adapters, hooks and autocast come and go.
    if not all(map(_is_plain_map, maps)) or torch.is_autocast_enabled(x.device.type):
        return _unfused(module, x)
    return gated_mlp(x, _weights(module), activation)


def _run_embedding(module: Any, ids: Tensor) -> Tensor:
    if not takes_direct_gradient(module.weight):
        return _unfused(module, ids)
    return embed(ids, module.weight, module.padding_idx)


def _unfused(module: Any, x: Tensor) -> Tensor:
    result: Tensor = type(module).forward(module, x)
    return result


def _weights(module: Any) -> GatedWeights:
    down = (module.down_proj.weight, module.down_proj.bias)
    if not hasattr(module, "gate_up_proj"):
        gate, up = module.gate_proj, module.up_proj
        return GatedWeights((gate.weight, gate.bias), (up.weight, up.bias), down)
    both, bias = module.gate_up_proj.weight.chunk(2), module.gate_up_proj.bias
    biases = (None, None) if bias is None else bias.chunk(2)
    return GatedWeights((both[0], biases[0]), (both[1], biases[1]), down)


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
