"""The decoding loop: prompts once, rows with random streams of their own, no finished rows."""

import inspect
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from prefstage.core import check_numbers
from prefstage.sampling.base import SamplingConfig


def choose_tokens(
    logits: torch.Tensor, uniforms: Sequence[float], config: SamplingConfig
) -> list[int]:
    """Choose the next token of each row.

    Logits are divided by the temperature, cut to the `top_k` largest, then to the smallest
    set of mass >= `top_p`, in this order, as transformers does. The token is the inverse of
    the cumulative distribution, in the order of token ids, at the row's uniform number, all
    in float64: a row's choice depends on its own logits and number alone, and rounding
    errors in the logits (which a batch's composition perturbs) change it only if the number
    falls within the error of a border between two tokens.

    Args:
        logits: [rows, vocabulary], any float type.
        uniforms: One number in [0, 1) a row.
        config: Temperature (0 takes the likeliest token), top_k, top_p.

    Returns:
        One token id a row.

    Source:
        Top-p: Holtzman et al. 2020, arXiv:1904.09751, Eq. 3; top-k: Fan et al. 2018,
        arXiv:1805.04833, section 5.1.
    """
    if config.temperature == 0:
        return [int(token) for token in logits.argmax(dim=-1)]
    scores, ids = _kept(logits, config)
    chosen = _inverse(torch.softmax(scores, dim=-1).cumsum(dim=-1), uniforms)
    return [int(token) for token in ids.gather(-1, chosen)[:, 0]]


# What temperature, top_k and top_p leave of each row's scores (-inf beyond top_p), and of which
# tokens, in the order of ids; `least` tokens stay whatever these say. Both [rows, tokens].
def _kept(
    scores: torch.Tensor, config: SamplingConfig, *, least: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    vocabulary = scores.shape[-1]
    count = min(max(config.top_k or vocabulary, least), vocabulary)
    if count == vocabulary and config.top_p == 1:
        ids = torch.arange(vocabulary, device=scores.device).expand_as(scores)
        return scores.double() / config.temperature, ids
    scores, ids = scores.topk(count, dim=-1)
    scores = scores.double() / config.temperature
    if config.top_p < 1:
        probabilities = torch.softmax(scores, dim=-1)
        beyond = probabilities.cumsum(dim=-1) - probabilities >= config.top_p
        beyond[:, :least] = False
        scores = scores.masked_fill(beyond, -torch.inf)
    # Back into the order of ids: two tokens of nearly equal scores may come in either order, and
    # would exchange their intervals of the distribution.
    order = ids.argsort(dim=-1)
    return scores.gather(-1, order), ids.gather(-1, order)


# Where each row's cumulative distribution passes its number. [rows, 1].
def _inverse(cumulative: torch.Tensor, uniforms: Sequence[float]) -> torch.Tensor:
    points = torch.tensor(list(uniforms), dtype=torch.float64, device=cumulative.device)[:, None]
    # The sum is 1 but for rounding: a number above it must not fall behind the last token.
    return torch.searchsorted(cumulative, points * cumulative[:, -1:], right=True).clamp_max(
        cumulative.shape[-1] - 1
    )


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


def generate_rows(
    model: Any,
    prompts: Sequence[Sequence[int]],
    rows: Sequence[Row],
    *,
    config: SamplingConfig,
    stop_ids: frozenset[int],
    forbidden: Sequence[int] = (),
) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Generate one response for each row, in one batch.

    Prompts are padded on the left and computed once however many rows share them; a row
    leaves the batch as soon as it is finished. With several beams it is beam search: see `_Search`.

    Args:
        model: A transformers causal language model in evaluation mode.
        prompts: Tokens of each prompt, none empty.
        rows: What to generate.
        config: Temperature, top_k, top_p, beams.
        stop_ids: Tokens that end a response.
        forbidden: Ids that are never chosen.

    Yields:
        (row, ids): the position of each row as soon as its response is finished, and the response's
        tokens. The last one is a stop token unless the response was cut.

    Raises:
        ModelError: If a logit is NaN or +inf, or all of a row are -inf.
    """
    batch = Batch(
        model,
        prompts,
        [row.prompt for row in rows for _ in range(config.beams)],
        new_tokens=max(row.max_new_tokens for row in rows),
        forbidden=forbidden,
    )
    beams = config.beams
    texts: list[Any] = [
        _Search(row, beams, stop_ids) if beams > 1 else _Text(row, stop_ids) for row in rows
    ]
    alive = list(range(len(rows)))
    while alive:
        going_on = [texts[row] for row in alive]
        steps: list[Any] = (
            _candidates(batch.logits, going_on, config)
            if beams > 1
            else choose_tokens(batch.logits, [text.stream.random() for text in going_on], config)
        )
        kept, origins, tokens = list[int](), list[int](), list[int]()
        for position, (row, step) in enumerate(zip(alive, steps, strict=True)):
            chosen = texts[row].advance(step)
            if chosen:
                kept.append(row)
                origins += [position * beams + beam for beam, _ in chosen]
                tokens += [token for _, token in chosen]
            else:
                yield row, tuple(texts[row].best)
        if kept:
            batch.keep(origins)
            batch.advance(tokens)
        alive = kept


class Batch:
    """The state of a batch between two steps.

    Attributes:
        logits: Of each row's next token. [rows, vocabulary].
    """

    logits: torch.Tensor

    @torch.inference_mode()
    def __init__(
        self,
        model: Any,
        prompts: Sequence[Sequence[int]],
        owners: Sequence[int],
        *,
        new_tokens: int,
        forbidden: Sequence[int] = (),
    ) -> None:
        """Compute the prompts once, and give each row the state of its prompt.

        Args:
            model: A transformers causal language model in evaluation mode.
            prompts: Tokens of each prompt, none empty.
            owners: Position of each row's prompt.
            new_tokens: Tokens that a row grows by at most.
            forbidden: Ids whose probability is 0.
        """
        self._model = model
        self._takes = frozenset(inspect.signature(model.forward).parameters)
        # A model that keeps a state instead of the past (Mamba) names its cache otherwise, and
        # wants a mask for the prompt's padding alone.
        self._attends = "past_key_values" in self._takes
        longest = max(map(len, prompts))
        self._cache = growing_cache(model.config, longest + new_tokens)
        self._forbidden = torch.tensor(list(forbidden), dtype=torch.long, device=model.device)
        self._lengths = torch.tensor([len(prompt) for prompt in prompts], device=model.device)
        # Padded on the left, so that the next token of every row stands at the same position.
        padded = [[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
        positions = torch.arange(longest, device=model.device)
        self._mask = (positions >= longest - self._lengths[:, None]).long()
        self._forward(
            torch.tensor(padded, device=model.device), (self._mask.cumsum(-1) - 1).clamp_min(0)
        )
        self.keep(owners)

    @torch.inference_mode()
    def keep(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order; one may be named repeatedly."""
        if list(rows) != list(range(len(self._lengths))):
            index = torch.tensor(rows, device=self._lengths.device)
            self._cache.reorder_cache(index)
            self._lengths, self._mask = self._lengths[index], self._mask[index]
            self.logits = self.logits[index]

    @torch.inference_mode()
    def advance(self, tokens: Sequence[int]) -> None:
        """Append one token to each row and compute the logits of the next."""
        ids = torch.tensor(tokens, device=self._lengths.device)[:, None]
        self._mask = torch.cat([self._mask, torch.ones_like(ids)], dim=-1)
        self._forward(ids, self._lengths[:, None], masked=self._attends)
        self._lengths = self._lengths + 1

    def _forward(self, ids: torch.Tensor, positions: torch.Tensor, *, masked: bool = True) -> None:
        inputs = {
            "input_ids": ids,
            "attention_mask": self._mask if masked else None,
            "position_ids": positions,
            "past_key_values" if self._attends else "cache_params": self._cache,
            "use_cache": True,
            "logits_to_keep": 1,
        }
        taken = {name: value for name, value in inputs.items() if name in self._takes}
        self.logits = self._model(**taken).logits[:, -1].float()
        if len(self._forbidden):
            self.logits = self.logits.index_fill(-1, self._forbidden, -torch.inf)
        # -inf forbids a token; the largest logit is NaN where any is, and -inf where all are.
        check_numbers(self.logits.amax(dim=-1), self._model, what="rows of next-token logits")


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
        self._key_room: torch.Tensor | None = None
        self._value_room: torch.Tensor | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append the keys and values of further tokens; gives all of them."""
        if self.get_seq_length() == 0:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states, value_states
        else:
            self.keys, self._key_room = self._appended(self.keys, key_states, self._key_room)
            self.values, self._value_room = self._appended(
                self.values, value_states, self._value_room
            )
        return self.keys, self.values

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Choose rows, in an order; one may be chosen repeatedly."""
        if self.get_seq_length() > 0:
            self.keys, self._key_room = self._chosen(self.keys, beam_idx, self._key_room)
            self.values, self._value_room = self._chosen(self.values, beam_idx, self._value_room)

    def _appended(
        self, old: torch.Tensor, new: torch.Tensor, room: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        length, longer = old.shape[-2], old.shape[-2] + new.shape[-2]
        if room is None or not _begins(room, old) or room.shape[-2] < longer:
            room = self._room(old, len(old), longer)
            room[:, :, :length] = old
        grown = room[: len(old), :, :longer]
        grown[:, :, length:] = new
        return grown, room

    def _chosen(
        self, old: torch.Tensor, rows: torch.Tensor, room: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        length, stay = old.shape[-2], 0
        if room is not None and _begins(room, old) and len(rows) <= len(room):
            # So many of the first rows stay where they are.
            stay = int((rows == torch.arange(len(rows), device=rows.device)).cumprod(0).sum())
        else:
            room = self._room(old, len(rows), length)
        chosen = room[: len(rows), :, :length]
        chosen[stay:] = old[rows[stay:]]  # a copy in between, for both may lie in one room
        return chosen, room

    def _room(self, like: torch.Tensor, rows: int, tokens: int) -> torch.Tensor:
        return like.new_empty(rows, like.shape[1], max(self._most_tokens, tokens), like.shape[-1])


# Whether rows are the first ones of a room, from their first token.
def _begins(room: torch.Tensor, rows: torch.Tensor) -> bool:
    return rows.data_ptr() == room.data_ptr() and rows.stride() == room.stride()


class _Text:
    """A row that is written token by token.

    Attributes:
        stream: The row's random numbers, so that a response depends on its own seed alone and not
            on who else is in the batch.
        best: What is written so far.
    """

    def __init__(self, row: Row, stop_ids: frozenset[int]) -> None:
        self.stream = random.Random(row.seed)
        self.best = list[int]()
        self._stop_ids, self._longest = stop_ids, row.max_new_tokens

    # As of `_Search`, of one beam.
    def advance(self, token: int) -> list[tuple[int, int]]:
        self.best.append(token)
        ends = token in self._stop_ids or len(self.best) >= self._longest
        return [] if ends else [(0, token)]


class _Search:
    """A row that is searched for by several beams.

    Each step keeps the `beams` unfinished continuations of the largest log-probability, among
    candidates that are the likeliest ones at temperature 0 and are drawn without replacement
    otherwise; responses compete by log-probability a token. It ends when no continuation is
    ahead of the worst of `beams` finished responses, and gives the best one. Candidates are
    drawn from a row's own stream, so that a response depends neither on the batch nor on order.

    Attributes:
        scores: Log-probability of each beam; -inf of those that are no continuation. [beams].
        stream: The row's random numbers.
        width: Candidates that are looked at in a step: enough to go on with whichever stop.

    Source:
        `generate` of transformers with num_beams and do_sample, length_penalty 1 and
        early_stopping False; as used by arXiv:2508.18312, App. B.4.
    """

    def __init__(self, row: Row, beams: int, stop_ids: frozenset[int]) -> None:
        self.scores = [0.0] + [-torch.inf] * (beams - 1)
        self.stream = random.Random(row.seed)
        self.width = max(2, 1 + len(stop_ids)) * beams
        self._stop_ids, self._longest = stop_ids, row.max_new_tokens
        self._written: list[tuple[int, ...]] = [()] * beams
        self._finished: list[tuple[float, tuple[int, ...]]] = []  # the best first

    # The best finished response.
    @property
    def best(self) -> tuple[int, ...]:
        return self._finished[0][1]

    # Take the best continuations of a step: candidates are (log-probability, beam, token), in the
    # order of their choice. Gives (beam, token) of each new beam; nothing when the search is over.
    def advance(self, candidates: Sequence[tuple[float, int, int]]) -> list[tuple[int, int]]:
        beams, length = len(self.scores), len(self._written[0]) + 1
        running = []
        for rank, (score, beam, token) in enumerate(candidates):
            if token not in self._stop_ids and length < self._longest:
                running.append((score, beam, token))
            elif rank < beams and score > -torch.inf:
                self._finished.append((score / length, (*self._written[beam], token)))
        self._finished = sorted(self._finished, key=lambda scored: -scored[0])[:beams]
        running = sorted(running, key=lambda scored: -scored[0])[:beams]
        if not running or (
            len(self._finished) == beams and running[0][0] / length <= self._finished[-1][0]
        ):
            return []
        # Top-k and top-p may leave fewer candidates than beams; what fills up can never win.
        running += [(-torch.inf, *running[0][1:])] * (beams - len(running))
        self.scores = [score for score, _, _ in running]
        self._written = [(*self._written[beam], token) for _, beam, token in running]
        return [(beam, token) for _, beam, token in running]


# What each row may go on with: (log-probability, beam, token).
# logits: of each beam's next token. [rows * beams, vocabulary].
def _candidates(
    logits: torch.Tensor, searches: Sequence[_Search], config: SamplingConfig
) -> list[list[tuple[float, int, int]]]:
    vocabulary, width = logits.shape[-1], searches[0].width
    before = torch.tensor([search.scores for search in searches], dtype=torch.float64)
    after = torch.log_softmax(logits.double(), dim=-1)
    if config.temperature > 0:
        kept, ids = _kept(after, config, least=width // config.beams)
        after = torch.full_like(after, -torch.inf).scatter(-1, ids, kept)
    by_beam = after.view(len(searches), config.beams, vocabulary)
    total = (by_beam + before.to(after.device)[..., None]).flatten(1)
    if config.temperature == 0:
        scores, chosen = total.topk(min(width, total.shape[1]), dim=-1)
    else:
        scores, chosen = _drawn(total, searches)
    return [
        [(score, *divmod(index, vocabulary)) for score, index in zip(*row, strict=True)]
        for row in zip(scores.tolist(), chosen.tolist(), strict=True)
    ]


# Candidates drawn without replacement by their probability. Both [rows, candidates].
# Each is the inverse of the cumulative distribution of what is left, in the order of beams
# and token ids, at a number of the row's stream. Where nothing is left, -inf.
def _drawn(total: torch.Tensor, searches: Sequence[_Search]) -> tuple[torch.Tensor, torch.Tensor]:
    # In float64 (as `total` is): a sum over a vocabulary in float32 loses the rarest tokens.
    left = torch.softmax(total, dim=-1)
    scores, chosen = [], []
    for _ in range(searches[0].width):
        cumulative = left.cumsum(dim=-1)
        index = _inverse(cumulative, [search.stream.random() for search in searches])
        scores.append(torch.where(cumulative[:, -1:] > 0, total.gather(1, index), -torch.inf))
        chosen.append(index)
        left = left.scatter(1, index, 0.0)
    return torch.cat(scores, dim=1), torch.cat(chosen, dim=1)
