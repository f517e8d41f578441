"""Metrics under TRL's names: values of items, and their means over items, never over batches."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from prefstage.losses import LossMix, LossState, LossValues
from prefstage.training.batches import StepItems
from prefstage.training.items import ItemSet
from prefstage.training.step import Scored, StepRunner

TIE = 2.0**-17
"""Margins below this share of what they are differences of are rounding: 64 times float32's."""

HALF = 0.5

ITEMS_PER_CHUNK = 512
"""Items planned together: enough to fill micro-batches, few enough to plan at once."""

ItemMetrics = dict[str, Tensor]
"""For each metric its value for each item that has one."""


class Means:
    """Sums and counts of metrics, so that a mean is over items, whatever the batches."""

    def __init__(self) -> None:
        self._totals: dict[str, list[float]] = {}

    def add(self, metrics: Mapping[str, Tensor]) -> None:
        """Take the values of some items."""
        for name, values in metrics.items():
            total = self._totals.setdefault(name, [0.0, 0])
            # In float64: thousands of float32 values would lose the last of what each adds.
            total[0] += float(values.double().sum())
            total[1] += values.numel()

    def state(self) -> dict[str, tuple[float, int]]:
        """Sum and count of each metric, for a checkpoint."""
        return {name: (total, int(count)) for name, (total, count) in self._totals.items()}

    def restore(self, state: Mapping[str, Sequence[float]]) -> None:
        """Go on from what `state` returned."""
        self._totals = {name: [float(total), int(n)] for name, (total, n) in state.items()}

    def take(self) -> dict[str, float]:
        """The means so far; then begin anew."""
        means = {name: total / n for name, (total, n) in self._totals.items() if n}
        self._totals = {}
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
    metrics: ItemMetrics = {"loss": values.values.detach()}
    metrics |= {name: value.detach().reshape(-1) for name, value in values.metrics.items()}
    columns = {
        "logps": _sums(scored.log_probs, items),
        "lengths": torch.tensor([float(s.stop - s.start) for spans in items.spans for s in spans]),
    }
    scale = reward_scale(loss)
    if items.kind in ("pairs", "unpaired"):
        reference = items.reference
        rewards = scored.log_probs if reference is None else scored.log_probs - reference
        columns["rewards"] = scale * _sums(rewards, items)
    if items.kind == "pairs":
        margins = columns["rewards"][0::2] - columns["rewards"][1::2]
        sizes = scale * columns["logps"].abs()
        accuracies = reward_accuracies(margins, sizes[0::2] + sizes[1::2])
        decided = torch.tensor([not item.tied for item in items.items], device=accuracies.device)
        metrics["rewards/margins"] = margins
        metrics["rewards/accuracies"] = accuracies[decided]  # raters' ties have no right order
    for side, rows in _sides(items).items():
        metrics |= {f"{name}{side}": column[rows] for name, column in columns.items()}
    return metrics


def reward_accuracies(margins: Tensor, size: Tensor) -> Tensor:
    """How often the chosen response's reward is the larger; what rounding decides counts ½.

    ``1[m > εs] + ½·1[|m| <= εs]``, with ε = `TIE`. Where the policy is still its reference,
    margins are rounding of the forward passes, and a strict comparison gives any number.

    Args:
        margins: m, reward of the chosen response less that of the rejected one. [pairs].
        size: s, sum of the rewards' own terms, β · (|log π(y_w|x)| + |log π(y_l|x)|), whose
            rounding the margin carries. [pairs], >= 0.

    Returns:
        1, ½ or 0. [pairs].

    Source:
        Chen et al. 2024, arXiv:2405.19534, Remark 2.5. Departure: a tie counts ½, as in
        `prefstage.diagnosing.reward_accuracy`; in TRL, 0.
    """
    tied = margins.abs() <= TIE * size
    return torch.where(tied, HALF, (margins > 0).to(margins.dtype))


def reward_scale(loss: LossMix) -> float:
    """β of the loss's first term that has one (τ for IPO): rewards are β · log-ratio.

    Args:
        loss: The loss.

    Returns:
        β, 1/nats; 1 if no term has one.
    """
    for term in loss.resolved():
        for name in ("beta", "tau"):
            if name in term:
                return float(term[name])
    return 1.0


# Sum over each response's tokens, in turn.
def _sums(flat: Tensor, items: StepItems) -> Tensor:
    sizes = [span.stop - span.start for spans in items.spans for span in spans]
    return torch.stack([part.sum() for part in torch.split(flat, sizes)])


# Which responses stand on which side, by the end of a metric's name.
def _sides(items: StepItems) -> dict[str, list[int]]:
    firsts = list(accumulate(map(len, items.spans), initial=0))
    if items.kind == "pairs":
        return {"/chosen": firsts[:-1], "/rejected": [first + 1 for first in firsts[:-1]]}
    if items.kind == "unpaired":
        sides: dict[str, list[int]] = defaultdict(list)
        for first, item in zip(firsts, items.items, strict=False):
            sides["/chosen" if item.desirable else "/rejected"].append(first)
        return sides
    return {"": list(range(firsts[-1]))}


# --- Evaluation ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class EvaluationSet:
    """A set to be evaluated, in the form in which the Trainer hands it about: as chunks.

    Attributes:
        dataset: The items.
    """

    dataset: ItemSet

    def __len__(self) -> int:
        """Number of chunks."""
        return len(_chunks(len(self.dataset)))

    def __iter__(self) -> Iterator[range]:
        """Positions of the items, some hundreds at a time."""
        return iter(_chunks(len(self.dataset)))


def evaluate_items(
    runner: StepRunner,
    model: Any,
    items: StepItems,
    state: LossState,
    *,
    tick: Callable[[], object],
) -> dict[str, float]:
    """Metrics of a set: means over its items, every item computed once.

    A loss whose values depend on one another sees the whole set as one batch.

    Args:
        runner: Computes them.
        model: The policy in evaluation mode.
        items: All items of the set.
        state: The loss's state; it does not change.
        tick: Called after each chunk.

    Returns:
        Mean of each metric, "loss" among them.
    """
    scored, means, count = list[Scored](), Means(), len(items.items)

    def add(part: StepItems, scored: Scored) -> None:
        values = runner.values(part, scored, state)
        means.add(item_metrics(part, scored, values, runner.loss))

    for positions in _chunks(count):
        part = items.part(positions)
        scored.append(runner.score(model, part))
        if not runner.loss.whole_batch:
            add(part, scored.pop())
        tick()
    if scored:
        squares = [part.log_sum_squares for part in scored if part.log_sum_squares is not None]
        flat = torch.cat([part.log_probs for part in scored])
        add(items, Scored(flat, torch.cat(squares) if squares else None))
    return means.take()


def _chunks(count: int) -> list[range]:
    starts = range(0, count, ITEMS_PER_CHUNK)
    return [range(start, min(start + ITEMS_PER_CHUNK, count)) for start in starts]
