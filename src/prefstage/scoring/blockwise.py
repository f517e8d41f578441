"""Attention over a row, block by block: exact, without a [places, places] mask or score."""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from prefstage.scoring.precision import at_least_float32
from prefstage.scoring.rows import Segment
from prefstage.scoring.tiles import Block, Tiling, places_of, tiles_for, tiling

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
    """Works block by block: a block is cut into tiles, whose heads share their group's keys.

    So its products are one batch of tiles · groups equal matrices. Each tile has its own
    copy of the keys and values of the current text, which then need not be gathered.
    """

    @staticmethod
    def forward(  # noqa: PLR0917 - autograd passes its inputs by place
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, segments: Any, rule: Any
    ) -> Tensor:
        cut = _cut(segments, len(key), rule, query.device)
        k, v = at_least_float32(key) * rule.scale, at_least_float32(value)
        q = cut.split(at_least_float32(cut.gather(query.transpose(0, 1))), query.shape[2])
        output = v.new_empty(len(cut.order), len(query) // len(key) * v.shape[2])
        mixed = cut.split(output, v.shape[2])
        (path_k, of_k), (path_v, of_v) = _path(k, cut), _path(v, cut)
        for part in cut.parts:
            path_k[:, :, part.positions] = k[:, part.places]
            path_v[:, :, part.positions] = v[:, part.places]
            for block in part.blocks:
                matrices = block.tiles * cut.groups
                scores, _ = _scores(q[block.index], of_k[:matrices, block.seen], block, rule)
                weights = torch.softmax(scores, -1, out=scores)
                torch.bmm(weights, of_v[:matrices, block.seen], out=mixed[block.index])
        by_place = cut.by_place(output, len(query)).to(query.dtype)
        ctx.cut, ctx.rule = cut, rule
        # The layer's next map keeps the result too, so that keeping it here takes no memory.
        ctx.save_for_backward(query, key, value, by_place)
        return by_place

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output = ctx.saved_tensors
        cut: Tiling = ctx.cut
        k, v = at_least_float32(key) * ctx.rule.scale, at_least_float32(value)
        q = cut.split(at_least_float32(cut.gather(query.transpose(0, 1))), query.shape[2])
        grad, mean = _output_gradients(grad_output, output, cut)
        rows = v.new_empty(len(cut.order), len(query) // len(key) * query.shape[2])
        grad_q, grads = cut.split(rows, query.shape[2]), (torch.empty_like(k), torch.empty_like(v))
        # The gradients of a text's keys add up beside the keys until the row leaves them.
        paths = [_path(x, cut) for x in (k, v, *grads)]
        for part in cut.parts:
            for (path, _), x in zip(paths[:2], (k, v), strict=True):
                path[:, :, part.positions] = x[:, part.places]
            for path, _ in paths[2:]:
                path[:, :, part.positions] = 0
            for block in part.blocks:
                seen = [x[: block.tiles * cut.groups, block.seen] for _, x in paths]
                of_rows = (q[block.index], grad[block.index], mean[block.index])
                _add_block_gradient(of_rows, seen, grad_q[block.index], block, ctx.rule)
            for positions, places in part.leaving:
                for (path, _), x in zip(paths[2:], grads, strict=True):
                    torch.sum(path[:, :, positions], 0, out=x[:, places])
        grad_query = cut.by_place(rows, len(query)).transpose(0, 1)
        typed = zip(
            (grad_query, grads[0] * ctx.rule.scale, grads[1]), (query, key, value), strict=True
        )
        return (*(g.to(x.dtype) for g, x in typed), None, None)


def _output_gradients(
    grad_output: Tensor, output: Tensor, cut: Tiling
) -> tuple[list[Tensor], list[Tensor]]:
    """Each block's gradient by its output, and that by its weights in the mean of a row.

    Both are 0 for places that a tile repeats: they add nothing to the keys' gradients.
    """
    grad = at_least_float32(cut.gather(grad_output))
    # d softmax: each weight's gradient is measured from the row's mean.
    product = at_least_float32(grad_output) * at_least_float32(output)
    mean = cut.gather(product.sum(-1, keepdim=True))
    for rows in (grad, mean):
        rows.index_fill_(0, cut.repeated, 0)
    return cut.split(grad, grad_output.shape[2]), cut.split(mean, 1)


def _add_block_gradient(
    of_rows: tuple[Tensor, Tensor, Tensor],
    seen: list[Tensor],
    grad_q: Tensor,
    block: Block,
    rule: AttentionRule,
) -> None:
    """Set the gradient by a block's queries; add those by the keys and values it sees."""
    (q, grad, mean), (k, v, grad_k, grad_v) = of_rows, seen
    scores, slope = _scores(q, k, block, rule, with_slope=True)
    weights = torch.softmax(scores, -1, out=scores)
    grad_v += torch.bmm(weights.transpose(1, 2), grad)
    grad_scores = torch.bmm(grad, v.transpose(1, 2)).sub_(mean).mul_(weights)
    if slope is not None:
        grad_scores *= slope
    grad_k += torch.bmm(grad_scores.transpose(1, 2), q)
    torch.bmm(grad_scores, k, out=grad_q)


def _scores(
    q: Tensor, k: Tensor, block: Block, rule: AttentionRule, *, with_slope: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Masked scores of a block, [tiles · groups, queries, keys], and the soft-cap's slope."""
    slope = None
    scores = torch.bmm(q, k.transpose(1, 2))
    if rule.softcap is not None:
        scores.div_(rule.softcap).tanh_()
        slope = 1 - scores.square() if with_slope else None
        scores.mul_(rule.softcap)
    own = k.shape[1] - block.places
    by_place = scores.view(block.tiles, len(q) // block.tiles, block.tile_places, -1, k.shape[1])
    by_place[..., own:] += _future(block.places, block.tiles, scores.dtype, scores.device)
    if block.window is not None:
        position = places_of(block, q.device) + own
        key = torch.arange(k.shape[1], device=q.device)
        by_place.masked_fill_(position - key >= block.window, -math.inf)
    return scores, slope


def _cut(
    segments: tuple[Segment, ...], groups: int, rule: AttentionRule, device: torch.device
) -> Tiling:
    with torch.inference_mode(mode=False):  # kept for passes with a gradient too
        return tiling(
            segments,
            window=rule.window,
            groups=groups,
            tiles=tiles_for(groups, device),
            block_places=BLOCK_PLACES,
            device=device,
        )


def _path(x: Tensor, cut: Tiling) -> tuple[Tensor, Tensor]:
    """Room for the keys or values of one text, [tiles, groups, positions, dim], and by matrix.

    A row is in depth-first order, so a segment's ancestors stand there when it is reached.
    """
    path = x.new_empty(cut.tiles, len(x), cut.longest, x.shape[2])
    return path, path.flatten(0, 1)


@lru_cache(maxsize=BLOCK_PLACES * 8)
def _future(places: int, tiles: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Added to the scores of a block's own places: -inf where the key comes later."""
    with torch.inference_mode(mode=False):
        query = places_of(Block(0, 0, places, tiles, 0, places, None), device)
        later = torch.arange(places, device=device) > query
        return torch.zeros(later.shape, dtype=dtype, device=device).masked_fill_(later, -math.inf)
