"""The decoding loop: prompts once, rows with random streams of their own, no finished rows."""

import inspect
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from prefstage.sampling.base import SamplingConfig
from prefstage.sampling.choosing import choose_tokens


@dataclass(frozen=True)
class Row:
    """One response to be generated.

    Attributes:
        prompt: Position of its prompt.
        seed: Of its random numbers.
        max_new_tokens: It is cut after so many, >= 1.
    """

    prompt: int
    seed: int
    max_new_tokens: int


@dataclass(frozen=True)
class Generated:
    """One response.

    Attributes:
        row: Position of its row.
        ids: Its tokens, the stop token included.
        stopped: Whether it ended with a stop token; otherwise it was cut.
    """

    row: int
    ids: tuple[int, ...]
    stopped: bool


def generate_rows(
    model: Any,
    prompts: Sequence[Sequence[int]],
    rows: Sequence[Row],
    *,
    config: SamplingConfig,
    stop_ids: frozenset[int],
    forbidden: Sequence[int] = (),
) -> Iterator[Generated]:
    """Generate one response for each row, in one batch.

    Prompts are padded on the left and computed once however many rows share them; a row
    leaves the batch as soon as it is finished. With several beams it is `search_beams`.

    Args:
        model: A transformers causal language model in evaluation mode.
        prompts: Tokens of each prompt, none empty.
        rows: What to generate.
        config: Temperature, top_k, top_p, beams.
        stop_ids: Tokens that end a response.
        forbidden: Ids that are never chosen.

    Yields:
        Each row's response as soon as it is finished.
    """
    batch = Batch.of(
        model,
        prompts,
        [row.prompt for row in rows for _ in range(config.beams)],
        new_tokens=max(row.max_new_tokens for row in rows),
        forbidden=forbidden,
    )
    if config.beams > 1:
        from prefstage.sampling.beams import search_beams

        yield from search_beams(batch, rows, config, stop_ids)
    else:
        yield from _decode(batch, rows, config, stop_ids)


def _decode(
    batch: "Batch", rows: Sequence[Row], config: SamplingConfig, stop_ids: frozenset[int]
) -> Iterator[Generated]:
    """Generate one response for each row of a batch, token by token."""
    alive = list(range(len(rows)))
    streams = [random.Random(row.seed) for row in rows]
    written: list[list[int]] = [[] for _ in rows]
    while True:
        tokens = choose_tokens(batch.logits, [streams[row].random() for row in alive], config)
        keep = []
        for place, (row, token) in enumerate(zip(alive, tokens, strict=True)):
            written[row].append(token)
            if token in stop_ids or len(written[row]) >= rows[row].max_new_tokens:
                yield Generated(row, tuple(written[row]), stopped=token in stop_ids)
            else:
                keep.append(place)
        if not keep:
            return
        batch.keep(keep)
        batch.advance([tokens[place] for place in keep])
        alive = [alive[place] for place in keep]


class Batch:
    """The state of a batch between two steps.

    Attributes:
        logits: Of each row's next token. [rows, vocabulary].
    """

    def __init__(self, model: Any, lengths: torch.Tensor, longest: int, *, new_tokens: int) -> None:
        from prefstage.sampling.growing_cache import growing_cache

        self._model = model
        self._lengths = lengths  # tokens of each row without padding
        self._mask = (
            torch.arange(longest, device=lengths.device) >= longest - lengths[:, None]
        ).long()
        self._cache = growing_cache(model.config, longest + new_tokens)
        self._takes = _forward_arguments(model)
        self._forbidden = torch.empty(0, dtype=torch.long, device=lengths.device)
        self.logits = torch.empty(0)

    @classmethod
    @torch.inference_mode()
    def of(
        cls,
        model: Any,
        prompts: Sequence[Sequence[int]],
        owners: Sequence[int],
        *,
        new_tokens: int,
        forbidden: Sequence[int] = (),
    ) -> "Batch":
        """Compute the prompts once, and give each row the state of its prompt.

        Args:
            model: A transformers causal language model in evaluation mode.
            prompts: Tokens of each prompt, none empty.
            owners: Position of each row's prompt.
            new_tokens: Tokens that a row grows by at most.
            forbidden: Ids whose probability is 0.
        """
        longest = max(map(len, prompts))
        padded = [[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
        ids = torch.tensor(padded, device=model.device)
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=model.device)
        batch = cls(model, lengths, longest, new_tokens=new_tokens)
        batch._forbidden = torch.tensor(list(forbidden), dtype=torch.long, device=model.device)
        batch._forward(ids, (batch._mask.cumsum(-1) - 1).clamp_min(0))
        batch.keep(owners)
        return batch

    @torch.inference_mode()
    def keep(self, places: Sequence[int]) -> None:
        """Keep the rows at these places, in this order; a place may be named repeatedly."""
        if list(places) == list(range(len(self._lengths))):
            return
        index = torch.tensor(places, device=self._lengths.device)
        self._cache.reorder_cache(index)
        self._lengths, self._mask = self._lengths[index], self._mask[index]
        self.logits = self.logits[index]

    @torch.inference_mode()
    def advance(self, tokens: Sequence[int]) -> None:
        """Append one token to each row and compute the logits of the next."""
        ids = torch.tensor(tokens, device=self._lengths.device)[:, None]
        self._mask = torch.cat([self._mask, torch.ones_like(ids)], dim=-1)
        self._forward(ids, self._lengths[:, None], masked=self._takes.attends)
        self._lengths = self._lengths + 1

    def _forward(self, ids: torch.Tensor, positions: torch.Tensor, *, masked: bool = True) -> None:
        inputs = {
            "input_ids": ids,
            "attention_mask": self._mask if masked else None,
            "position_ids": positions,
            self._takes.cache: self._cache,
            "use_cache": True,
            "logits_to_keep": 1,
        }
        output = self._model(**{k: v for k, v in inputs.items() if k in self._takes.names})
        self.logits = output.logits[:, -1].float()
        if len(self._forbidden):
            self.logits = self.logits.index_fill(-1, self._forbidden, -torch.inf)


@dataclass(frozen=True)
class _ForwardArguments:
    """What a model's forward takes.

    Attributes:
        names: Of its arguments.
        cache: Its name for the cache.
        attends: Whether it attends to the past; a model that keeps a state instead (Mamba)
            wants a mask for the prompt's padding alone.
    """

    names: frozenset[str]
    cache: str
    attends: bool


def _forward_arguments(model: Any) -> _ForwardArguments:
    names = frozenset(inspect.signature(model.forward).parameters)
    attends = "past_key_values" in names
    return _ForwardArguments(names, "past_key_values" if attends else "cache_params", attends)
