"""Gradients of a recipe's objective, summed over data on coordinates of the trained weights."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from prefstage.core import seed_for
from prefstage.losses import LossMix
from prefstage.training import PreferenceTrainer
from prefstage.training.compat import ScoringCalls
from prefstage.training.items import ItemSet
from prefstage.training.step import StepRunner

Coordinates = Float[Tensor, " coordinates"]
"""A value for each chosen coordinate of the trained weights."""

MOST_COORDINATES = 1 << 20


class Basis:
    """The coordinates of a policy's trained weights on which directions are kept.

    All of them while they are few. Of more, a fixed random share of every weight: an inner
    product over n of them, weighted by how many each stands for, has no bias, and a relative
    error of about √(κ/n)/c with c the cosine and κ the tails (some 2e-3/c for a million, far
    below what prompts leave open; an adapter's training has no memory for many more).
    Unlike a random projection it keeps coordinates apart, which Adam's division by each
    coordinate's own root mean square needs; and memory no longer depends on the model.

    Args:
        model: The policy, with the weights that training would change requiring gradients.
        most: Largest number of coordinates, at least one a weight. >= 1.
        seed: Of the draw.

    Attributes:
        weights: How many coordinates each chosen one stands for. [coordinates], >= 1.
    """

    def __init__(self, model: Any, *, most: int = MOST_COORDINATES, seed: int = 0) -> None:
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        total = sum(parameter.numel() for _, parameter in named)
        self._parameters: list[tuple[Any, Tensor]] = []
        for name, parameter in named:
            size = parameter.numel()
            index = torch.arange(size)
            if total > most:
                share = max(1, size * most // total)
                generator = torch.Generator().manual_seed(seed_for(seed, "coordinates", name))
                index = torch.randint(size, (share,), generator=generator).sort().values
            self._parameters.append((parameter, index))
        self.weights: Coordinates = torch.cat(
            [torch.full((len(i),), p.numel() / len(i)) for p, i in self._parameters]
        )

    def __len__(self) -> int:
        """Number of coordinates."""
        return len(self.weights)

    def take_gradient(self) -> Coordinates:
        """The gradient on the coordinates, on the CPU, taken out of the weights."""
        parts = [
            torch.zeros(len(index))
            if parameter.grad is None
            else parameter.grad.detach().reshape(-1)[index.to(parameter.grad.device)].float().cpu()
            for parameter, index in self._parameters
        ]
        for parameter, _ in self._parameters:
            parameter.grad = None
        return torch.cat(parts)

    def dot(self, a: Tensor, b: Tensor) -> Tensor:
        """Inner product over all trained weights, estimated from the coordinates.

        Args:
            a: [..., coordinates].
            b: [..., coordinates], of a shape that goes with it.

        Returns:
            [...].
        """
        return ((a * self.weights).double() * b.double()).sum(-1)

    def norm(self, a: Tensor) -> Tensor:
        """Length of a direction over all trained weights. [...]."""
        return self.dot(a, a).clamp_min(0).sqrt()


@dataclass(frozen=True)
class Drift:
    """Descent directions -∇L of many batches, summed by groups.

    Groups exist to say how sure a mean is: leaving each out in turn is the jackknife.

    Attributes:
        sums: Σ -∇L over the batches of each group. [groups, coordinates].
        squares: Σ (∇L)² of the same. [groups, coordinates].
        counts: Batches of each group, >= 1. [groups].
        size: Items a batch.
    """

    sums: Float[Tensor, "groups coordinates"]
    squares: Float[Tensor, "groups coordinates"]
    counts: Float[Tensor, " groups"]
    size: int

    @cached_property
    def mean(self) -> Coordinates:
        """The mean descent direction. [coordinates]."""
        return self.sums.sum(0) / self.counts.sum()

    def without(self, group: int) -> "Drift":
        """The same without one group's batches."""
        kept = torch.arange(len(self.counts)) != group
        return Drift(self.sums[kept], self.squares[kept], self.counts[kept], self.size)

    def mean_square(self, batch: int) -> Coordinates:
        """E[g²] of the gradient of a batch of so many items.

        The mean of squares has two parts, the squared mean and the variance, and only the
        variance depends on the batch: it falls as one over its size. So batches that are smaller
        than the recipe's, of which the same data gives more, estimate both better. With batches
        of the recipe's own size this is the plain mean of squares.

        Args:
            batch: Items of an optimiser step of the recipe, >= 1.

        Returns:
            [coordinates].
        """
        count, mean = self.counts.sum(), self.mean
        if count == 1:
            return self.squares.sum(0)
        variance = (self.squares.sum(0) / count - mean**2).clamp_min(0) * count / (count - 1)
        return (mean**2 - variance / count).clamp_min(0) + variance * self.size / batch


class Gradients:
    """Computes gradients of a recipe's objective on data, with the weights left as they are.

    Args:
        trainer: A trainer of the recipe, on any data; it is not trained.
        basis: Coordinates to keep.
    """

    def __init__(self, trainer: PreferenceTrainer, basis: Basis) -> None:
        self.trainer, self.basis = trainer, basis

    def drift(
        self,
        items: ItemSet,
        batches: Sequence[Sequence[int]],
        *,
        groups: int,
        loss: LossMix | None = None,
        tick: Callable[[], None] | None = None,
    ) -> Drift:
        """Sum -∇L over batches, in groups of consecutive ones.

        Args:
            items: Encoded by the trainer's encoder; their references, if the trainer's loss needs
                any, are known to `trainer.references`.
            batches: Positions of each batch's items, of about equal numbers.
            groups: How many groups; fewer if there are fewer batches.
            loss: What to minimise in place of the trainer's loss.
            tick: Called after each batch.

        Returns:
            The sums.
        """
        groups = min(groups, len(batches))
        sums = torch.zeros(groups, len(self.basis))
        squares, counts = torch.zeros_like(sums), torch.zeros(groups)
        trainer, runner = self.trainer, self.trainer.runner
        known = trainer.references.of(items) if loss is None else None
        if loss is not None:
            runner = StepRunner(
                runner.scorer, trainer.accelerator, loss, token_budget=runner.token_budget
            )
        state = runner.loss.start_state()
        with self._prepared():
            for number, positions in enumerate(batches):
                step = trainer.step_items(items, positions, known, step=number)
                state = runner.train(trainer.model, step, state).values.state
                # Without a wrapper, each process has its share of the gradient, and their mean is
                # the whole.
                shares = self.basis.take_gradient().to(trainer.accelerator.device)
                descent = -trainer.accelerator.reduce(shares, "mean").cpu()
                group = number * groups // len(batches)
                sums[group] += descent
                squares[group] += descent**2
                counts[group] += 1
                if tick:
                    tick()
        return Drift(sums, squares, counts, max(map(len, batches)))

    @contextmanager
    def _prepared(self) -> Iterator[None]:
        model = self.trainer.model
        model.zero_grad(set_to_none=True)
        before = [module for module in model.modules() if module.training]
        model.train()
        try:
            with ScoringCalls(model).installed():
                yield
        finally:
            model.zero_grad(set_to_none=True)
            model.eval()
            for module in before:
                module.training = True


def halves_agree(drift: Drift, basis: Basis) -> float:
    """Cosine between the mean directions of two halves of the data, in [-1, 1].

    Args:
        drift: In two groups at least: every second one against the others.
        basis: Its coordinates.

    Returns:
        How far the direction can be trusted: 0 is noise alone.
    """
    first, second = drift.sums[::2].sum(0), drift.sums[1::2].sum(0)
    norms = basis.norm(first) * basis.norm(second)
    return float(basis.dot(first, second) / norms) if norms else 0.0
