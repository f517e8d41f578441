"""How a row's queries are cut into blocks and tiles, so that every thread has equal work."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor

from prefstage.scoring.rows import Segment

MOST_TILES = 8
"""Tiles a block at most: smaller ones no longer fill a matrix product."""


@dataclass(frozen=True)
class Block:
    """Queries of one segment and the keys that at least one of them sees.

    Keys are counted along the text, so that a key's index is its position. The queries are
    cut into equal tiles; the last place is repeated where they do not divide.

    Attributes:
        index: Its number in the row.
        start: First query, as a place in the row.
        places: Number of queries.
        tiles: Number of tiles.
        first_key: First key that is seen.
        last_key: One after the last: the block's own end.
        window: Sliding window, if it hides a key from some query; else None.
    """

    index: int
    start: int
    places: int
    tiles: int
    first_key: int
    last_key: int
    window: int | None

    @property
    def seen(self) -> slice:
        """The keys."""
        return slice(self.first_key, self.last_key)

    @property
    def tile_places(self) -> int:
        """Places a tile, repeated ones included."""
        return -(-self.places // self.tiles)


@dataclass(frozen=True)
class Part:
    """One segment of a row.

    Attributes:
        places: Its places in the row.
        positions: Its positions in its text.
        blocks: Its queries.
        leaving: Keys that no later segment of the row sees, as (positions, places).
    """

    places: slice
    positions: slice
    blocks: tuple[Block, ...]
    leaving: tuple[tuple[slice, slice], ...]


@dataclass(frozen=True)
class Tiling:
    """A row's queries in the order of the products: by block, tile, group, place.

    So a block is one contiguous batch of tiles · groups equal matrices.

    Attributes:
        parts: The segments.
        groups: Heads that share keys are one group.
        tiles: Most tiles of a block.
        longest: Positions of the longest text.
        sizes: Rows of each block, where a row is one place in one group.
        order: For each row, place · groups + group. [rows].
        back: Row of each place and group. [places · groups].
        repeated: Rows that repeat a place. [repeats].
    """

    parts: tuple[Part, ...]
    groups: int
    tiles: int
    longest: int
    sizes: tuple[int, ...]
    order: Int[Tensor, " rows"]
    back: Int[Tensor, " places_groups"]
    repeated: Int[Tensor, " repeats"]

    def gather(self, x: Float[Tensor, "places heads dim"]) -> Float[Tensor, "rows features"]:
        """Rows of a tensor by place, the heads of a group side by side."""
        return x.reshape(len(self.back), -1).index_select(0, self.order)

    def split(self, rows: Tensor, dim: int) -> list[Tensor]:
        """Each block's [tiles · groups, queries, dim], as views of the rows."""
        blocks = (block for part in self.parts for block in part.blocks)
        return [
            each.view(block.tiles * self.groups, -1, dim)
            for each, block in zip(torch.split(rows, list(self.sizes)), blocks, strict=True)
        ]

    def by_place(self, rows: Tensor, heads: int) -> Float[Tensor, "places heads dim"]:
        """Rows back in the order of places."""
        return rows.index_select(0, self.back).view(len(self.back) // self.groups, heads, -1)


def tiles_for(groups: int, device: torch.device) -> int:
    """Tiles with which the matrices of a block keep a CPU's threads busiest.

    ``argmax_t matrices / (rounds · threads)``, where ``matrices = groups · t`` and
    ``rounds = ⌈matrices / threads⌉``; the fewest of equally good ones.

    Args:
        groups: Matrices of an uncut block, >= 1.
        device: Where they are multiplied.

    Returns:
        A number from 1 to `MOST_TILES`; 1 on other devices.
    """
    if device.type != "cpu":
        return 1
    threads = torch.get_num_threads()

    def busy(tiles: int) -> float:
        return groups * tiles / (math.ceil(groups * tiles / threads) * threads)

    return max(range(1, MOST_TILES + 1), key=busy)


@lru_cache(maxsize=16)
def tiling(
    segments: tuple[Segment, ...],
    *,
    window: int | None,
    groups: int,
    tiles: int,
    block_places: int,
    device: torch.device,
) -> Tiling:
    """Cut a row into blocks; kept, so that the layers of a pass share it.

    Args:
        segments: The row's segments in depth-first order, which hold every place once.
        window: A token sees itself and the `window` - 1 tokens before it; None for all.
        groups: Number of groups of heads.
        tiles: Tiles a block, where it has that many places.
        block_places: Places a block at most.
        device: Where the rows will be.

    Returns:
        The row's blocks and the order of its queries.
    """
    parts = list[Part]()
    index = 0
    for segment, until in zip(segments, _kept(segments), strict=True):
        blocks = tuple(_blocks(segment, window, tiles, block_places, index))
        index += len(blocks)
        end = segment.position + segment.stop - segment.start
        own, at = slice(segment.start, segment.stop), slice(segment.position, end)
        parts.append(Part(own, at, blocks, tuple(_leaving(segment, until))))
    every = [block for part in parts for block in part.blocks]
    order, new = _order(every, groups)
    back = torch.empty(int(new.sum()), dtype=torch.long)
    back[order[new]] = new.nonzero()[:, 0]
    return Tiling(
        parts=tuple(parts),
        groups=groups,
        tiles=tiles,
        longest=max(part.positions.stop for part in parts),
        sizes=tuple(block.tiles * groups * block.tile_places for block in every),
        order=order.to(device),
        back=back.to(device),
        repeated=(~new).nonzero()[:, 0].to(device),
    )


def places_of(block: Block, device: torch.device) -> Int[Tensor, "tiles 1 tile_places 1 1"]:
    """Each query of a block, counted from the block's start, tile by tile."""
    places = torch.arange(block.tiles * block.tile_places, device=device)
    return places.clamp_(max=block.places - 1).view(block.tiles, 1, -1, 1, 1)


def _blocks(
    segment: Segment, window: int | None, tiles: int, block_places: int, index: int
) -> Iterator[Block]:
    for number, start in enumerate(range(segment.start, segment.stop, block_places), index):
        places = min(block_places, segment.stop - start)
        position = segment.position + start - segment.start
        last_key = position + places
        cut = tiles if places >= tiles else 1
        if window is None or last_key <= window:
            yield Block(number, start, places, cut, 0, last_key, None)
        else:
            first_key = max(0, position - window + 1)
            yield Block(number, start, places, cut, first_key, last_key, window)


def _kept(segments: tuple[Segment, ...]) -> list[int]:
    """For each segment, how much of its text the next one shares."""
    return [*(after.position for _, after in pairwise(segments)), 0]


def _leaving(segment: Segment, until: int) -> Iterator[tuple[slice, slice]]:
    """The part of a segment's text from position `until` on, as (positions, places)."""
    position = 0
    for start, stop in segment.path:
        end = position + stop - start
        if end > until:
            kept = max(0, until - position)
            yield slice(position + kept, end), slice(start + kept, stop)
        position = end


def _order(blocks: list[Block], groups: int) -> tuple[Tensor, Tensor]:
    """Order of the rows, and which of them repeat no place."""
    group, order, new = torch.arange(groups)[:, None], list[Tensor](), list[Tensor]()
    for block in blocks:
        places = places_of(block, group.device).view(block.tiles, 1, -1)
        order.append(((block.start + places) * groups + group).flatten())
        first = torch.arange(places.numel()).view(places.shape) == places
        new.append(first.expand(-1, groups, -1).flatten())
    return torch.cat(order), torch.cat(new)
