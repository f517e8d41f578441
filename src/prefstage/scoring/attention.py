"""Tree attention inside any transformers model that uses its attention interface."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

import torch
from jaxtyping import Bool
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from prefstage.core import ModelError
from prefstage.scoring.compat import attention_named, has_triton, recomputed_in, takes_attention
from prefstage.scoring.cpu.blockwise import AttentionRule, attend
from prefstage.scoring.cpu.fused import fused_layers
from prefstage.scoring.cpu.lean import saving, savings
from prefstage.scoring.layout import Row

Backend = Literal["blockwise", "sdpa", "flex"]
BACKENDS: tuple[Backend, ...] = ("blockwise", "sdpa", "flex")

TREE_ATTENTION = "prefstage_tree"
"""Name under which transformers knows the tree attention."""

_UNSUPPORTED = ("s_aux", "position_bias", "cache")


@dataclass
class RowAttention:
    """What the attention layers of one forward pass need to know about its row.

    Attributes:
        row: The row.
        backend: Which implementation computes it.
        windows: Sliding window that each layer asked for, by its index (filled by the
            layers as they run).
        masks: Masks so far, by window and device.
    """

    row: Row
    backend: Backend
    windows: dict[int, int | None] = field(default_factory=dict)
    masks: dict[tuple[int | None, torch.device], Any] = field(default_factory=dict)

    def mask(self, window: int | None, device: torch.device) -> Any:
        """The row's mask in the form of the backend, once for all layers that share it."""
        if (window, device) not in self.masks:
            if self.backend == "flex":
                # 128 x 128 tokens a block; blocks that nobody sees are skipped.
                seen, tokens = _visible(self.row, window, device), len(self.row.input_ids)
                mask: Any = create_block_mask(seen, None, None, tokens, tokens, device=device)
            else:
                mask = visible_keys(self.row, window=window, device=device)
            self.masks[window, device] = mask
        return self.masks[window, device]


def choose_backend(device: torch.device) -> tuple[Backend, str]:
    """Choose the implementation of tree attention for a device.

    Args:
        device: Where the model's layers are.

    Returns:
        The implementation and the reason in words.
    """
    if device.type == "cpu":
        return "blockwise", "blocks of queries fit a CPU's cache; no mask is held"
    if device.type == "cuda" and has_triton():
        return "flex", "flex attention skips the blocks that no token sees"
    return "sdpa", f"no fused kernel for trees on {device.type}; a boolean mask works everywhere"


@contextmanager
def patched(body: Any, *, tree: bool) -> Iterator[None]:
    """Let a model's layers run fused, and with tree attention, while the block runs.

    This is the one place that changes a model, and it leaves no trace. Layers that run again
    in the backward pass, by the model's checkpointing or by ours, do so with the same patches.

    Args:
        body: A transformers model.
        tree: Whether its layers get rows, and so need tree attention.

    Raises:
        ModelError: If the model does not take its attention from transformers' interface.
    """
    if tree and not takes_attention(body):
        raise ModelError.of(
            saw=f"{type(body).__name__}, whose attention cannot be replaced",
            expected="a model on transformers' attention interface",
            cure="use layout='flat'",
        )
    if tree:
        AttentionInterface.register(TREE_ATTENTION, tree_attention_forward)
        AttentionMaskInterface.register(TREE_ATTENTION, sdpa_mask)
    direct = savings().direct

    @contextmanager
    def surroundings() -> Iterator[None]:
        named = attention_named(body, TREE_ATTENTION) if tree else nullcontext()
        # A layer that runs again must keep the same tensors as before, and so take the
        # same branches: checkpointing compares them.
        with saving(direct=direct), fused_layers(body), named:
            yield

    with surroundings(), recomputed_in(body, surroundings):
        yield


def tree_attention_forward(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    row_attention: RowAttention | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention function in the form that transformers' layers call.

    Args:
        module: The calling layer.
        query: [1, heads, tokens, head_dim].
        key: [1, groups, tokens, head_dim].
        value: [1, groups, tokens, head_dim].
        attention_mask: Used only for an ordinary pass (no `row_attention`).
        scaling: Factor on scores; None for head_dim ** -0.5.
        dropout: Must be 0 for a row: a dropped weight of a prompt would be shared.
        sliding_window: Tokens that a token sees, itself included; None for all.
        softcap: Bound of the scores; None for none.
        row_attention: The row; None makes this an ordinary pass.
        others: What else the layer passes on; ignored unless it changes attention.

    Returns:
        ([1, tokens, heads, head_dim], None).

    Raises:
        ModelError: If the layer asks for something that tree attention does not do.
    """
    rule = AttentionRule(
        scale=float(query.shape[-1] ** -0.5 if scaling is None else scaling),
        softcap=softcap,
        window=sliding_window,
    )
    # The name stays in the configuration while a pass without rows runs inside one with them.
    if row_attention is None:
        if softcap is not None:
            return _dense(query, key, value, attention_mask, rule), None
        mixed, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **others
        )
        return mixed, None
    unknown = [name for name in _UNSUPPORTED if others.get(name) is not None]
    if unknown or dropout:
        raise ModelError.of(
            saw=f"{type(module).__name__} with {', '.join(unknown) or f'dropout {dropout}'}",
            expected="attention that depends on queries, keys, a window and a soft-cap alone",
            cure="use layout='flat'" if unknown else "set attention dropout to 0, or model.eval()",
        )
    row_attention.windows[getattr(module, "layer_idx", None) or 0] = sliding_window
    return _tree(query, key, value, row_attention, rule), None


def visible_keys(row: Row, *, window: int | None, device: torch.device) -> Bool[Tensor, "1 1 q k"]:
    """Which key each token sees, as a boolean mask.

    Args:
        row: The row.
        window: A token sees itself and the `window` - 1 tokens before it; None for all.
        device: Where the mask shall be.

    Returns:
        [1, 1, tokens, tokens]; true where the key is an ancestor or the token itself.
    """
    token = torch.arange(len(row.input_ids), device=device)
    return _visible(row, window, device)(0, 0, token[:, None], token)[None, None]


# Whether a token sees a key, as flex attention asks. Lambdas, because torch counts the parameters
# that it sees, and wrappers hide them.
def _visible(row: Row, window: int | None, device: torch.device) -> Callable[..., Tensor]:
    stops, positions = row.subtree_stop.to(device), row.position_ids.to(device)
    if window is None:
        return lambda batch, head, query, key: (key <= query) & (query < stops[key])
    return lambda batch, head, query, key: (
        (key <= query) & (query < stops[key]) & (positions[query] - positions[key] < window)
    )


# Attention of a row's tokens by its backend. [1, tokens, heads, head_dim].
def _tree(
    query: Tensor, key: Tensor, value: Tensor, row_attention: RowAttention, rule: AttentionRule
) -> Tensor:
    if row_attention.backend == "blockwise":
        segments = row_attention.row.segments
        return attend(query[0], key[0], value[0], segments=segments, rule=rule)[None]
    mask = row_attention.mask(rule.window, query.device)
    if row_attention.backend == "flex":  # Dong et al. 2024, arXiv:2412.05496
        softcap: Any = rule.softcap
        mixed = _flex_kernel(query.device.type)(
            query,
            key,
            value,
            score_mod=None
            if softcap is None
            else lambda score, batch, head, q, k: softcap * torch.tanh(score / softcap),
            block_mask=mask,
            scale=rule.scale,
            enable_gqa=query.shape[1] != key.shape[1],
        )
    elif rule.softcap is None:
        mixed = scaled_dot_product_attention(
            query, key, value, attn_mask=mask, scale=rule.scale, enable_gqa=True
        )
    else:
        return _dense(query, key, value, mask, rule)
    return mixed.transpose(1, 2)


# Compiled where there is a compiler for the device; its plain form elsewhere.
@lru_cache
def _flex_kernel(device_type: str) -> Callable[..., Tensor]:
    # Rows differ in length with every pass: dynamic shapes, or each would compile anew.
    if device_type == "cuda":
        return torch.compile(flex_attention, dynamic=True)
    return flex_attention


# Attention written out, for the soft-cap that SDPA lacks.
def _dense(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, rule: AttentionRule
) -> Tensor:
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    scores = query @ key.transpose(2, 3) * rule.scale
    if rule.softcap is not None:
        scores = rule.softcap * torch.tanh(scores / rule.softcap)
    if mask is None:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=query.device).tril()
    scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return (scores.softmax(-1, dtype=torch.float32).to(value.dtype) @ value).transpose(1, 2)
