"""Attention over a row, block by block: exact, without a [tokens, tokens] mask or score.

A row's queries are cut into blocks, and a block into tiles: the products of a block are one
batch of equal matrices, one a tile and group of heads, so that every thread of a CPU has equal
work. A model with three groups would leave one of two threads idle a third of the time.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from prefstage.scoring.cpu.lean import at_least_float32
from prefstage.scoring.layout import Segment

BLOCK_QUERIES = 64
"""Queries taken together; measured best on CPU, where scores then stay in the L2 cache."""

MAX_TILES = 8
"""Tiles a block at most: smaller ones no longer fill a matrix product."""


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
class Block:
    """Queries of one segment and the keys that at least one of them sees.

    Keys are counted along the text, so that a key's index is its position. The queries are
    cut into equal tiles; the last one is repeated where they do not divide.

    Attributes:
        index: Its number in the row.
        start: First query, as a token of the row.
        queries: Number of queries.
        tiles: Number of tiles.
        keys: The keys that are seen, up to the block's end.
        window: Sliding window, if it hides a key from some query; else None.
    """

    index: int
    start: int
    queries: int
    tiles: int
    keys: slice
    window: int | None

    @property
    def tile_queries(self) -> int:
        """Queries a tile, repeated ones included."""
        return -(-self.queries // self.tiles)

    def offsets(self, device: torch.device) -> Int[Tensor, "tiles 1 tile_queries 1 1"]:
        """Each query, counted from the block's start, tile by tile."""
        lines = torch.arange(self.tiles * self.tile_queries, device=device)
        return lines.clamp_(max=self.queries - 1).view(self.tiles, 1, -1, 1, 1)


@dataclass(frozen=True)
class Part:
    """One segment of a row.

    Attributes:
        tokens: Its tokens in the row.
        positions: Their positions in the text.
        blocks: Its queries.
        leaving: Keys that no later segment of the row sees, as (positions, tokens).
    """

    tokens: slice
    positions: slice
    blocks: tuple[Block, ...]
    leaving: tuple[tuple[slice, slice], ...]


@dataclass(frozen=True)
class Tiling:
    """A row's queries in the order of the products: by block, tile, group, token.

    So a block is one contiguous batch of tiles · groups equal matrices.

    Attributes:
        parts: The segments.
        groups: Heads that share keys are one group.
        tiles: Most tiles of a block.
        longest: Positions of the longest text.
        sizes: Lines of each block, where a line is one token in one group.
        order: For each line, token · groups + group. [lines].
        back: Line of each token and group. [tokens · groups].
        repeated: Lines that repeat a token. [repeats].
    """

    parts: tuple[Part, ...]
    groups: int
    tiles: int
    longest: int
    sizes: tuple[int, ...]
    order: Int[Tensor, " lines"]
    back: Int[Tensor, " tokens_groups"]
    repeated: Int[Tensor, " repeats"]

    def gather(self, x: Float[Tensor, "tokens heads dim"]) -> Float[Tensor, "lines features"]:
        """Lines of a tensor by token, the heads of a group together."""
        return x.reshape(len(self.back), -1).index_select(0, self.order)

    def split(self, lines: Tensor, dim: int) -> list[Tensor]:
        """Each block's [tiles · groups, queries, dim], as views of the lines."""
        blocks = (block for part in self.parts for block in part.blocks)
        return [
            piece.view(block.tiles * self.groups, -1, dim)
            for piece, block in zip(torch.split(lines, list(self.sizes)), blocks, strict=True)
        ]

    def by_token(self, lines: Tensor, heads: int) -> Float[Tensor, "tokens heads dim"]:
        """Lines back in the order of the tokens."""
        return lines.index_select(0, self.back).view(len(self.back) // self.groups, heads, -1)

    def path(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Room for the keys or values of one text, [tiles, groups, positions, dim], and by matrix.

        Each tile has a copy of its own, which then need not be gathered for a product. A row
        is in depth-first order, so a segment's ancestors stand there when it is reached.
        """
        path = x.new_empty(self.tiles, len(x), self.longest, x.shape[2])
        return path, path.flatten(0, 1)


def tiles_for(groups: int, device: torch.device) -> int:
    """Tiles with which the matrices of a block keep a CPU's threads busiest.

    ``argmax_t matrices / (rounds · threads)``, where ``matrices = groups · t`` and
    ``rounds = ⌈matrices / threads⌉``; the fewest of equally good ones.

    Args:
        groups: Matrices of an uncut block, >= 1.
        device: Where they are multiplied.

    Returns:
        A number from 1 to `MAX_TILES`; 1 on other devices.
    """
    if device.type != "cpu":
        return 1
    threads = torch.get_num_threads()

    def busy(tiles: int) -> float:
        return groups * tiles / (math.ceil(groups * tiles / threads) * threads)

    return max(range(1, MAX_TILES + 1), key=busy)


# A row is cut once for all layers of a pass; hybrid models have two windows.
@lru_cache(maxsize=16)
def tiling(
    segments: tuple[Segment, ...],
    *,
    window: int | None,
    groups: int,
    tiles: int,
    block_queries: int,
    device: torch.device,
) -> Tiling:
    """Cut a row into blocks.

    Args:
        segments: The row's segments in depth-first order, which hold every token once.
        window: A token sees itself and the `window` - 1 tokens before it; None for all.
        groups: Number of groups of heads.
        tiles: Tiles a block, where it has that many queries.
        block_queries: Queries a block at most.
        device: Where the tensors will be.

    Returns:
        The row's blocks and the order of its queries.
    """
    parts, count = list[Part](), 0
    # How much of a segment's text the next one shares; the rest leaves after it.
    shared = [*(after.position for _, after in pairwise(segments)), 0]
    for segment, until in zip(segments, shared, strict=True):
        blocks = tuple(_blocks(segment, window, tiles, block_queries, count))
        count += len(blocks)
        parts.append(
            Part(
                tokens=slice(segment.start, segment.stop),
                positions=slice(segment.position, segment.position + segment.stop - segment.start),
                blocks=blocks,
                leaving=tuple(_leaving(segment, until)),
            )
        )
    all_blocks = [block for part in parts for block in part.blocks]
    group, order, new = torch.arange(groups)[:, None], list[Tensor](), list[Tensor]()
    for block in all_blocks:
        offsets = block.offsets(group.device).view(block.tiles, 1, -1)
        order.append(((block.start + offsets) * groups + group).flatten())
        first = torch.arange(offsets.numel()).view(offsets.shape) == offsets
        new.append(first.expand(-1, groups, -1).flatten())
    lines, is_new = torch.cat(order), torch.cat(new)
    back = torch.empty(int(is_new.sum()), dtype=torch.long)
    back[lines[is_new]] = is_new.nonzero()[:, 0]
    return Tiling(
        parts=tuple(parts),
        groups=groups,
        tiles=tiles,
        longest=max(part.positions.stop for part in parts),
        sizes=tuple(block.tiles * groups * block.tile_queries for block in all_blocks),
        order=lines.to(device),
        back=back.to(device),
        repeated=(~is_new).nonzero()[:, 0].to(device),
    )


def _blocks(
    segment: Segment, window: int | None, tiles: int, block_queries: int, index: int
) -> Iterator[Block]:
    for number, start in enumerate(range(segment.start, segment.stop, block_queries), index):
        queries = min(block_queries, segment.stop - start)
        position = segment.position + start - segment.start
        end = position + queries
        # A window that reaches back to the beginning hides nothing, and needs no mask.
        hiding = window if window is not None and end > window else None
        yield Block(
            index=number,
            start=start,
            queries=queries,
            tiles=tiles if queries >= tiles else 1,
            keys=slice(0 if hiding is None else max(0, position - hiding + 1), end),
            window=hiding,
        )


# The part of a segment's text from position `until` on, as (positions, tokens).
def _leaving(segment: Segment, until: int) -> Iterator[tuple[slice, slice]]:
    position = 0
    for start, stop in (*segment.context, (segment.start, segment.stop)):
        end = position + stop - start
        if end > until:
            kept = max(0, until - position)
            yield slice(position + kept, end), slice(start + kept, stop)
        position = end


def attend(
    query: Float[Tensor, "heads tokens head_dim"],
    key: Float[Tensor, "groups tokens head_dim"],
    value: Float[Tensor, "groups tokens value_dim"],
    *,
    segments: tuple[Segment, ...],
    rule: AttentionRule,
) -> Float[Tensor, "tokens heads value_dim"]:
    """Attention of every token to its ancestors and itself.

    ``softmax(scale · q kᵀ) v`` over the visible keys. Heads share keys in groups of
    heads / groups (grouped-query attention). Accumulates in float32 at least. The
    gradient recomputes the scores, so that memory grows with tokens, not their square.

    Args:
        query: [heads, tokens, head_dim].
        key: [groups, tokens, head_dim].
        value: [groups, tokens, value_dim].
        segments: The row's segments, which hold every token once.
        rule: Scale, soft-cap and window of the layer.

    Returns:
        [tokens, heads, value_dim], in the type of `query`.

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
    @staticmethod
    def forward(  # noqa: PLR0917 - autograd passes its inputs by position
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, segments: Any, rule: Any
    ) -> Tensor:
        # Cached, so that a tiling made while scoring must serve training too: tensors made
        # in inference mode cannot.
        with torch.inference_mode(mode=False):
            cut = tiling(
                segments,
                window=rule.window,
                groups=len(key),
                tiles=tiles_for(len(key), query.device),
                block_queries=BLOCK_QUERIES,
                device=query.device,
            )
        k, v = at_least_float32(key) * rule.scale, at_least_float32(value)
        q = cut.split(at_least_float32(cut.gather(query.transpose(0, 1))), query.shape[2])
        output = v.new_empty(len(cut.order), len(query) // len(key) * v.shape[2])
        mixed = cut.split(output, v.shape[2])
        (path_k, of_k), (path_v, of_v) = cut.path(k), cut.path(v)
        for part in cut.parts:
            path_k[:, :, part.positions] = k[:, part.tokens]
            path_v[:, :, part.positions] = v[:, part.tokens]
            for block in part.blocks:
                matrices = block.tiles * cut.groups
                scores, _ = _scores(q[block.index], of_k[:matrices, block.keys], block, rule)
                torch.softmax(scores, -1, out=scores)
                torch.bmm(scores, of_v[:matrices, block.keys], out=mixed[block.index])
        by_token = cut.by_token(output, len(query)).to(query.dtype)
        ctx.cut, ctx.rule = cut, rule
        # The layer's next map keeps the result too, so that keeping it here takes no memory.
        ctx.save_for_backward(query, key, value, by_token)
        return by_token

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output = ctx.saved_tensors
        cut: Tiling = ctx.cut
        k, v = at_least_float32(key) * ctx.rule.scale, at_least_float32(value)
        q = cut.split(at_least_float32(cut.gather(query.transpose(0, 1))), query.shape[2])
        grad_lines = at_least_float32(cut.gather(grad_output))
        # The softmax's gradient is w · (g - Σ w g), and Σ w g is the product of output and its
        # gradient: a number a token, where FlashAttention has it from too.
        mean_lines = cut.gather(
            (at_least_float32(grad_output) * at_least_float32(output)).sum(-1, keepdim=True)
        )
        for lines in (grad_lines, mean_lines):
            lines.index_fill_(0, cut.repeated, 0)  # else repeated queries would count twice
        grad, mean = cut.split(grad_lines, grad_output.shape[2]), cut.split(mean_lines, 1)
        rows = v.new_empty(len(cut.order), len(query) // len(key) * query.shape[2])
        grad_q, grads = cut.split(rows, query.shape[2]), (torch.empty_like(k), torch.empty_like(v))
        # The gradients of a text's keys add up along its path until the row leaves them: so a
        # prompt's keys collect from all of its responses.
        paths = [cut.path(x) for x in (k, v, *grads)]
        for part in cut.parts:
            for (path, _), x in zip(paths[:2], (k, v), strict=True):
                path[:, :, part.positions] = x[:, part.tokens]
            for path, _ in paths[2:]:
                path[:, :, part.positions] = 0
            for block in part.blocks:
                block_k, block_v, grad_k, grad_v = (
                    x[: block.tiles * cut.groups, block.keys] for _, x in paths
                )
                block_q, block_grad = q[block.index], grad[block.index]
                scores, slope = _scores(block_q, block_k, block, ctx.rule, with_slope=True)
                weights = torch.softmax(scores, -1, out=scores)
                grad_v += torch.bmm(weights.transpose(1, 2), block_grad)
                grad_scores = torch.bmm(block_grad, block_v.transpose(1, 2))
                grad_scores.sub_(mean[block.index]).mul_(weights)
                if slope is not None:
                    grad_scores *= slope
                grad_k += torch.bmm(grad_scores.transpose(1, 2), block_q)
                torch.bmm(grad_scores, block_k, out=grad_q[block.index])
            for positions, tokens in part.leaving:
                for (path, _), x in zip(paths[2:], grads, strict=True):
                    torch.sum(path[:, :, positions], 0, out=x[:, tokens])
        return (
            cut.by_token(rows, len(query)).transpose(0, 1).to(query.dtype),
            (grads[0] * ctx.rule.scale).to(key.dtype),
            grads[1].to(value.dtype),
            None,
            None,
        )


# Masked scores of a block, [tiles · groups, queries, keys], and the soft-cap's slope.
def _scores(
    q: Tensor, k: Tensor, block: Block, rule: AttentionRule, *, with_slope: bool = False
) -> tuple[Tensor, Tensor | None]:
    slope = None
    scores = torch.bmm(q, k.transpose(1, 2))
    if rule.softcap is not None:
        scores.div_(rule.softcap).tanh_()
        slope = 1 - scores.square() if with_slope else None
        scores.mul_(rule.softcap)
    # Only the block's last keys, its queries' own tokens, can lie in a query's future.
    before = k.shape[1] - block.queries
    by_query = scores.view(block.tiles, len(q) // block.tiles, block.tile_queries, -1, k.shape[1])
    by_query[..., before:] += _future(block.queries, block.tiles, scores.dtype, scores.device)
    if block.window is not None:
        distance = block.offsets(q.device) + before - torch.arange(k.shape[1], device=q.device)
        by_query.masked_fill_(distance >= block.window, -math.inf)
    return scores, slope


# Added to the scores of a block's queries' own tokens: -inf where the key comes later.
@lru_cache(maxsize=BLOCK_QUERIES * 8)
def _future(queries: int, tiles: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(mode=False):
        block = Block(0, 0, queries, tiles, slice(0, queries), None)
        later = torch.arange(queries, device=device) > block.offsets(device)
        return torch.zeros(later.shape, dtype=dtype, device=device).masked_fill_(later, -math.inf)
