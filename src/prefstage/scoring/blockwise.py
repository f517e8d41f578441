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

from prefstage.scoring.rows import Segment

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
    """Queries of one segment and the keys that at least one of them sees.

    Keys are counted along the text, so that a key's index is its position.

    Attributes:
        start: First query, as a place in the row.
        stop: One after the last.
        first_key: First key that is seen.
        last_key: One after the last: the block's own end.
        window: Sliding window, if it hides a key from some query; else None.
    """

    start: int
    stop: int
    first_key: int
    last_key: int
    window: int | None

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
    with torch.autocast(query.device.type, enabled=False):  # it would round the products
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
        # Keys and values of the current text. A row is in depth-first order, so a segment's
        # ancestors stand there already, and each key is copied once.
        longest = max(segment.position + segment.stop - segment.start for segment in segments)
        path_k, path_v = (x.new_empty(len(x), longest, x.shape[2]) for x in (k, v))
        for segment in segments:
            own, place = slice(segment.start, segment.stop), segment.position
            path_k[:, place : place + own.stop - own.start] = k[:, own]
            path_v[:, place : place + own.stop - own.start] = v[:, own]
            for block in _blocks(segment, rule.window):
                rows, seen = block.rows(q.shape[1] // k.shape[1]), _seen(block)
                scores, _ = _scores(q[:, rows], path_k[:, seen], block, rule)
                weights = torch.softmax(scores, -1, out=scores)
                output[:, rows] = torch.bmm(weights, path_v[:, seen])
        by_place = _by_place(output, query.shape).to(query.dtype)
        ctx.segments, ctx.rule = segments, rule
        # The layer's next map keeps the result too, so that keeping it here takes no memory.
        ctx.save_for_backward(query, key, value, by_place)
        return by_place

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output = ctx.saved_tensors
        k, v = _at_least_float32(key), _at_least_float32(value)
        q = _rows_of(_at_least_float32(query), len(k), scale=ctx.rule.scale)
        grad = _rows_of(_at_least_float32(grad_output.transpose(0, 1)), len(k))
        # d softmax: each weight's gradient is measured from the row's mean.
        mixed = _at_least_float32(grad_output) * _at_least_float32(output)
        mean = _rows_of(mixed.sum(-1).t()[..., None], len(k))
        grads = (torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v))
        for segment in ctx.segments:
            path = _on_path(k, segment), _on_path(v, segment)
            of_path = torch.zeros_like(path[0]), torch.zeros_like(path[1])
            for block in _blocks(segment, ctx.rule.window):
                rows = block.rows(q.shape[1] // k.shape[1])
                of_rows = (q[:, rows], grad[:, rows], mean[:, rows])
                grads[0][:, rows] = _block_gradient(of_rows, path, of_path, block, ctx.rule)
            _add_on_path(grads[1], of_path[0], segment)
            _add_on_path(grads[2], of_path[1], segment)
        grad_query = _by_place(grads[0], query.shape).transpose(0, 1) * ctx.rule.scale
        typed = zip((grad_query, *grads[1:]), (query, key, value), strict=True)
        return (*(g.to(x.dtype) for g, x in typed), None, None)


def _block_gradient(
    of_rows: tuple[Tensor, Tensor, Tensor],
    path: tuple[Tensor, Tensor],
    of_path: tuple[Tensor, Tensor],
    block: _Block,
    rule: AttentionRule,
) -> Tensor:
    """Gradient by a block's queries; those by its keys and values are added to `of_path`."""
    q, grad, mean = of_rows
    (k, v), (grad_k, grad_v) = ([x[:, _seen(block)] for x in pair] for pair in (path, of_path))
    scores, slope = _scores(q, k, block, rule, with_slope=True)
    weights = torch.softmax(scores, -1, out=scores)
    grad_v += weights.transpose(1, 2) @ grad
    grad_scores = torch.bmm(grad, v.transpose(1, 2)).sub_(mean).mul_(weights)
    if slope is not None:
        grad_scores *= slope
    grad_k += grad_scores.transpose(1, 2) @ q
    return torch.bmm(grad_scores, k)


def _scores(
    q: Tensor, k: Tensor, block: _Block, rule: AttentionRule, *, with_slope: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Masked scores of a block's rows, [groups, rows, keys], and the soft-cap's slope."""
    size, slope = block.stop - block.start, None
    scores = torch.bmm(q, k.transpose(1, 2))
    if rule.softcap is not None:
        scores.div_(rule.softcap).tanh_()
        slope = 1 - scores.square() if with_slope else None
        scores.mul_(rule.softcap)
    by_place = scores.view(len(q), size, -1, k.shape[1])
    by_place[..., k.shape[1] - size :] += _future(size, scores.dtype, scores.device)
    if block.window is not None:
        position = torch.arange(block.last_key - size, block.last_key, device=q.device)
        key = torch.arange(block.first_key, block.last_key, device=q.device)
        by_place.masked_fill_(position[:, None, None] - key >= block.window, -math.inf)
    return scores, slope


def _on_path(x: Tensor, segment: Segment) -> Tensor:
    """Keys or values along the text up to a segment's end: [groups, positions, dim]."""
    spans = segment.path
    if len(spans) == 1:
        return x[:, slice(*spans[0])]
    return torch.cat([x[:, slice(*span)] for span in spans], 1)


def _add_on_path(x: Tensor, added: Tensor, segment: Segment) -> None:
    position = 0
    for start, stop in segment.path:
        x[:, start:stop] += added[:, position : position + stop - start]
        position += stop - start


def _seen(block: _Block) -> slice:
    return slice(block.first_key, block.last_key)


def _rows_of(x: Tensor, groups: int, *, scale: float = 1.0) -> Tensor:
    """[heads, places, dim] to [groups, places · heads / groups, dim], scaled."""
    heads, places, dim = x.shape
    rows = x.new_empty(groups, places, heads // groups, dim)
    torch.mul(x.reshape(groups, heads // groups, places, dim).transpose(1, 2), scale, out=rows)
    return rows.view(groups, -1, dim)


def _by_place(rows: Tensor, shape: torch.Size) -> Tensor:
    """Query rows to [places, heads, dim], for queries of shape [heads, places, _]."""
    heads, places, _ = shape
    by_group = rows.view(len(rows), places, heads // len(rows), -1)
    return by_group.transpose(0, 1).reshape(places, heads, -1)


def _blocks(segment: Segment, window: int | None) -> Iterator[_Block]:
    for start in range(segment.start, segment.stop, BLOCK_PLACES):
        stop = min(start + BLOCK_PLACES, segment.stop)
        position = segment.position + start - segment.start
        last_key = position + stop - start
        if window is None or last_key <= window:
            yield _Block(start, stop, 0, last_key, None)
        else:
            yield _Block(start, stop, max(0, position - window + 1), last_key, window)


@lru_cache(maxsize=BLOCK_PLACES * 8)
def _future(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Added to the scores of a block's own places: -inf where the key comes later."""
    with torch.inference_mode(mode=False):
        return torch.full((size, size), -math.inf, dtype=dtype, device=device).triu_(1)[:, None]


def _at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
