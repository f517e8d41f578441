"""The forecast: what a step on a data set would gain, from gradients alone, without training."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from prefstage.advising.gradients import Basis, Coordinates, Drift, Gradients, halves_agree
from prefstage.core import InputError
from prefstage.data import CandidateSet, PairSet
from prefstage.losses import LossBatch, LossMix, LossState, LossTerm, LossValues, Responses
from prefstage.losses.base import Items, StatelessLoss
from prefstage.training import PreferenceTrainer
from prefstage.training.datasets import item_set_of
from prefstage.training.policy import START

GROUPS = 8
"""Parts of prompts and batches that the jackknife leaves out in turn."""

_TARGET_PROMPTS = 8  # a batch
_LEAST = 0.01

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
        agreement: Cosine between the mean descent directions of two halves of the data: how much
            of the direction the pairs share, and how much each has for itself.
    """

    gain: Estimate
    cosine: Estimate
    agreement: Estimate

    @property
    def rating(self) -> Estimate:
        """What data sets are ranked by: ``gain · agreement``, with an agreement of 0.01 at least.

        A direction that the pairs do not share is learnt by heart, and gains nothing on other
        prompts.

        Source:
            Ours: docs/decisions.md says how often it was right, and what the gain alone was.
        """
        parts = (self.gain, self.agreement)
        value, by_prompts, by_batches = (
            gain * agreement.clamp_min(_LEAST)
            for gain, agreement in (
                [torch.tensor(part.value) for part in parts],
                [part.by_prompts for part in parts],
                [part.by_batches[0] for part in parts],
            )
        )
        return Estimate(float(value), by_prompts, (by_batches,))


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

    def figures(goal: Coordinates, drift: Drift) -> tuple[float, float, float]:
        direction = step_direction(drift, basis, **recipe)
        norms = basis.norm(goal) * basis.norm(drift.mean)
        cosine = basis.dot(goal, drift.mean) / norms if norms else torch.zeros(())
        return float(basis.dot(goal, direction)), float(cosine), halves_agree(drift, basis)

    value = figures(target.mean, data)
    prompts = torch.tensor(
        [figures(target.without(n).mean, data) for n in range(len(target.counts))]
    )
    batches = torch.tensor([figures(target.mean, data.without(n)) for n in range(len(data.counts))])
    return Forecast(*(Estimate(value[i], prompts[:, i], (batches[:, i],)) for i in range(3)))


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
        drift = gradients.drift(
            items, _batches(len(items), size), groups=GROUPS, loss=loss, tick=tick
        )
        recipe: dict[str, Any] = {
            "family": family_of(str(args.optim.value)),
            "batch": batch,
            "epsilon": args.adam_epsilon,
            "largest_norm": args.max_grad_norm,
        }
        forecasts[name] = forecast(target, drift, basis, **recipe)
    return Forecasts(forecasts, args.learning_rate, halves_agree(target, basis))


def _batches(count: int, size: int) -> list[range]:
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


# Variance by deleting groups: (K-1)/K Σ (θ_k - mean)². With one group there is none.
def _jackknife(values: Tensor) -> float:
    count = len(values)
    return float((values - values.mean()).double().square().sum() * (count - 1) / count)
