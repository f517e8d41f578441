"""From items and flat log-probs to the batches that losses take."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, islice, pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from prefstage.core.hashing import seed_for
from prefstage.data.tokenising import TokenTree
from prefstage.losses import (
    GroupBatch,
    LossBatch,
    PairBatch,
    ResponseBatch,
    Responses,
    Totals,
    UnpairedBatch,
)
from prefstage.training.items import ItemKind, TrainingItem

Flat = Float[Tensor, " tokens"]
"""A value for every response token of some items: item by item, tree by tree, response by
response."""


@dataclass(frozen=True)
class StepItems:
    """Items that are computed together, with what is known of them beforehand.

    Attributes:
        kind: What an item is.
        items: The items.
        reference: Reference log-probs of their response tokens, nats; None without one.
        seeds: One seed an item, for losses that draw tokens; None otherwise.
        totals: Of the whole optimiser batch; None if these items are the whole.
    """

    kind: ItemKind
    items: tuple[TrainingItem, ...]
    reference: Flat | None = None
    seeds: tuple[int, ...] | None = None
    totals: Totals | None = None

    @cached_property
    def trees(self) -> tuple[TokenTree, ...]:
        """The trees of all items in turn."""
        return tuple(tree for item in self.items for tree in item.trees)

    @cached_property
    def tree_spans(self) -> tuple[tuple[slice, ...], ...]:
        """For each tree, where the tokens of each of its responses stand."""
        spans, start = [], 0
        for tree in self.trees:
            stops = list(accumulate(map(len, tree.response_ids), initial=start))
            spans.append(tuple(slice(a, b) for a, b in pairwise(stops)))
            start = stops[-1]
        return tuple(spans)

    @cached_property
    def spans(self) -> tuple[tuple[slice, ...], ...]:
        """For each item, where the tokens of each of its responses stand."""
        trees = iter(self.tree_spans)
        return tuple(
            tuple(span for spans in islice(trees, len(item.trees)) for span in spans)
            for item in self.items
        )

    @property
    def starts(self) -> tuple[int, ...]:
        """Where the tokens of each item begin."""
        return tuple(own[0].start for own in self.spans)

    @property
    def tokens(self) -> int:
        """Response tokens of all items."""
        return self.spans[-1][-1].stop if self.spans else 0

    @cached_property
    def whole_totals(self) -> Totals:
        """Totals of the optimiser batch."""
        return self.totals or _totals(self.kind, self.spans)

    def span_of(self, position: int) -> slice:
        """Where the tokens of one item stand."""
        return slice(self.spans[position][0].start, self.spans[position][-1].stop)

    def part(self, positions: Sequence[int]) -> "StepItems":
        """Some of the items, as part of the same optimiser batch."""
        reference, seeds = self.reference, self.seeds
        return StepItems(
            self.kind,
            tuple(self.items[position] for position in positions),
            None if reference is None else self.take(reference, positions),
            None if seeds is None else tuple(seeds[position] for position in positions),
            self.whole_totals,
        )

    def take(self, flat: Flat, positions: Sequence[int]) -> Flat:
        """Values of some of the items."""
        return torch.cat([flat[self.span_of(position)] for position in positions])

    @property
    def all_learn(self) -> bool:
        """Whether every response carries a gradient: mismatched ones do not."""
        return self.kind != "unpaired" or all(len(own) == 1 for own in self.spans)

    def learning(self, flat: Flat) -> tuple[Flat, "StepItems"]:
        """Leave out the responses that carry no gradient.

        Args:
            flat: Values of all items.

        Returns:
            Values of what is left, and the items with it alone.
        """
        if self.all_learn:
            return flat, self
        items = tuple(replace(item, trees=(_first_response(item.trees[0]),)) for item in self.items)
        kept = torch.cat([flat[own[0]] for own in self.spans])
        return kept, StepItems(self.kind, items, totals=self.whole_totals)

    def loss_batch(self, policy: Flat, log_sum_squares: Flat | None = None) -> LossBatch:
        """The batch that a loss takes.

        Args:
            policy: log π of every response token, nats, perhaps with a gradient.
            log_sum_squares: log Σ_v π(v)² of each, if the loss needs it.

        Returns:
            The batch, on the device of `policy`.
        """
        parts = _Parts(policy, self.reference, log_sum_squares)
        build: dict[ItemKind, Callable[[_Parts], LossBatch]] = {
            "pairs": self._pairs,
            "groups": self._groups,
            "unpaired": self._unpaired,
            "responses": self._responses,
        }
        return build[self.kind](parts)

    def _pairs(self, parts: "_Parts") -> PairBatch:
        sides = [
            parts.responses(
                [own[side] for own in self.spans],
                scores=[item.scores[side] for item in self.items if item.scores],
            )
            for side in (0, 1)
        ]
        preferences = [item.preference for item in self.items]
        named = any(item.annotator is not None for item in self.items)
        return PairBatch(
            sides[0],
            sides[1],
            self.whole_totals,
            seeds=None if self.seeds is None else torch.tensor(self.seeds),
            preference=parts.known(preferences),
            annotators=tuple(item.annotator for item in self.items) if named else None,
        )

    def _groups(self, parts: "_Parts") -> GroupBatch:
        group = [place for place, own in enumerate(self.spans) for _ in own]
        responses = parts.responses(
            [span for own in self.spans for span in own],
            scores=[score for item in self.items for score in item.scores or ()],
        )
        return GroupBatch(responses, torch.tensor(group, device=parts.device), self.whole_totals)

    def _unpaired(self, parts: "_Parts") -> UnpairedBatch:
        desirable = torch.tensor([bool(item.desirable) for item in self.items])
        mismatched = [own[1] for own in self.spans if len(own) > 1]
        others = _Parts(parts.policy.detach(), self.reference, None)
        return UnpairedBatch(
            parts.responses([own[0] for own in self.spans]),
            desirable.to(parts.device),
            self.whole_totals,
            mismatched=others.responses(mismatched) if mismatched else None,
        )

    def _responses(self, parts: "_Parts") -> ResponseBatch:
        return ResponseBatch(
            parts.responses([span for own in self.spans for span in own]), self.whole_totals
        )


@dataclass(frozen=True)
class _Parts:
    """Flat values, to be cut into padded responses."""

    policy: Flat
    reference: Flat | None
    log_sum_squares: Flat | None

    @property
    def device(self) -> torch.device:
        return self.policy.device

    def responses(self, spans: Sequence[slice], *, scores: Sequence[float] = ()) -> Responses:
        return Responses(
            policy=_padded(self.policy, spans),
            lengths=torch.tensor([span.stop - span.start for span in spans], device=self.device),
            reference=self._optional(self.reference, spans),
            scores=self.known(scores) if len(scores) == len(spans) else None,
            log_sum_squares=self._optional(self.log_sum_squares, spans),
        )

    def known(self, values: Sequence[float | None]) -> Tensor | None:
        if any(value is None for value in values):
            return None
        return torch.tensor(values, device=self.device, dtype=self.policy.dtype)

    def _optional(self, flat: Flat | None, spans: Sequence[slice]) -> Tensor | None:
        return None if flat is None else _padded(flat.to(self.device), spans)


def step_seeds(items: Sequence[TrainingItem], *, seed: int, step: int) -> tuple[int, ...]:
    """One seed an item and step, whatever micro-batch or process computes it.

    Args:
        items: The items.
        seed: Of the run.
        step: Optimiser steps done so far.

    Returns:
        The seeds. [items].
    """
    return tuple(seed_for(seed, "loss", step, item.index) for item in items)


def _first_response(tree: TokenTree) -> TokenTree:
    return TokenTree(tree.prompt_id, tree.prompt_ids, tree.response_ids[:1])


def _padded(flat: Flat, spans: Sequence[slice]) -> Float[Tensor, "items tokens"]:
    return pad_sequence([flat[span] for span in spans], batch_first=True)


def _totals(kind: ItemKind, spans: Sequence[Sequence[slice]]) -> Totals:
    def tokens(chosen: Any) -> int:
        return sum(span.stop - span.start for span in chosen)

    if kind == "pairs":
        chosen, rejected = zip(*spans, strict=True)
        return Totals(len(spans), tokens(chosen), tokens(rejected))
    if kind == "unpaired":
        return Totals(len(spans), tokens(own[0] for own in spans))
    responses = [span for own in spans for span in own]
    return Totals(len(spans) if kind == "groups" else len(responses), tokens(responses))
