"""Tree attention on a GPU: flex attention with a block mask."""

from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from prefstage.scoring.cpu.blockwise import AttentionRule
from prefstage.scoring.layout import Row


def block_mask(row: Row, *, window: int | None, device: torch.device) -> BlockMask:
    """Which blocks of keys each block of tokens sees.

    Args:
        row: The row.
        window: A token sees itself and the `window` - 1 tokens before it; None for all.
        device: Where the layer is.

    Returns:
        The mask, 128 x 128 tokens a block; blocks that nobody sees are skipped.
    """
    stops, positions = row.subtree_stop.to(device), row.position_ids.to(device)
    return create_block_mask(
        _visible(stops) if window is None else _visible_in_window(stops, positions, window),
        B=None,
        H=None,
        Q_LEN=len(stops),
        KV_LEN=len(stops),
        device=device,
    )


def attend_flex(
    query: Float[Tensor, "1 heads tokens head_dim"],
    key: Float[Tensor, "1 groups tokens head_dim"],
    value: Float[Tensor, "1 groups tokens head_dim"],
    *,
    mask: BlockMask,
    rule: AttentionRule,
) -> Float[Tensor, "1 tokens heads head_dim"]:
    """Attention of every token to the keys that the mask shows it.

    Args:
        query: [1, heads, tokens, head_dim].
        key: [1, groups, tokens, head_dim].
        value: [1, groups, tokens, head_dim].
        mask: From `block_mask`, which already knows the window.
        rule: Scale and soft-cap.

    Returns:
        [1, tokens, heads, head_dim].

    Source:
        Dong et al. 2024, arXiv:2412.05496.
    """
    mixed: Tensor = _kernel(query.device.type)(
        query,
        key,
        value,
        score_mod=None if rule.softcap is None else _capped(rule.softcap),
        block_mask=mask,
        scale=rule.scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return mixed.transpose(1, 2)


# Lambdas, because torch counts the parameters that it sees, and wrappers hide them.
def _visible(stops: Tensor) -> Any:
    return lambda batch, head, query, key: (key <= query) & (query < stops[key])


def _visible_in_window(stops: Tensor, positions: Tensor, window: int) -> Any:
    return lambda batch, head, query, key: (
        (key <= query) & (query < stops[key]) & (positions[query] - positions[key] < window)
    )


def _capped(softcap: float) -> Any:
    return lambda score, batch, head, query, key: softcap * torch.tanh(score / softcap)


# Compiled where there is a compiler for the device; its plain form elsewhere.
@lru_cache
def _kernel(device_type: str) -> Any:
    # Rows differ in length with every pass: dynamic shapes, or each would compile anew.
    if device_type == "cuda":
        return torch.compile(flex_attention, dynamic=True)
    return flex_attention
