"""Attention over a row, block by block: exact, without a [places, places] mask or score."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from prefstage.scoring.rows import Segment, Span

BLOCK_PLACES = 64
"""Queries taken together; measured best on CPU, where scores then stay in the L2 cache."""

Queries = Float[Tensor, "heads places head_dim"]
Keys = Float[Tensor, "groups places head_dim"]


@dataclass(frozen=True)
class AttentionRule:
    """What a layer adds to plain causal attention.

    Attributes:
        scale: Factor on query-key products, > 0.
        softcap: Scores become ``softcap · tanh(score / softcap)``; None for none.
        window: A token sees itself and the `window` - 1 tokens before it; None for all.
    """

    scale: float
    softcap: float | None = None
    window: int | None = None


@dataclass(frozen=True)
class _Block:
    """Queries at [start, stop) and the spans of keys that at least one of them sees."""

    start: int
    stop: int
    spans: tuple[Span, ...]
    hidden_before: int
    """Of the listed keys, the first query sees all from this index on (window)."""


def attend(
    query: Queries, key: Keys, value: Keys, *, segments: tuple[Segment, ...], rule: AttentionRule
) -> Float[Tensor, "places heads head_dim"]:
    """Attention of every place to its ancestors and itself.

    ``softmax(scale · q kᵀ) v`` over the visible keys. Heads share keys in groups of
    heads / groups (grouped-query attention). Accumulates in float32 at least. The
    gradient recomputes the scores, so that memory grows with places, not their square.

    Args:
        query: [heads, places, head_dim].
        key: [groups, places, head_dim].
        value: [groups, places, head_dim].
        segments: The row's segments, which hold every place once.
        rule: Scale, soft-cap and window of the layer.

    Returns:
        [places, heads, head_dim], in the type of `query`.

    Source:
        Blocks and recomputation: Dao et al. 2022, arXiv:2205.14135, Algorithms 1 and 4;
        here a block holds all its keys at once.
    """
    output: Tensor = _BlockwiseAttention.apply(  # type: ignore[no-untyped-call]  # untyped in torch
        query, key, value, segments, rule
    )
    return output


class _BlockwiseAttention(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917 - autograd passes its inputs by place
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, segments: Any, rule: Any
    ) -> Tensor:
        q, k, v = (_at_least_float32(x) for x in (query, key, value))
        heads, places, _ = q.shape
        groups, head_dim = v.shape[0], v.shape[2]
        output = q.new_empty(places, heads, head_dim)
        needs_gradient = any(ctx.needs_input_grad)
        normaliser = q.new_empty(heads, places) if needs_gradient else None
        for block in _blocks(segments, rule.window):
            scores, _ = _scores(q, k, block, rule)
            if normaliser is not None:
                rows = scores.logsumexp(-1).view(heads, -1)
                normaliser[:, block.start : block.stop] = rows
            weights = scores.softmax(-1)
            mixed = _mix(weights, v, block.spans)
            by_place = mixed.view(groups, heads // groups, -1, head_dim).permute(2, 0, 1, 3)
            output[block.start : block.stop] = by_place.reshape(-1, heads, head_dim)
        ctx.segments, ctx.rule = segments, rule
        ctx.save_for_backward(query, key, value, output, normaliser)
        return output.to(query.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output, normaliser = ctx.saved_tensors
        q, k, v, grad = (_at_least_float32(x) for x in (query, key, value, grad_output))
        grads = (torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v))
        # d softmax: each weight's gradient is measured from the query's mean.
        mean = (grad * output).sum(-1).t()
        for block in _blocks(ctx.segments, ctx.rule.window):
            _add_block_gradient((q, k, v), grads, (grad, mean, normaliser), block, ctx.rule)
        typed = (g.to(x.dtype) for g, x in zip(grads, (query, key, value), strict=True))
        return (*typed, None, None)


def _add_block_gradient(
    inputs: tuple[Tensor, Tensor, Tensor],
    grads: tuple[Tensor, Tensor, Tensor],
    saved: tuple[Tensor, Tensor, Tensor],
    block: _Block,
    rule: AttentionRule,
) -> None:
    (q, k, v), (grad_q, grad_k, grad_v), (grad, mean, normaliser) = inputs, grads, saved
    heads, groups, inside = q.shape[0], k.shape[0], slice(block.start, block.stop)
    scores, slope = _scores(q, k, block, rule, with_slope=True)
    weights = (scores - normaliser[:, inside].reshape(groups, -1, 1)).exp()
    grad_rows = grad[inside].transpose(0, 1).reshape(groups, -1, v.shape[2])
    grad_weights, offset = torch.empty_like(weights), 0
    for start, stop in block.spans:
        part = slice(offset, offset + stop - start)
        grad_weights[:, :, part] = grad_rows @ v[:, start:stop].transpose(1, 2)
        grad_v[:, start:stop] += weights[:, :, part].transpose(1, 2) @ grad_rows
        offset = part.stop
    grad_scores = weights * (grad_weights - mean[:, inside].reshape(groups, -1, 1)) * rule.scale
    if slope is not None:
        grad_scores *= slope
    queries = q[:, inside].reshape(groups, -1, q.shape[2])
    mixed = _mix(grad_scores, k, block.spans)
    grad_q[:, inside] = mixed.view(heads, -1, q.shape[2])
    offset = 0
    for start, stop in block.spans:
        part = slice(offset, offset + stop - start)
        grad_k[:, start:stop] += grad_scores[:, :, part].transpose(1, 2) @ queries
        offset = part.stop


def _scores(
    q: Tensor, k: Tensor, block: _Block, rule: AttentionRule, *, with_slope: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Masked scores [groups, heads_per_group · queries, keys], and the soft-cap's slope."""
    groups, size = k.shape[0], block.stop - block.start
    queries = (q[:, block.start : block.stop] * rule.scale).reshape(groups, -1, q.shape[2])
    keys = sum(stop - start for start, stop in block.spans)
    scores = q.new_empty(groups, queries.shape[1], keys)
    offset = 0
    for start, stop in block.spans:
        part = scores[:, :, offset : offset + stop - start]
        torch.bmm(queries, k[:, start:stop].transpose(1, 2), out=part)
        offset += stop - start
    slope = None
    if rule.softcap is not None:
        scores.div_(rule.softcap).tanh_()
        slope = 1 - scores.square() if with_slope else None
        scores.mul_(rule.softcap)
    by_query = scores.view(groups, -1, size, keys)
    by_query[..., keys - size :] += _future(size, scores.dtype, scores.device)
    if block.hidden_before > -size:
        query_index = torch.arange(size, device=q.device)[:, None]
        key_index = torch.arange(keys, device=q.device)
        by_query.masked_fill_(key_index < query_index + block.hidden_before, -math.inf)
    return scores, slope


def _mix(weights: Tensor, v: Tensor, spans: tuple[Span, ...]) -> Tensor:
    """Weighted sum of the values of all spans: [groups, rows, head_dim]."""
    offset, mixed = 0, v.new_empty(weights.shape[0], weights.shape[1], v.shape[2])
    for index, (start, stop) in enumerate(spans):
        part = weights[:, :, offset : offset + stop - start]
        if index == 0:
            torch.bmm(part, v[:, start:stop], out=mixed)
        else:
            mixed.baddbmm_(part, v[:, start:stop])
        offset += stop - start
    return mixed


def _blocks(segments: tuple[Segment, ...], window: int | None) -> Iterator[_Block]:
    for segment in segments:
        for start in range(segment.start, segment.stop, BLOCK_PLACES):
            stop = min(start + BLOCK_PLACES, segment.stop)
            spans = (*segment.context, (segment.start, stop))
            if window is None:
                yield _Block(start, stop, _joined(spans), hidden_before=start - stop)
                continue
            first_seen = segment.position + start - segment.start - window + 1
            dropped = max(0, first_seen)
            yield _Block(start, stop, _joined(_without_first(spans, dropped)), first_seen - dropped)


def _joined(spans: tuple[Span, ...]) -> tuple[Span, ...]:
    """Merge spans that follow one another, so that they take one product."""
    joined = list[Span]()
    for start, stop in spans:
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], stop)
        else:
            joined.append((start, stop))
    return tuple(joined)


def _without_first(spans: tuple[Span, ...], count: int) -> tuple[Span, ...]:
    kept = list[Span]()
    for start, stop in spans:
        cut = min(count, stop - start)
        count -= cut
        if start + cut < stop:
            kept.append((start + cut, stop))
    return tuple(kept)


@lru_cache(maxsize=BLOCK_PLACES * 8)
def _future(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Added to the scores of a block's own places: -inf where the key comes later."""
    with torch.inference_mode(mode=False):
        return torch.full((size, size), -math.inf, dtype=dtype, device=device).triu_(1)


def _at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
