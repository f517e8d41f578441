"""Keys and values that grow in place, in memory set aside for full-grown rows."""

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


def growing_cache(config: Any, most_tokens: int) -> DynamicCache:
    """An empty cache whose plain layers grow in place; those of other kinds are as they were.

    Args:
        config: Of the model.
        most_tokens: Tokens that a row holds when it is full-grown, padding included, >= 1.
    """
    cache = DynamicCache(config=config)
    cache.layers = [
        GrowingLayer(most_tokens) if type(layer) is DynamicLayer else layer
        for layer in cache.layers
    ]
    return cache


class GrowingLayer(DynamicLayer):  # type: ignore[misc]  # untyped in transformers
    """Keys and values of a layer. [rows, heads, tokens, head_dim].

    `DynamicLayer` makes both anew for every token: all of them are copied, and no freed block
    is long enough for the next. Here they are set aside once, when the first tokens are
    followed by others or by another choice of rows.
    """

    def __init__(self, most_tokens: int) -> None:
        super().__init__()
        self._most_tokens = most_tokens
        self._key_room: Tensor | None = None
        self._value_room: Tensor | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append the keys and values of further tokens; gives all of them."""
        if self.get_seq_length() == 0:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states, value_states
            return self.keys, self.values
        self.keys, self._key_room = self._appended(self.keys, key_states, self._key_room)
        self.values, self._value_room = self._appended(self.values, value_states, self._value_room)
        return self.keys, self.values

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Choose rows, in an order; one may be chosen repeatedly."""
        if self.get_seq_length() == 0:
            return
        self.keys, self._key_room = self._chosen(self.keys, beam_idx, self._key_room)
        self.values, self._value_room = self._chosen(self.values, beam_idx, self._value_room)

    def _appended(self, old: Tensor, new: Tensor, room: Tensor | None) -> tuple[Tensor, Tensor]:
        length, longer = old.shape[-2], old.shape[-2] + new.shape[-2]
        if room is None or not _begins(room, old) or room.shape[-2] < longer:
            room = self._room(old, len(old), longer)
            room[:, :, :length] = old
        grown = room[: len(old), :, :longer]
        grown[:, :, length:] = new
        return grown, room

    def _chosen(self, old: Tensor, rows: Tensor, room: Tensor | None) -> tuple[Tensor, Tensor]:
        length, stay = old.shape[-2], 0
        if room is not None and _begins(room, old) and len(rows) <= len(room):
            # So many of the first rows stay where they are.
            same = rows == torch.arange(len(rows), device=rows.device)
            stay = int(same.long().cumprod(0).sum())
        else:
            room = self._room(old, len(rows), length)
        chosen = room[: len(rows), :, :length]
        chosen[stay:] = old[rows[stay:]]  # a copy in between, for both may lie in one room
        return chosen, room

    def _room(self, like: Tensor, rows: int, tokens: int) -> Tensor:
        heads, width = like.shape[1], like.shape[-1]
        return like.new_empty(rows, heads, max(self._most_tokens, tokens), width)


# Whether rows are the first ones of a room, from their first token.
def _begins(room: Tensor, rows: Tensor) -> bool:
    return rows.data_ptr() == room.data_ptr() and rows.stride() == room.stride()
