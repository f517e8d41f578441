"""Which items each optimiser step sees; flat log-probs as losses take them, and their means."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from itertools import accumulate, chain, islice, pairwise
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from prefstage.core import seed_for
from prefstage.data.tokenising import TokenTree
from prefstage.losses import (
    GroupBatch,
    LossBatch,
    LossValues,
    PairBatch,
    ResponseBatch,
    Responses,
    Totals,
    UnpairedBatch,
)
from prefstage.training.items import ItemKind, TrainingItem

# A value for every response token of some items: item by item, tree by tree, response by response.
Flat = Float[Tensor, " tokens"]


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
    return torch.randperm(
        items, generator=torch.Generator().manual_seed(seed_for(seed, "order", epoch))
    ).tolist()


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
        self.items, self.batch_size = items, items_per_step
        # Of one epoch at a time, as the steps of it are asked for one by one.
        self._order = lru_cache(maxsize=1)(partial(epoch_order, items, seed=seed, shuffle=shuffle))
        self._epoch = 0

    # By this name, as transformers looks for it also beneath accelerate's skipping of steps.
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
        start = batch * self.batch_size
        return self._order(epoch=epoch)[start : start + self.batch_size]

    def __len__(self) -> int:
        """Steps an epoch."""
        return math.ceil(self.items / self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        """The steps of the current epoch."""
        return map(self.items_of, range(self._epoch * len(self), (self._epoch + 1) * len(self)))


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
        lengths = (len(ids) for tree in self.trees for ids in tree.response_ids)
        spans = (slice(a, b) for a, b in pairwise(accumulate(lengths, initial=0)))
        return tuple(tuple(islice(spans, len(tree.response_ids))) for tree in self.trees)

    @cached_property
    def spans(self) -> tuple[tuple[slice, ...], ...]:
        """For each item, where the tokens of each of its responses stand."""
        trees = iter(self.tree_spans)
        return tuple(
            tuple(chain.from_iterable(islice(trees, len(item.trees)))) for item in self.items
        )

    @cached_property
    def responses(self) -> tuple[slice, ...]:
        """Where the tokens of each response stand, of all items in turn."""
        return tuple(chain.from_iterable(self.spans))

    @property
    def tokens(self) -> int:
        """Response tokens of all items."""
        return self.responses[-1].stop if self.items else 0

    @cached_property
    def whole_totals(self) -> Totals:
        """Totals of the optimiser batch."""
        if self.totals is not None:
            return self.totals
        lengths = [[span.stop - span.start for span in spans] for spans in self.spans]
        number = len(self.responses if self.kind == "responses" else self.items)
        if self.kind == "pairs":
            return Totals(number, *map(sum, zip(*(sides[:2] for sides in lengths), strict=True)))
        if self.kind == "unpaired":  # mismatched responses do not count
            sides = [0, 0]
            for item, (first, *_) in zip(self.items, lengths, strict=True):
                sides[not item.desirable] += first
            return Totals(number, *sides)
        return Totals(number, sum(map(sum, lengths)))

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
        return torch.cat([flat[first] for first, *_ in self.spans]), StepItems(
            self.kind,
            tuple(item.with_responses(item.trees[0].response_ids[0]) for item in self.items),
            totals=self.whole_totals,
        )

    def loss_batch(self, policy: Flat, log_sum_squares: Flat | None = None) -> LossBatch:
        """The batch that a loss takes.

        Args:
            policy: log π of every response token, nats, perhaps with a gradient.
            log_sum_squares: log Σ_v π(v)² of each, if the loss needs it.

        Returns:
            The batch, on the device of `policy`.
        """
        device, totals, items = policy.device, self.whole_totals, self.items
        padded = partial(_padded, policy, self.reference, log_sum_squares)
        if self.kind == "responses":
            return ResponseBatch(padded(self.responses), totals)
        if self.kind == "groups":
            return GroupBatch(
                padded(self.responses, [score for item in items for score in item.scores or ()]),
                torch.tensor(
                    [position for position, spans in enumerate(self.spans) for _ in spans],
                    device=device,
                ),
                totals,
            )
        if self.kind == "unpaired":
            mismatched = [spans[1] for spans in self.spans if len(spans) > 1]
            # KTO's baseline is a constant to the optimiser: no gradient through mismatched ones.
            return UnpairedBatch(
                padded([spans[0] for spans in self.spans]),
                torch.tensor([bool(item.desirable) for item in items], device=device),
                totals,
                mismatched=_padded(policy.detach(), self.reference, None, mismatched)
                if mismatched
                else None,
                density_ratio=_known([item.density_ratio for item in items], policy),
            )
        chosen, rejected = (
            padded(
                [spans[side] for spans in self.spans],
                [item.scores[side] for item in items if item.scores],
            )
            for side in (0, 1)
        )
        annotators = tuple(item.annotator for item in items)
        return PairBatch(
            chosen,
            rejected,
            totals,
            seeds=None if self.seeds is None else torch.tensor(self.seeds),
            preference=_known([item.preference for item in items], policy),
            annotators=annotators if set(annotators) != {None} else None,
            gold=None if items[0].gold is None else padded([spans[2] for spans in self.spans]),
        )


# Losses take rectangles; zeros behind the ends add nothing to sums over tokens.
def _padded(
    policy: Flat,
    reference: Flat | None,
    log_sum_squares: Flat | None,
    spans: Sequence[slice],
    scores: Sequence[float] = (),
) -> Responses:
    def padded(flat: Flat) -> Float[Tensor, "items tokens"]:
        flat = flat.to(policy.device)
        return torch.nn.utils.rnn.pad_sequence([flat[span] for span in spans], batch_first=True)

    return Responses(
        policy=padded(policy),
        lengths=torch.tensor([span.stop - span.start for span in spans], device=policy.device),
        reference=None if reference is None else padded(reference),
        scores=_known(scores, policy) if len(scores) == len(spans) else None,
        log_sum_squares=None if log_sum_squares is None else padded(log_sum_squares),
    )


# All or none: losses have no use for a tensor with holes.
def _known(values: Sequence[float | None], like: Tensor) -> Tensor | None:
    return None if None in values else like.new_tensor(values)


# --- Metrics -------------------------------------------------------------------------------------


class Scored(NamedTuple):
    """Log-probs of all items of a step, the same on every process.

    Attributes:
        log_probs: log π of every response token, nats, without gradient.
        log_sum_squares: log Σ_v π(v)² of each, if the loss needs it.
    """

    log_probs: Flat
    log_sum_squares: Flat | None = None


class Means:
    """Sums and counts of metrics, so that a mean is over items, whatever the batches.

    Attributes:
        totals: Sum and count of each metric by its name.
    """

    def __init__(self) -> None:
        self.totals = dict[str, tuple[float, float]]()

    def count(self, name: str, total: float, number: float) -> None:
        """Take the sum of so many values; or an amount and its seconds, for a rate."""
        before = self.totals.get(name, (0.0, 0))
        self.totals[name] = before[0] + total, before[1] + number

    def add(self, items: StepItems, values: LossValues) -> None:
        """Take the losses of some items and their metrics."""
        decided = torch.tensor([not item.tied for item in items.items], device=values.values.device)
        for name, column in {"loss": values.values, **values.metrics}.items():
            # Pairs whose raters are split evenly have no right order.
            known = column[decided] if name == "rewards/accuracies" else column
            # In float64: thousands of float32 values would lose the last of what each adds.
            self.count(name, float(known.double().sum()), known.numel())

    def take(self) -> dict[str, float]:
        """The means so far; then begin anew."""
        totals, self.totals = self.totals, {}
        return {name: total / number for name, (total, number) in totals.items() if number}
