"""Training passes on a CPU in one process: gradients in place, and no more kept than need be.

What layers keep for their backward pass is most of a step's memory. They run again as far as a
micro-batch is larger than the budget; what is left of the budget keeps logits.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from prefstage.scoring.compat import (
    has_gradient_hooks,
    layers_of,
    recomputes_layers,
    recomputing,
)

KEPT_ELEMENTS = 1 << 25
"""On a CPU, logits kept for the backward pass (128 MiB in float32) unless `Savings` says otherwise;
others are computed again, which is a third more of the vocabulary's arithmetic."""

_FLOAT32_BYTES = 4


@dataclass(frozen=True)
class Savings:
    """How passes save memory now.

    Attributes:
        direct: Whether head, embeddings, norms and MLPs add their gradients to `.grad`. For
            ``loss.backward()`` in a single process: `torch.autograd.grad` does not see them, nor
            do wrappers that exchange gradients as they are passed on.
        room: Logits kept for the backward pass at most, on a CPU.
    """

    direct: bool = False
    room: int = KEPT_ELEMENTS


_NOTHING_SAVED = Savings()
_savings: ContextVar[Savings] = ContextVar("savings", default=_NOTHING_SAVED)


def savings() -> Savings:
    """How passes save memory now."""
    return _savings.get()


@contextmanager
def saving(**changes: Any) -> Iterator[None]:
    """Let passes save memory in further ways while the block runs.

    Args:
        changes: Fields of `Savings`; the others stay as they are.
    """
    token = _savings.set(replace(savings(), **changes))
    try:
        yield
    finally:
        _savings.reset(token)


@contextmanager
def lean_pass(body: Any, *, tokens: int, token_budget: int, kept_bytes: int) -> Iterator[None]:
    """Around the forward pass of a micro-batch in training; its backward pass may come after it.

    Args:
        body: The policy's layers, a transformers model in training mode.
        tokens: Tokens of the pass.
        token_budget: Tokens whose activations there is room for.
        kept_bytes: What a token keeps in all layers, from `ModelShape.kept_bytes`.
    """
    with saving(direct=True):
        # Where all layers run again anyway, next to nothing is kept.
        if recomputes_layers(body):
            yield
            return
        # A micro-batch within the budget leaves the logits what its layers do not take.
        room = KEPT_ELEMENTS + kept_bytes * max(0, token_budget - tokens) // _FLOAT32_BYTES
        rerun = recomputed_layers(body, tokens=tokens, room=token_budget)
        with saving(room=room), rerun:
            yield


# --- Gradients of large weights, added where they are summed up ---------------------------------
#
# As autograd passes gradients on, each micro-batch makes a further tensor the size of every
# weight, and adds it. Head, input embeddings and MLPs hold most of a model's weights.


def owner_of(weight: Tensor) -> Tensor | None:
    """The weight, if its gradient may be added to its `.grad` in passing now; else None."""
    takes = (
        savings().direct
        and torch.is_grad_enabled()
        and weight.is_leaf
        and weight.requires_grad
        and weight.device.type == "cpu"
        and weight.dtype in (torch.float32, torch.float64)
        and not has_gradient_hooks(weight)
    )
    return weight if takes else None


def weight_gradient(grad: Tensor, rows: Tensor, owner: Tensor | None) -> Tensor | None:
    """Gradient of a linear map's weight.

    Args:
        grad: Gradient by the map's results. [tokens, outputs].
        rows: What it was applied to. [tokens, inputs].
        owner: The weight, if its gradient may be added in passing; else None.

    Returns:
        [outputs, inputs]; None if it was added to the owner's.
    """
    if owner is None or owner.grad is None:
        return add_gradient(grad.t() @ rows, owner)
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


# --- Layers that run again in the backward pass -------------------------------------------------


@contextmanager
def recomputed_layers(body: Any, *, tokens: int, room: int) -> Iterator[int]:
    """Let as many layers run again as needed to keep no more than `room` tokens would.

    ``⌈layers · (1 - room / tokens)⌉`` of them. Values and gradients are the same, bit for bit.

    Args:
        body: A transformers model in training mode whose checkpointing is off.
        tokens: Tokens of the pass inside the block.
        room: Tokens whose activations there is room for, >= 1.

    Yields:
        Number of layers that will run again.
    """
    layers = layers_of(body)
    count = max(0, math.ceil(len(layers) * (1 - room / max(tokens, 1))))
    # The first ones: their turn in the backward pass comes last, when what the others kept is
    # gone, so that what a layer needs while it runs again adds nothing to the peak.
    with recomputing(layers[:count], partial(checkpoint, use_reentrant=False)):
        yield count
