"""Training passes on a CPU in one process: gradients in place, and no more kept than need be.

What a layer keeps for its backward pass is most of a step's memory. A norm's result is computed
again from its input, which is kept anyway; layers run again as far as a micro-batch is larger than
the budget; what is left of the budget keeps logits.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from prefstage.scoring.compat import (
    has_gradient_hooks,
    identity,
    is_shared,
    layers_of,
    recomputes_layers,
    recomputing,
    weak_storage,
)

KEPT_ELEMENTS = 1 << 25
"""On a CPU, logits kept for the backward pass (128 MiB in float32) unless `Savings` says otherwise;
others are computed again, which is a third more of the vocabulary's arithmetic."""

_FLOAT32_BYTES = 4
_PADDING_BYTES = 256
_MAX_BUFFERS = 8


@dataclass(frozen=True)
class Savings:
    """How passes save memory now.

    Attributes:
        direct: Whether head, embeddings, norms and MLPs add their gradients to `.grad`. For
            ``loss.backward()`` in a single process: `torch.autograd.grad` does not see them, nor
            do wrappers that exchange gradients as they are passed on.
        buffers: What `short_lived` gave out, by length and type, to be used anew as soon as nobody
            holds it; None where it makes each tensor anew.
        recipes: Tensors that are computed again instead of kept; None where all are kept.
        room: Logits kept for the backward pass at most, on a CPU.
    """

    direct: bool = False
    buffers: dict[tuple[int, torch.dtype], list[Tensor]] | None = None
    recipes: "Recipes | None" = None
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
    with saving(direct=True, buffers={}):
        # Where all layers run again anyway, next to nothing is kept.
        if recomputes_layers(body):
            yield
            return
        # A micro-batch within the budget leaves the logits what its layers do not take.
        room = KEPT_ELEMENTS + kept_bytes * max(0, token_budget - tokens) // _FLOAT32_BYTES
        rerun = recomputed_layers(body, tokens=tokens, room=token_budget)
        with Recipes().keeping(), saving(room=room), rerun:
            yield


# --- Tensors that live as long as one layer's pass, and where their memory comes from -----------


def at_least_float32(x: Tensor) -> Tensor:
    """A tensor in float32, or in float64 if it is that already: the precision of all sums."""
    return x if x.dtype == torch.float64 else x.float()


def short_lived(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """An empty contiguous tensor for values that are gone when the layer is done.

    Args:
        shape: Its shape.
        like: Gives type and device.
    """
    if like.device.type != "cpu":
        return like.new_empty(shape)
    # glibc finds aligned memory in blocks up to 96 bytes longer than requested, and cuts the
    # rest off: a freed block never serves another tensor of its size. A little longer from the
    # start, what a layer keeps, of the same shape, can stand where an earlier layer had this.
    size = math.prod(shape) + _PADDING_BYTES // like.element_size()
    pool = savings().buffers
    whole = like.new_empty(size) if pool is None else _from_pool(pool, size, like)
    return whole[: math.prod(shape)].view(shape)


# A buffer that nobody holds; who takes it holds it by a view.
def _from_pool(
    pool: dict[tuple[int, torch.dtype], list[Tensor]], size: int, like: Tensor
) -> Tensor:
    # Otherwise a pass whose layers keep less than they let go would leave holes in the heap,
    # between what is kept, that nothing of another size fits into.
    buffers = pool.setdefault((size, like.dtype), [])
    for buffer in buffers:
        if not is_shared(buffer):
            return buffer
    # The oldest of many is one that somebody keeps.
    if len(buffers) == _MAX_BUFFERS:
        del buffers[0]
    buffers.append(like.new_empty(size))
    return buffers[-1]


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


# --- Tensors computed again in the backward pass ------------------------------------------------


def computed_by(result: Tensor, compute: Callable[[], Tensor]) -> None:
    """Let a tensor be computed again instead of kept, inside `Recipes.keeping`.

    Args:
        result: A contiguous tensor, just computed.
        compute: Computes the same, bit for bit, from what is kept anyway.
    """
    recipes = savings().recipes
    if recipes is not None and result.requires_grad:
        # The weak reference keeps the storage's address from being given to another tensor,
        # which would then be taken for this one.
        recipes.known[identity(result)] = (weak_storage(result), compute)


# A kept tensor that is computed again when it is wanted.
@dataclass(frozen=True)
class _Recipe:
    compute: Callable[[], Tensor]
    shape: torch.Size
    stride: tuple[int, ...]
    offset: int


class Recipes:
    """Recipes of the tensors of one forward pass.

    A step that would keep such a tensor for its backward pass keeps the recipe instead, so
    the gradient is the same, bit for bit, for less memory.
    """

    def __init__(self) -> None:
        self.known: dict[tuple[int, int], tuple[Any, Callable[[], Tensor]]] = {}
        self._last: tuple[Callable[[], Tensor], Tensor] | None = None

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """Let steps inside the block keep recipes where there are some."""
        try:
            with saving(recipes=self), saved_tensors_hooks(self._keep, self._restore):
                yield
        finally:
            self.known.clear()  # steps have the recipes they kept

    # A recipe, or the tensor with its version.
    def _keep(self, tensor: Tensor) -> _Recipe | tuple[Tensor, int]:
        # Views of the result are as good as it: reshaped, it is what a linear map keeps.
        known = self.known.get(identity(tensor))
        if known is None:
            return tensor, tensor._version
        return _Recipe(known[1], tensor.shape, tensor.stride(), int(tensor.storage_offset()))

    def _restore(self, kept: _Recipe | tuple[Tensor, int]) -> Tensor:
        if isinstance(kept, tuple):
            tensor, version = kept
            # autograd checks versions of what it keeps itself; under hooks it no longer can.
            if tensor._version != version:
                raise RuntimeError(
                    f"a tensor of shape {tuple(tensor.shape)} that the backward pass needs"
                    " was changed in place after the forward pass"
                )
            return tensor
        # A layer's maps want their common input one after another; it goes before the next is made.
        if self._last is None or self._last[0] is not kept.compute:
            self._last = None
            with torch.no_grad():
                self._last = (kept.compute, kept.compute())
        return self._last[1].as_strided(kept.shape, kept.stride, kept.offset)


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
