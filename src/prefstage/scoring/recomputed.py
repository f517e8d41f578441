"""Layers that run again in the backward pass, for passes that would keep too much otherwise."""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from prefstage.scoring.direct import direct_gradients
from prefstage.scoring.fused_layers import fused_layers


def layers_to_recompute(layers: int, *, tokens: int, room: int) -> int:
    """How many layers have to run again so that a pass keeps no more than `room` tokens would.

    Args:
        layers: Layers of the model, >= 0.
        tokens: Tokens of the pass.
        room: Tokens whose activations there is room for, >= 1.

    Returns:
        ``⌈layers · (1 - room / tokens)⌉``, at least 0.
    """
    return max(0, math.ceil(layers * (1 - room / max(tokens, 1))))


@contextmanager
def recomputed_layers(body: Any, *, tokens: int, room: int) -> Iterator[int]:
    """Let as many layers run again as `layers_to_recompute` says, the first ones.

    Their turn in the backward pass comes last, when what the others keep is gone.
    Values and gradients are the same, bit for bit.

    Args:
        body: A transformers model whose own checkpointing is off.
        tokens: Tokens of the pass inside the block.
        room: Tokens whose activations there is room for.

    Yields:
        Number of layers that will run again.
    """
    layers = [each for each in body.modules() if isinstance(each, GradientCheckpointingLayer)]
    free = [layer for layer in layers if "forward" not in vars(layer)]
    again = free[: layers_to_recompute(len(layers), tokens=tokens, room=room)]
    for layer in again:
        own = partial(type(layer).forward, layer)
        vars(layer)["forward"] = partial(_run, own, body)
    try:
        yield len(again)
    finally:
        for layer in again:
            vars(layer).pop("forward", None)


def _run(own: Callable[..., Any], body: Any, *args: Any, **kwargs: Any) -> Any:
    attention = body.config._attn_implementation

    def contexts() -> tuple[Any, Any]:
        return nullcontext(), _as_it_was(body, attention)

    return checkpoint(own, *args, use_reentrant=False, context_fn=contexts, **kwargs)


@contextmanager
def _as_it_was(body: Any, attention: str) -> Iterator[None]:
    """The surroundings in which the layer ran first."""
    now = body.config._attn_implementation
    body.config._attn_implementation = attention
    try:
        with ExitStack() as stack:
            stack.enter_context(direct_gradients())
            stack.enter_context(fused_layers(body))
            yield
    finally:
        body.config._attn_implementation = now
