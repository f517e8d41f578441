"""Metrics under TRL's names: values of each item, and their means over items."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from prefstage.losses import LossMix, LossValues
from prefstage.training.batches import StepItems
from prefstage.training.step import Scored

ItemMetrics = dict[str, Tensor]
"""For each metric its value for each item that has one."""


class Means:
    """Sums and counts of metrics, so that a mean is over items, whatever the batches."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = defaultdict(float)
        self._counts: dict[str, int] = defaultdict(int)

    def add(self, metrics: Mapping[str, Tensor]) -> None:
        """Take the values of some items."""
        for name, values in metrics.items():
            self._sums[name] += float(values.double().sum())
            self._counts[name] += values.numel()

    def state(self) -> dict[str, tuple[float, int]]:
        """Sum and count of each metric, for a checkpoint."""
        return {name: (self._sums[name], count) for name, count in self._counts.items()}

    def restore(self, state: Mapping[str, Sequence[float]]) -> None:
        """Go on from what `state` gave."""
        self._sums.clear()
        self._counts.clear()
        for name, (total, count) in state.items():
            self._sums[name], self._counts[name] = float(total), int(count)

    def take(self) -> dict[str, float]:
        """The means so far; then begin anew."""
        means = {name: self._sums[name] / n for name, n in self._counts.items() if n}
        self._sums.clear()
        self._counts.clear()
        return means


class Speed:
    """Items and tokens a second of forward and backward passes."""

    def __init__(self) -> None:
        self._seconds, self._items, self._tokens = 0.0, 0, 0

    def add(self, *, items: int, tokens: int, seconds: float) -> None:
        """Take down a step."""
        self._seconds += seconds
        self._items += items
        self._tokens += tokens

    def take(self) -> dict[str, float]:
        """The rates so far; then begin anew."""
        if not self._items:
            return {}
        rates = {
            "items_per_second": self._items / self._seconds,
            "tokens_per_second": self._tokens / self._seconds,
        }
        self._seconds, self._items, self._tokens = 0.0, 0, 0
        return rates


def item_metrics(
    items: StepItems, scored: Scored, values: LossValues, loss: LossMix
) -> ItemMetrics:
    """Metrics of items, under TRL's names where it has them.

    Args:
        items: The items.
        scored: Their log-probs.
        values: Their loss values.
        loss: The loss; its β scales rewards.

    Returns:
        "loss", and as the kind of data has it: logps, lengths, and with a reference rewards
        of the chosen and the rejected side, their margin and accuracy.
    """
    found: ItemMetrics = {"loss": values.values.detach()}
    for name, value in values.metrics.items():
        found[name] = value.detach().reshape(-1)
    lengths = [[span.stop - span.start for span in own] for own in items.spans]
    sums = [_sums(scored.log_probs, own) for own in items.spans]
    if items.kind == "pairs":
        found |= _by_side(sums, lengths, ("chosen", "rejected"))
    elif items.kind == "unpaired":
        sides = ["chosen" if item.desirable else "rejected" for item in items.items]
        found |= _labelled(sums, lengths, sides)
    else:
        found["logps"] = torch.cat(sums)
        found["lengths"] = torch.tensor([float(n) for own in lengths for n in own])
    return found


def _sums(flat: Tensor, spans: Sequence[slice]) -> Tensor:
    return torch.stack([flat[span].sum() for span in spans])


def _by_side(
    sums: Sequence[Tensor], lengths: Sequence[Sequence[int]], sides: Sequence[str]
) -> ItemMetrics:
    found = {}
    for place, side in enumerate(sides):
        found[f"logps/{side}"] = torch.stack([own[place] for own in sums])
        found[f"lengths/{side}"] = torch.tensor([float(own[place]) for own in lengths])
    return found


def _labelled(sums: Any, lengths: Any, sides: Sequence[str]) -> ItemMetrics:
    found = {}
    for side in dict.fromkeys(sides):
        own = [place for place, each in enumerate(sides) if each == side]
        found[f"logps/{side}"] = torch.stack([sums[place][0] for place in own])
        found[f"lengths/{side}"] = torch.tensor([float(lengths[place][0]) for place in own])
    return found
