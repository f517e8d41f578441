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
Values = Float[Tensor, "groups places value_dim"]


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
    """The first query sees the listed keys from this index on, the next from one later."""

    def rows(self, heads: int) -> slice:
        """Its query rows, `heads` a place."""
        return slice(self.start * heads, self.stop * heads)


def attend(
    query: Queries, key: Keys, value: Values, *, segments: tuple[Segment, ...], rule: AttentionRule
) -> Float[Tensor, "places heads value_dim"]:
    """Attention of every place to its ancestors and itself.

    ``softmax(scale · q kᵀ) v`` over the visible keys. Heads share keys in groups of
    heads / groups (grouped-query attention). Accumulates in float32 at least. The
    gradient recomputes the scores, so that memory grows with places, not their square.

    Args:
        query: [heads, places, head_dim].
        key: [groups, places, head_dim].
        value: [groups, places, value_dim].
        segments: The row's segments, which hold every place once.
        rule: Scale, soft-cap and window of the layer.

    Returns:
        [places, heads, value_dim], in the type of `query`.

    Source:
        Blocks and recomputation: Dao et al. 2022, arXiv:2205.14135, Algorithms 1 and 4;
        here a block holds all its keys at once.
    """
    output: Tensor = _BlockwiseAttention.apply(  # type: ignore[no-untyped-call]  # untyped in torch
        query, key, value, segments, rule
    )
    return output


class _BlockwiseAttention(torch.autograd.Function):
    """Works on query rows: the heads of a group follow one another within each place.

    So the queries of a block are one matrix [rows, head_dim] a group, without a copy.
    """

    @staticmethod
    def forward(  # noqa: PLR0917 - autograd passes its inputs by place
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, segments: Any, rule: Any
    ) -> Tensor:
        k, v = _at_least_float32(key), _at_least_float32(value)
        q = _rows_of(_at_least_float32(query), len(k), scale=rule.scale)
        output = q.new_empty(*q.shape[:2], v.shape[2])
        normaliser = q.new_empty(q.shape[:2]) if any(ctx.needs_input_grad) else None
        for block in _blocks(segments, rule.window):
            rows = block.rows(q.shape[1] // k.shape[1])
            scores, _ = _scores(q[:, rows], k, block, rule)
            if normaliser is not None:
                normaliser[:, rows] = scores.logsumexp(-1)
            _mix(torch.softmax(scores, -1, out=scores), v, block.spans, output[:, rows])
        ctx.segments, ctx.rule = segments, rule
        ctx.save_for_backward(query, key, value, output, normaliser)
        return _by_place(output, query.shape).to(query.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output, normaliser = ctx.saved_tensors
        k, v = _at_least_float32(key), _at_least_float32(value)
        q = _rows_of(_at_least_float32(query), len(k), scale=ctx.rule.scale)
        grad = _rows_of(_at_least_float32(grad_output.transpose(0, 1)), len(k))
        # d softmax: each weight's gradient is measured from the row's mean.
        mean = (grad * output).sum(-1, keepdim=True)
        grads = (torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v))
        for block in _blocks(ctx.segments, ctx.rule.window):
            rows = block.rows(q.shape[1] // k.shape[1])
            of_rows = (q[:, rows], grad[:, rows], mean[:, rows], normaliser[:, rows, None])
            _add_gradient(of_rows, (k, v), grads, block, ctx.rule)
        grad_query = _by_place(grads[0], query.shape).transpose(0, 1) * ctx.rule.scale
        typed = zip((grad_query, *grads[1:]), (query, key, value), strict=True)
        return (*(g.to(x.dtype) for g, x in typed), None, None)


def _add_gradient(
    of_rows: tuple[Tensor, Tensor, Tensor, Tensor],
    keys: tuple[Tensor, Tensor],
    grads: tuple[Tensor, Tensor, Tensor],
    block: _Block,
    rule: AttentionRule,
) -> None:
    """Write a block's gradient by its queries, and add those by its keys and values."""
    (q, grad, mean, normaliser), (k, v), (grad_q, grad_k, grad_v) = of_rows, keys, grads
    scores, slope = _scores(q, k, block, rule, with_slope=True)
    weights = scores.sub_(normaliser).exp_()
    grad_scores, offset = torch.empty_like(weights), 0
    for start, stop in block.spans:
        part = slice(offset, offset + stop - start)
        grad_v[:, start:stop] += weights[:, :, part].transpose(1, 2) @ grad
        torch.bmm(grad, v[:, start:stop].transpose(1, 2), out=grad_scores[:, :, part])
        offset = part.stop
    grad_scores.sub_(mean).mul_(weights)
    if slope is not None:
        grad_scores.mul_(slope)
    offset = 0
    for start, stop in block.spans:
        part = slice(offset, offset + stop - start)
        grad_k[:, start:stop] += grad_scores[:, :, part].transpose(1, 2) @ q
        offset = part.stop
    rows = block.rows(q.shape[1] // (block.stop - block.start))
    _mix(grad_scores, k, block.spans, grad_q[:, rows])


def _scores(
    q: Tensor, k: Tensor, block: _Block, rule: AttentionRule, *, with_slope: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Masked scores of a block's rows, [groups, rows, keys], and the soft-cap's slope."""
    groups, size = len(k), block.stop - block.start
    keys = sum(stop - start for start, stop in block.spans)
    scores, offset = q.new_empty(groups, q.shape[1], keys), 0
    for start, stop in block.spans:
        part = scores[:, :, offset : offset + stop - start]
        torch.bmm(q, k[:, start:stop].transpose(1, 2), out=part)
        offset += stop - start
    slope = None
    if rule.softcap is not None:
        scores.div_(rule.softcap).tanh_()
        slope = 1 - scores.square() if with_slope else None
        scores.mul_(rule.softcap)
    by_place = scores.view(groups, size, -1, keys)
    by_place[..., keys - size :] += _future(size, scores.dtype, scores.device)
    if block.hidden_before > -size:
        place_index = torch.arange(size, device=q.device)[:, None, None]
        key_index = torch.arange(keys, device=q.device)
        by_place.masked_fill_(key_index < place_index + block.hidden_before, -math.inf)
    return scores, slope


def _mix(weights: Tensor, v: Tensor, spans: tuple[Span, ...], out: Tensor) -> None:
    """Write the weighted sum of the values of all spans, [groups, rows, head_dim]."""
    offset = 0
    for index, (start, stop) in enumerate(spans):
        part = weights[:, :, offset : offset + stop - start]
        if index == 0:
            torch.bmm(part, v[:, start:stop], out=out)
        else:
            torch.baddbmm(out, part, v[:, start:stop], out=out)
        offset += stop - start


def _rows_of(x: Tensor, groups: int, *, scale: float = 1.0) -> Tensor:
    """[heads, places, dim] to [groups, places · heads / groups, dim], scaled."""
    heads, places, dim = x.shape
    rows = x.new_empty(groups, places, heads // groups, dim)
    torch.mul(x.view(groups, heads // groups, places, dim).transpose(1, 2), scale, out=rows)
    return rows.view(groups, -1, dim)


def _by_place(rows: Tensor, shape: torch.Size) -> Tensor:
    """Query rows to [places, heads, dim], for queries of shape [heads, places, _]."""
    heads, places, _ = shape
    by_group = rows.view(len(rows), places, heads // len(rows), -1)
    return by_group.transpose(0, 1).reshape(places, heads, -1)


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
        return torch.full((size, size), -math.inf, dtype=dtype, device=device).triu_(1)[:, None]


def _at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
