"""Every reach of scoring into what torch and transformers keep to themselves, with the reason.

Tested on the newest releases; where a name changed, both stand here.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from transformers.modeling_layers import GradientCheckpointingLayer

Surroundings = Callable[[], Any]

_REFERENCES = 2  # the tensor's, and that through which they are counted


# --- torch --------------------------------------------------------------------------------------


def is_shared(tensor: Tensor) -> bool:
    """Whether a view of a tensor, or an array that shares its memory, is held by somebody.

    Only the storage counts its users. Python's references do not tell: a view is another object,
    and newer Pythons count a name on the stack otherwise.
    """
    uses: int = torch._C._storage_Use_Count(tensor.untyped_storage()._cdata)
    return uses > _REFERENCES


def identity(tensor: Tensor) -> tuple[int, int]:
    """Storage and version: views of the same unchanged values have the same."""
    return tensor.untyped_storage()._cdata, tensor._version


def weak_storage(tensor: Tensor) -> Any:
    """A reference that keeps a storage's address, and not its memory, from being used anew."""
    return StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]  # untyped in torch


def has_gradient_hooks(weight: Tensor) -> bool:
    """Whether somebody waits for a weight's gradient as autograd passes it on."""
    return bool(weight._backward_hooks or weight._post_accumulate_grad_hooks)


def has_hooks(module: nn.Module) -> bool:
    """Whether calling a module does more than its forward."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def has_triton() -> bool:
    """Whether torch can compile for a GPU."""
    return bool(torch.utils._triton.has_triton())


# --- transformers -------------------------------------------------------------------------------


def takes_attention(body: Any) -> bool:
    """Whether a model's layers call the function that its configuration names."""
    return bool(getattr(body, "_supports_attention_backend", False))


@contextmanager
def attention_named(body: Any, name: str) -> Iterator[None]:
    """Let a model's layers call an attention function by name while the block runs.

    `set_attn_implementation` is the public way, and refuses names that a model's class does not
    list; the layers themselves read this attribute.
    """
    before = body.config._attn_implementation
    body.config._attn_implementation = name
    try:
        yield
    finally:
        body.config._attn_implementation = before


@contextmanager
def replaced(attributes: Mapping[nn.Module, Mapping[str, Any]]) -> Iterator[None]:
    """Give modules some attributes while the block runs; what they had before comes back.

    Args:
        attributes: By module and name. They stand in the module itself, where they hide what its
            class has.
    """
    before = {
        module: {name: vars(module)[name] for name in new if name in vars(module)}
        for module, new in attributes.items()
    }
    for module, new in attributes.items():
        vars(module).update(new)
    try:
        yield
    finally:
        for module, new in attributes.items():
            for name in new:
                vars(module).pop(name, None)
            vars(module).update(before[module])


def recomputes_layers(body: Any) -> bool:
    """Whether layers run again in the backward pass (the model's flag changed its name)."""
    return any(getattr(module, "gradient_checkpointing", False) for module in body.modules())


def recomputed_in(body: Any, surroundings: Surroundings) -> AbstractContextManager[None]:
    """Let layers that run again in the backward pass do so in the same surroundings.

    The backward pass comes after the block, when every patch is gone: a layer that then ran with
    the model's own attention would compute other values than it did before. So whatever a layer
    hands to its checkpoint function in the block carries the patches along.

    Args:
        body: A transformers model.
        surroundings: Puts everything in order for a layer; made by `contextmanager`.
    """
    name = "_gradient_checkpointing_func"

    def checkpointed(checkpoint: Callable[..., Any], layer: Any, *args: Any) -> Any:
        # As a decorator it is entered anew whenever the layer runs.
        return checkpoint(surroundings()(layer), *args)

    return replaced(
        {
            module: {name: partial(checkpointed, vars(module)[name])}
            for module in body.modules()
            if getattr(module, "gradient_checkpointing", False) and name in vars(module)
        }
    )


def layers_of(body: Any) -> list[nn.Module]:
    """The layers that transformers can run again in the backward pass."""
    return [module for module in body.modules() if isinstance(module, GradientCheckpointingLayer)]


def recomputing(
    layers: list[nn.Module], checkpoint: Callable[..., Any]
) -> AbstractContextManager[None]:
    """Let some layers run again in the backward pass, as if transformers had been asked to."""
    asked = {"gradient_checkpointing": True, "_gradient_checkpointing_func": checkpoint}
    return replaced(dict.fromkeys(layers, asked))
