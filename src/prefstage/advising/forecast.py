"""The forecast: what a step on a data set would gain, from gradients alone, without training."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from prefstage.core import InputError, seed_for
from prefstage.data import CandidateSet, PairSet
from prefstage.losses import LossBatch, LossMix, LossState, LossTerm, LossValues, Responses
from prefstage.losses.base import Items, StatelessLoss
from prefstage.training import PreferenceTrainer
from prefstage.training.compat import ScoringCalls
from prefstage.training.datasets import item_set_of
from prefstage.training.items import ItemSet
from prefstage.training.policy import START
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
        training = [module for module in model.modules() if module.training]
        model.train()
        try:
            with ScoringCalls(model).installed():
                yield
        finally:
            model.zero_grad(set_to_none=True)
            model.eval()
            for module in training:
                module.training = True


GROUPS = 8
"""Parts of prompts and batches that the jackknife leaves out in turn."""

_TARGET_PROMPTS = 8  # a batch

Family = Literal["adam", "sgd", "sign"]
"""How an optimiser turns gradients into a step."""


class ExpectedReward(
    StatelessLoss,
    name="expected_reward",
    formula="-(1/m) Σ_i (u_i - mean_{j≠i} u_j) log π(y_i|x)",
    source="Kool et al. 2019 (REINFORCE with a leave-one-out baseline)",
    data=frozenset({"groups"}),
    needs=frozenset({"scores"}),
):
    """Its descent direction is an unbiased estimate of ∇J, J the expected judged quality.

    Where u is an answer's mean P(wins) against the prompt's other answers, J is the win rate
    over the start, whose answers they are.
    """

    compared: bool = Field(default=False, description="u is a mean P(wins) over the others.")

    def _items(self, batch: Any) -> Items:
        scores, group = batch.responses.scores.detach(), batch.group
        count = torch.bincount(group).to(scores)
        total = torch.zeros_like(count).index_add(0, group, scores)
        # Probabilities of winning against one another have the same mean, 1/2, whatever the
        # answers, and the mean of the others' holds 1 - P of this answer itself: as a baseline it
        # would make the gradient m/(m - 1) times too long.
        left_out = 0 if self.compared else 1
        others = (total[group] - left_out * scores) / (count[group] - left_out)
        shares = (scores - others) / count[group] * batch.responses.log_probs
        return -torch.zeros_like(count).index_add(0, group, shares)


class _AtStart(LossMix):
    """A loss whose reference is the policy: the pass that makes gradients makes its log-probs."""

    @override
    def compute(self, batch: LossBatch, state: LossState) -> LossValues:
        made: dict[str, Any] = {
            field.name: replace(value, reference=value.policy.detach())
            for field in fields(batch)
            if isinstance(value := getattr(batch, field.name), Responses)
        }
        return super().compute(replace(batch, **made), state)


def family_of(optimizer: str) -> Family:
    """How an optimiser of the Trainer turns gradients into a step.

    Args:
        optimizer: Its name, such as "adamw_torch".

    Returns:
        "sgd": along the gradient; "sign": along its signs (Lion); "adam": each coordinate by
        its own root mean square, which all others do, exactly or by rows and columns.
    """
    return "sgd" if "sgd" in optimizer else "sign" if "lion" in optimizer else "adam"


def step_direction(
    drift: Drift, basis: Basis, *, family: Family, batch: int, epsilon: float, largest_norm: float
) -> Coordinates:
    """The mean direction of an optimiser's step at the start, for a learning rate of 1.

    ``m`` for SGD, where long gradients are clipped as the trainer does; ``sign m`` for Lion;
    ``m / (√v + ε)`` for Adam and its kin, with m the mean of the descent directions and v
    their mean square in batches of the recipe's size.

    Args:
        drift: Sums over batches.
        basis: Its coordinates.
        family: Of the optimiser.
        batch: Items of an optimiser step.
        epsilon: ε, >= 0.
        largest_norm: `max_grad_norm`; 0 for none.

    Returns:
        [coordinates].
    """
    if family == "sign":
        return drift.mean.sign()
    square = drift.mean_square(batch)
    if family == "adam":
        return drift.mean / (square.sqrt() + epsilon)
    norm = math.sqrt(float(basis.dot(square, torch.ones(1))))
    return drift.mean * (min(1.0, largest_norm / norm) if largest_norm and norm else 1.0)


@dataclass(frozen=True)
class Estimate:
    """A number with what the jackknife says of it.

    Attributes:
        value: The estimate.
        by_prompts: Its values with each group of the target's prompts left out. [groups].
        by_batches: For each data set in it, its values with each group of that set's batches
            left out; per set, [groups].
    """

    value: float
    by_prompts: Float[Tensor, " groups"]
    by_batches: tuple[Float[Tensor, " groups"], ...]

    @cached_property
    def error(self) -> float:
        """Standard error: of prompts and batches, which are drawn independently."""
        return math.sqrt(sum(map(_jackknife, (self.by_prompts, *self.by_batches))))

    def minus(self, other: "Estimate") -> "Estimate":
        """The difference; the prompts are common, so that their noise cancels."""
        return Estimate(
            self.value - other.value,
            self.by_prompts - other.by_prompts,
            (*self.by_batches, *(-values for values in other.by_batches)),
        )


@dataclass(frozen=True)
class Forecast:
    """What training on one data set would gain, to first order.

    Attributes:
        gain: ⟨∇J, d⟩: gain in judged quality of a step, for a learning rate of 1.
        cosine: Between ∇J and the mean descent direction, whatever the optimiser.
    """

    gain: Estimate
    cosine: Estimate


def forecast(target: Drift, data: Drift, basis: Basis, **recipe: Any) -> Forecast:
    """Forecast the gain of a data set.

    Args:
        target: Of `ExpectedReward` on judged answers of the start, a batch a group of prompts.
        data: Of the recipe's loss on the data.
        basis: Their coordinates.
        recipe: As for `step_direction`: family, batch, epsilon, largest_norm.

    Returns:
        The forecast.

    Source:
        Ours; data selection by such inner products: Xia et al. 2024, arXiv:2402.04333.
    """

    def both(goal: Coordinates, drift: Drift) -> tuple[float, float]:
        direction = step_direction(drift, basis, **recipe)
        norms = basis.norm(goal) * basis.norm(drift.mean)
        cosine = basis.dot(goal, drift.mean) / norms if norms else torch.zeros(())
        return float(basis.dot(goal, direction)), float(cosine)

    value = both(target.mean, data)
    prompts = [both(target.without(group).mean, data) for group in range(len(target.counts))]
    batches = [both(target.mean, data.without(group)) for group in range(len(data.counts))]
    gains, cosines = (
        Estimate(value[i], torch.tensor(prompts)[:, i], (torch.tensor(batches)[:, i],))
        for i in (0, 1)
    )
    return Forecast(gains, cosines)


@dataclass(frozen=True)
class Forecasts:
    """Forecasts of several data sets from one target direction.

    Attributes:
        by_name: Of each data set.
        rate: The recipe's learning rate, by which `Forecast.gain` is multiplied.
        agreement: `halves_agree` of the target direction, in [-1, 1].
    """

    by_name: Mapping[str, Forecast]
    rate: float
    agreement: float


def forecast_gains(
    trainer: PreferenceTrainer,
    answers: CandidateSet,
    data: Mapping[str, PairSet],
    *,
    compared: bool = False,
    tick: Callable[[], None] | None = None,
) -> Forecasts:
    """Forecast what a trainer's recipe would gain on each of several data sets.

    Nothing is trained: gradients of the recipe's loss on each set, and of the judged answers'
    quality, are taken at the policy's present weights, in passes of the trainer's token budget.

    Args:
        trainer: Of the recipe, on any data; it is left as it is.
        answers: The policy's own answers with the judge's scores, at least two a prompt, to
            prompts that no data set has.
        data: The sets by name.
        compared: Whether a score is the mean P(wins) against the prompt's other answers, and not
            a reward.
        tick: Called after each batch of gradients.

    Returns:
        The forecasts.

    Raises:
        InputError: If there are fewer than `GROUPS` prompts of answers, or an empty set.
    """
    goal = LossMix((LossTerm(ExpectedReward(compared=compared)),))
    empty = [name for name, pairs in data.items() if not len(pairs)]
    InputError.unless(
        len(answers) >= GROUPS and not empty,
        saw=f"no pairs of {empty[0]}" if empty else f"answers to {len(answers)} prompts",
        expected=f"pairs in every data set, and answers to at least {GROUPS} prompts",
        cure="leave the data set out" if empty else "give more prompts",
    )
    args, basis = trainer.args, Basis(trainer.model)
    gradients = Gradients(trainer, basis)
    items = item_set_of(answers, trainer.encoder, goal)
    batches = _batches(len(items), max(1, min(_TARGET_PROMPTS, len(items) // GROUPS)))
    target = gradients.drift(items, batches, groups=GROUPS, loss=goal, tick=tick)
    batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    references, loss = trainer.references, None
    if references.needed and references.reference == START:
        loss = _AtStart(trainer.loss.terms)
    forecasts = {}
    for name, pairs in data.items():
        items = item_set_of(pairs, trainer.encoder, trainer.loss)
        if loss is None:
            trainer.compute_references(items)
        # Smaller batches than the recipe's say more of the same data (`Drift.mean_square`).
        size = batch if trainer.loss.whole_batch else min(batch, max(1, len(items) // GROUPS // 2))
        forecasts[name] = forecast(
            target,
            gradients.drift(items, _batches(len(items), size), groups=GROUPS, loss=loss, tick=tick),
            basis,
            family=family_of(str(args.optim.value)),
            batch=batch,
            epsilon=args.adam_epsilon,
            largest_norm=args.max_grad_norm,
        )
    return Forecasts(forecasts, args.learning_rate, halves_agree(target, basis))


def _batches(count: int, size: int) -> list[range]:
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def halves_agree(target: Drift, basis: Basis) -> float:
    """Cosine between the target directions of two halves of the prompts, in [-1, 1].

    Args:
        target: In an even number of groups of prompts.
        basis: Its coordinates.

    Returns:
        How far the target direction can be trusted: 0 is noise alone.
    """
    first, second = target.sums[::2].sum(0), target.sums[1::2].sum(0)
    return float(basis.dot(first, second) / (basis.norm(first) * basis.norm(second)))


# Variance by deleting groups: (K-1)/K Σ (θ_k - mean)². With one group there is none.
def _jackknife(values: Tensor) -> float:
    count = len(values)
    return float((values - values.mean()).double().square().sum() * (count - 1) / count)
