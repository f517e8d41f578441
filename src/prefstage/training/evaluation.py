"""Evaluation: every item of a set once, means over items and never over batches."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from prefstage.losses import LossState
from prefstage.training.batches import StepItems
from prefstage.training.items import ItemSet
from prefstage.training.metrics import Means, item_metrics
from prefstage.training.step import Scored, StepRunner

ITEMS_A_CHUNK = 512
"""Items planned together: enough to fill micro-batches, few enough to plan at once."""


@dataclass(frozen=True)
class EvaluationSet:
    """A set to be evaluated, in the form in which the Trainer hands it about.

    Attributes:
        dataset: The items.
        chunks: Their positions, some hundreds at a time.
    """

    dataset: ItemSet

    @property
    def chunks(self) -> list[range]:
        """Positions of the items, in the order of the set."""
        count = len(self.dataset)
        return [
            range(start, min(start + ITEMS_A_CHUNK, count))
            for start in range(0, count, ITEMS_A_CHUNK)
        ]

    def __len__(self) -> int:
        """Number of chunks."""
        return len(self.chunks)

    def __iter__(self) -> Iterator[range]:
        """The chunks."""
        return iter(self.chunks)


def score_set(
    runner: StepRunner, model: Any, items: StepItems, *, tick: Callable[[], object]
) -> Scored:
    """Log-probs of every response of a set, computed over all processes.

    Args:
        runner: Computes them.
        model: The policy in evaluation mode.
        items: All items of the set.
        tick: Called after each chunk.

    Returns:
        The same on every process.
    """
    found = []
    for start in range(0, len(items.items), ITEMS_A_CHUNK):
        positions = range(start, min(start + ITEMS_A_CHUNK, len(items.items)))
        found.append(runner.score(model, items.part(positions)))
        tick()
    squares = [each.log_sum_squares for each in found if each.log_sum_squares is not None]
    return Scored(
        torch.cat([each.log_probs for each in found]), torch.cat(squares) if squares else None
    )


def evaluate_items(
    runner: StepRunner, items: StepItems, scored: Scored, state: LossState
) -> dict[str, float]:
    """Metrics of a scored set: means over its items.

    A loss whose values depend on one another sees the whole set as one batch.

    Args:
        runner: Knows the loss.
        items: All items of the set.
        scored: Their log-probs.
        state: The loss's state; it does not change.

    Returns:
        Mean of each metric, "loss" among them.
    """
    means = Means()
    count = len(items.items)
    size = count if runner.loss.whole_batch else ITEMS_A_CHUNK
    for start in range(0, count, size):
        positions = range(start, min(start + size, count))
        part = items.part(positions)
        squares = scored.log_sum_squares
        own = Scored(
            items.take(scored.log_probs, positions),
            None if squares is None else items.take(squares, positions),
        )
        values = runner.values(part, own, state)
        means.add(item_metrics(part, own, values, runner.loss))
    return means.take()
