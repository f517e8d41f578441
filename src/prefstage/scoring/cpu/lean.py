"""Training passes on a CPU in one process: gradients in place, and no more kept than need be.

What a layer keeps for its backward pass is most of a step's memory. A norm's result is computed
again from its input, which is kept anyway; layers run again as far as a micro-batch is larger than
the budget; what is left of the budget keeps logits.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from prefstage.scoring.compat import (
    identity,
    layers_of,
    recomputes_layers,
    recomputing,
    weak_storage,
)
from prefstage.scoring.cpu.gradients import direct_gradients
from prefstage.scoring.cpu.tensors import pooled
from prefstage.scoring.linear import KEPT_ELEMENTS, room_for_logits
from prefstage.scoring.model import ModelParts

_current: ContextVar["Recipes | None"] = ContextVar("recipes", default=None)


def computed_by(result: Tensor, compute: Callable[[], Tensor]) -> None:
    """Let a tensor be computed again instead of kept, inside `Recipes.keeping`.

    Args:
        result: A contiguous tensor, just computed.
        compute: Computes the same, bit for bit, from what is kept anyway.
    """
    recipes = _current.get()
    if recipes is not None and result.requires_grad:
        # The weak reference keeps the storage's address from being given to another tensor,
        # which would then be taken for this one.
        recipes.known[identity(result)] = (weak_storage(result), compute)


@dataclass(frozen=True)
class _Kept:
    """A tensor as it was when a step kept it."""

    tensor: Tensor
    version: int


@dataclass(frozen=True)
class _Recipe:
    """A kept tensor that is computed again when it is wanted."""

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
        self.forget()
        token = _current.set(self)
        try:
            with saved_tensors_hooks(self._keep, self._restore):
                yield
        finally:
            _current.reset(token)
            self.forget()  # steps have the recipes they kept

    def forget(self) -> None:
        """Let go of everything that steps have not kept."""
        self.known.clear()
        self._last = None

    def _keep(self, tensor: Tensor) -> _Kept | _Recipe:
        # Views of the result are as good as it: reshaped, it is what a linear map keeps.
        known = self.known.get(identity(tensor))
        if known is None:
            return _Kept(tensor, tensor._version)
        return _Recipe(known[1], tensor.shape, tensor.stride(), int(tensor.storage_offset()))

    def _restore(self, kept: _Kept | _Recipe) -> Tensor:
        if isinstance(kept, _Kept):
            # autograd checks versions of what it keeps itself; under hooks it no longer can.
            if kept.tensor._version != kept.version:
                raise RuntimeError(
                    f"a tensor of shape {tuple(kept.tensor.shape)} that the backward pass needs"
                    " was changed in place after the forward pass"
                )
            return kept.tensor
        # A layer's maps want their common input one after another.
        if self._last is None or self._last[0] is not kept.compute:
            self._last = None
            with torch.no_grad():
                self._last = (kept.compute, kept.compute())
        return self._last[1].as_strided(kept.shape, kept.stride, kept.offset)


class LeanPasses:
    """What a model's training passes keep, and where they add their gradients.

    Args:
        model: The policy without wrappers.
        token_budget: Tokens whose activations there is room for.
        kept_bytes: What a token keeps in all layers, from `ModelShape.kept_bytes`.
    """

    def __init__(self, model: Any, *, token_budget: int, kept_bytes: int) -> None:
        self._body = ModelParts.of(model).body
        self._token_budget = token_budget
        self._kept_bytes = kept_bytes
        self._recipes = Recipes()

    @contextmanager
    def forward(self, tokens: int) -> Iterator[None]:
        """Around the forward pass of a micro-batch; its backward pass may come after it.

        Args:
            tokens: Tokens of the pass.
        """
        body = self._body
        with ExitStack() as stack:
            stack.enter_context(direct_gradients())
            stack.enter_context(pooled())
            # Where all layers run again anyway, next to nothing is kept.
            if not recomputes_layers(body):
                stack.enter_context(self._recipes.keeping())
                # A micro-batch within the budget leaves the logits what its layers do not take.
                left = self._kept_bytes * max(0, self._token_budget - tokens) // 4
                stack.enter_context(room_for_logits(KEPT_ELEMENTS + left))
                stack.enter_context(recomputed_layers(body, tokens=tokens, room=self._token_budget))
            yield


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
