"""The order of training: which items each optimiser step sees, from the seed and the epoch."""

import math
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch.utils.data import DataLoader, Sampler

from prefstage.core.hashing import seed_for


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

    def __init__(self, items: int, items_per_step: int, *, seed: int, shuffle: bool = True) -> None:
        self.items = items
        self.batch_size = items_per_step
        self.drop_last = False
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
    """The optimiser steps of an epoch: each batch names all items of a step, of all processes."""

    def __init__(self, sampler: StepSampler) -> None:
        # A generator of its own: iterating draws a number, which must not be the global one.
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
