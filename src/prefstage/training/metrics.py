"""Metrics under TRL's names: values of each item, and their means over items."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from prefstage.losses import LossMix, LossValues
from prefstage.training.batches import StepItems
from prefstage.training.step import Scored

TIE = 2.0**-17
"""Margins below this share of what they are differences of are rounding: 64 times float32's."""

HALF = 0.5

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
    found |= {name: value.detach().reshape(-1) for name, value in values.metrics.items()}
    columns = {
        "logps": _sums(scored.log_probs, items),
        "lengths": torch.tensor([float(s.stop - s.start) for own in items.spans for s in own]),
    }
    if items.kind in ("pairs", "unpaired"):
        ratios = scored.log_probs - items.reference if items.reference is not None else None
        rewards = scored.log_probs if ratios is None else ratios
        columns["rewards"] = reward_scale(loss) * _sums(rewards, items)
    if items.kind == "pairs":
        chosen, rejected = (columns["rewards"][side::2] for side in (0, 1))
        found["rewards/margins"] = chosen - rejected
        accuracies = reward_accuracies(chosen - rejected, _size(columns, loss))
        decided = torch.tensor([not item.tied for item in items.items], device=accuracies.device)
        found["rewards/accuracies"] = accuracies[decided]  # raters' ties have no right order
    for side, places in _sides(items).items():
        found |= {f"{name}{side}": values[places] for name, values in columns.items()}
    return found


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


def _size(columns: Mapping[str, Tensor], loss: LossMix) -> Tensor:
    """Of each pair the size of what its margin is a difference of."""
    sizes = reward_scale(loss) * columns["logps"].abs()
    return sizes[0::2] + sizes[1::2]


def _sums(flat: Tensor, items: StepItems) -> Tensor:
    """Sum over each response's tokens, in turn."""
    sizes = [span.stop - span.start for own in items.spans for span in own]
    return torch.stack([part.sum() for part in torch.split(flat, sizes)])


def _sides(items: StepItems) -> dict[str, list[int]]:
    """Which responses stand on which side, by the end of a metric's name."""
    firsts = list(accumulate(map(len, items.spans), initial=0))
    if items.kind == "pairs":
        return {"/chosen": firsts[:-1], "/rejected": [first + 1 for first in firsts[:-1]]}
    if items.kind == "unpaired":
        sides: dict[str, list[int]] = {}
        for first, item in zip(firsts, items.items, strict=False):
            sides.setdefault("/chosen" if item.desirable else "/rejected", []).append(first)
        return sides
    return {"": list(range(firsts[-1]))}
