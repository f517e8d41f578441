"""Which items each optimiser step sees, and how flat log-probs become the batches of losses."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, islice, pairwise
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Sampler

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


# --- The order of training -----------------------------------------------------------------------


def epoch_order(items: int, *, seed: int, epoch: int, shuffle: bool = True) -> list[int]:
    """The order of all items in one epoch.

    Args:
        items: How many there are.
        seed: Of the run.
        epoch: From 0.
        shuffle: False keeps the order of the set.

    Returns:
        Every index once. It depends on the arguments alone: neither on the number of
        processes nor on any random state.
    """
    if not shuffle:
        return list(range(items))
    generator = torch.Generator().manual_seed(seed_for(seed, "order", epoch))
    return torch.randperm(items, generator=generator).tolist()


class StepSampler(Sampler[list[int]]):
    """The items of each optimiser step of an epoch, over all processes.

    A batch sampler: it yields one list of indices a step. The last list of an epoch may
    be shorter, and is never left out.

    Args:
        items: How many items the set has.
        items_per_step: Items an optimiser step, over all processes.
        seed: Of the order.
        shuffle: False keeps the order of the set.
    """

    drop_last = False

    def __init__(self, items: int, items_per_step: int, *, seed: int, shuffle: bool = True) -> None:
        self.items = items
        self.batch_size = items_per_step
        self._seed = seed
        self._shuffle = shuffle
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order comes next."""
        self._epoch = epoch

    def items_of(self, step: int) -> list[int]:
        """The items of an optimiser step.

        Args:
            step: From 0, counted over all epochs.

        Returns:
            What iterating gives when that step comes.
        """
        epoch, batch = divmod(step, len(self))
        order = epoch_order(self.items, seed=self._seed, epoch=epoch, shuffle=self._shuffle)
        return order[batch * self.batch_size : (batch + 1) * self.batch_size]

    def __len__(self) -> int:
        """Steps an epoch."""
        return math.ceil(self.items / self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        """The steps of the current epoch."""
        order = epoch_order(self.items, seed=self._seed, epoch=self._epoch, shuffle=self._shuffle)
        for start in range(0, self.items, self.batch_size):
            yield order[start : start + self.batch_size]


class StepLoader(DataLoader[Any]):
    """The optimiser steps of an epoch: a batch names all items of a step, of all processes."""

    def __init__(self, sampler: StepSampler) -> None:
        # A generator for it alone: iterating draws a number, and must not draw it from the global
        # one, whose state a resumed run would then have to reproduce.
        super().__init__(
            cast("Any", range(sampler.items)),
            batch_sampler=sampler,
            collate_fn=as_step,
            generator=torch.Generator(),
        )

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose steps come next."""
        cast("StepSampler", self.batch_sampler).set_epoch(epoch)


def as_step(positions: list[int]) -> dict[str, Any]:
    """A step's items as the batch that the Trainer hands on."""
    return {"items": positions}


# --- The items of a step -------------------------------------------------------------------------


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
        return self.kind != "unpaired" or all(len(spans) == 1 for spans in self.spans)

    def learning(self, flat: Flat) -> tuple[Flat, "StepItems"]:
        """Leave out the responses that carry no gradient.

        Args:
            flat: Values of all items.

        Returns:
            Values of what is left, and the items with it alone.
        """
        if self.all_learn:
            return flat, self
        items = []
        for item in self.items:
            tree = item.trees[0]
            first = TokenTree(tree.prompt_id, tree.prompt_ids, tree.response_ids[:1])
            items.append(replace(item, trees=(first,)))
        kept = torch.cat([flat[spans[0]] for spans in self.spans])
        return kept, StepItems(self.kind, tuple(items), totals=self.whole_totals)

    def loss_batch(self, policy: Flat, log_sum_squares: Flat | None = None) -> LossBatch:
        """The batch that a loss takes.

        Args:
            policy: log π of every response token, nats, perhaps with a gradient.
            log_sum_squares: log Σ_v π(v)² of each, if the loss needs it.

        Returns:
            The batch, on the device of `policy`.
        """
        cut = _Padding(policy, self.reference, log_sum_squares)
        every = [span for spans in self.spans for span in spans]
        if self.kind == "pairs":
            return self._pairs(cut)
        if self.kind == "unpaired":
            return self._unpaired(cut)
        if self.kind == "responses":
            return ResponseBatch(cut.responses(every), self.whole_totals)
        group = [position for position, spans in enumerate(self.spans) for _ in spans]
        scores = [score for item in self.items for score in item.scores or ()]
        indices = torch.tensor(group, device=policy.device)
        return GroupBatch(cut.responses(every, scores=scores), indices, self.whole_totals)

    def _pairs(self, cut: "_Padding") -> PairBatch:
        sides = [
            cut.responses(
                [spans[side] for spans in self.spans],
                scores=[item.scores[side] for item in self.items if item.scores],
            )
            for side in (0, 1)
        ]
        annotators = tuple(item.annotator for item in self.items)
        return PairBatch(
            sides[0],
            sides[1],
            self.whole_totals,
            seeds=None if self.seeds is None else torch.tensor(self.seeds),
            preference=cut.known([item.preference for item in self.items]),
            annotators=annotators if set(annotators) != {None} else None,
        )

    def _unpaired(self, cut: "_Padding") -> UnpairedBatch:
        desirable = torch.tensor([bool(item.desirable) for item in self.items])
        mismatched = [spans[1] for spans in self.spans if len(spans) > 1]
        # KTO's baseline is a constant to the optimiser: no gradient through these.
        constant = _Padding(cut.policy.detach(), self.reference, None)
        return UnpairedBatch(
            cut.responses([spans[0] for spans in self.spans]),
            desirable.to(cut.policy.device),
            self.whole_totals,
            mismatched=constant.responses(mismatched) if mismatched else None,
        )


# Flat values, to be cut into padded responses.
@dataclass(frozen=True)
class _Padding:
    policy: Flat
    reference: Flat | None
    log_sum_squares: Flat | None

    def responses(self, spans: Sequence[slice], *, scores: Sequence[float] = ()) -> Responses:
        device = self.policy.device
        return Responses(
            policy=_padded(self.policy, spans, device),
            lengths=torch.tensor([span.stop - span.start for span in spans], device=device),
            reference=_padded(self.reference, spans, device),
            scores=self.known(scores) if len(scores) == len(spans) else None,
            log_sum_squares=_padded(self.log_sum_squares, spans, device),
        )

    def known(self, values: Sequence[float | None]) -> Tensor | None:
        """The values, or None if one is unknown."""
        if any(value is None for value in values):
            return None
        return torch.tensor(values, device=self.policy.device, dtype=self.policy.dtype)


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


# [items, tokens], zeros behind the ends; None stays None.
def _padded(flat: Any, spans: Sequence[slice], device: torch.device) -> Any:
    if flat is None:
        return None
    moved = flat.to(device)
    return pad_sequence([moved[span] for span in spans], batch_first=True)


def _totals(kind: ItemKind, spans: Sequence[Sequence[slice]]) -> Totals:
    lengths = [[span.stop - span.start for span in item] for item in spans]
    if kind == "pairs":
        chosen, rejected = map(sum, zip(*lengths, strict=True))
        return Totals(len(spans), chosen, rejected)
    if kind == "unpaired":  # mismatched responses do not count
        return Totals(len(spans), sum(item[0] for item in lengths))
    number = len(spans) if kind == "groups" else sum(map(len, spans))
    return Totals(number, sum(map(sum, lengths)))
