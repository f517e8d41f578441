"""From log-probs of policy and reference to what dynamics say: pair by pair, and in sum."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from prefstage.core.errors import PrefstageError
from prefstage.diagnosing.flips import (
    FLIP_GROUPS,
    at_threshold,
    dpo_losses,
    flip_groups,
    flip_threshold,
    intra_diversity,
    reference_log_ratio,
    summarise_flip_groups,
    threshold_violations,
)
from prefstage.diagnosing.rankings import mean_log_probs, ranking_accuracy, reward_accuracy
from prefstage.training.dynamics_pairs import PairSample, PairScores


@dataclass(frozen=True)
class PairDynamics:
    """Where each pair of a sample stands at one step of training.

    Attributes:
        sample: The pairs.
        policy: Their log-probs under the policy now.
        reference: Their log-probs under the reference.
        beta: β of losses and rewards, 1/nats.
        log_ratio: c, the reference log-ratio. [pairs], nats.
        loss: DPO loss. [pairs], nats.
        threshold: The loss at or below which the ranking is right. [pairs], nats.
        margin: Reward margin βΔ. [pairs].
        correct: Whether the policy ranks the pair rightly. [pairs].
        group: Place in `FLIP_GROUPS`. [pairs].
    """

    sample: PairSample
    policy: PairScores
    reference: PairScores
    beta: float
    log_ratio: Float[Tensor, " pairs"]
    loss: Float[Tensor, " pairs"]
    threshold: Float[Tensor, " pairs"]
    margin: Float[Tensor, " pairs"]
    correct: Bool[Tensor, " pairs"]
    group: Int[Tensor, " pairs"]

    @property
    def at_threshold(self) -> Bool[Tensor, " pairs"]:
        """Pairs whose loss cannot be told from their threshold."""
        return at_threshold(self.loss, self.threshold)


@dataclass(frozen=True)
class Displacement:
    """How the likelihood of both sides has moved since the reference, on average over pairs.

    Attributes:
        chosen: Mean change of log π(y_w|x), nats.
        rejected: Mean change of log π(y_l|x), nats.
        both_fell: Share of the pairs whose two responses have both become less likely.
    """

    chosen: float
    rejected: float
    both_fell: float


def measure_pairs(
    sample: PairSample, policy: PairScores, reference: PairScores, *, beta: float
) -> PairDynamics:
    """Work out where each pair stands.

    Args:
        sample: The pairs.
        policy: Their log-probs under the policy now.
        reference: Their log-probs under the reference.
        beta: β of DPO, > 0. 1/nats.

    Returns:
        Losses, thresholds, margins and groups.

    Raises:
        InputError: If a log-prob is not finite.
        PrefstageError: If a pair stands on the wrong side of its threshold, which Theorem
            4.1 of arXiv:2405.19534 rules out.
    """
    c = reference_log_ratio(reference.chosen, reference.rejected)
    loss = dpo_losses(policy.chosen, policy.rejected, c, beta=beta)
    threshold = flip_threshold(c, beta=beta)
    correct = ranking_accuracy(policy.chosen, policy.rejected).bool()
    broken = int(threshold_violations(loss, threshold, correct).sum())
    if broken:
        raise PrefstageError.of(
            saw=f"{broken} of {len(loss)} pairs of {sample.name!r} on the wrong side of their "
            "flip threshold",
            expected="none: the theorem is exact",
            cure="report it; losses, rankings and reference are not of the same pairs",
        )
    was_correct = ranking_accuracy(reference.chosen, reference.rejected).bool()
    return PairDynamics(
        sample=sample,
        policy=policy,
        reference=reference,
        beta=beta,
        log_ratio=c,
        loss=loss,
        threshold=threshold,
        margin=beta * (policy.chosen - policy.rejected + c),
        correct=correct,
        group=flip_groups(was_correct, correct),
    )


def displacement_of(dynamics: PairDynamics) -> Displacement:
    """How far the likelihoods of both sides have moved since the reference.

    Args:
        dynamics: The pairs at one step.

    Returns:
        Mean changes, and the share of pairs of which both sides fell.
    """
    chosen = dynamics.policy.chosen - dynamics.reference.chosen
    rejected = dynamics.policy.rejected - dynamics.reference.rejected
    return Displacement(
        chosen=float(chosen.mean()),
        rejected=float(rejected.mean()),
        both_fell=float(((chosen < 0) & (rejected < 0)).double().mean()),
    )


def summarise_pairs(dynamics: PairDynamics) -> dict[str, float]:
    """The figures of one set at one step, as trackers take them.

    Args:
        dynamics: The pairs.

    Returns:
        Means over pairs by name: TRL's names where TRL has the metric, ours elsewhere. What
        has no value (the loss of an empty group) is left out. Accuracies and flips are over
        the pairs that are no ties of their raters, which have no right order.
    """
    policy, reference, beta = dynamics.policy, dynamics.reference, dynamics.beta
    rewards = (
        beta * (policy.chosen - reference.chosen),
        beta * (policy.rejected - reference.rejected),
    )
    means = {
        "loss": dynamics.loss,
        "logps/chosen": policy.chosen,
        "logps/rejected": policy.rejected,
        "rewards/chosen": rewards[0],
        "rewards/rejected": rewards[1],
        "rewards/margins": dynamics.margin,
    }
    orders = {
        "rewards/accuracies": reward_accuracy(*rewards),
        "rankings/accuracy": dynamics.correct,
        "rankings/normalised_accuracy": _normalised_accuracy(dynamics),
        "rankings/at_threshold": dynamics.at_threshold,
    }
    decided = dynamics.sample.decided
    if decided.any():
        means |= {name: values[decided] for name, values in orders.items()}
    displaced = displacement_of(dynamics)
    return {
        **{name: float(values.double().mean()) for name, values in means.items()},
        **_flips(dynamics),
        **_diversity(policy),
        "displacement/chosen": displaced.chosen,
        "displacement/rejected": displaced.rejected,
        "displacement/both_fell": displaced.both_fell,
        **_lengths(dynamics),
    }


def metric_name(group: str) -> str:
    """A flip group's name as trackers accept it."""
    return group.replace("->", "_to_")


def _normalised_accuracy(dynamics: PairDynamics) -> Float[Tensor, " pairs"]:
    chosen, rejected = dynamics.sample.lengths
    return ranking_accuracy(
        mean_log_probs(dynamics.policy.chosen, chosen),
        mean_log_probs(dynamics.policy.rejected, rejected),
    )


def _flips(dynamics: PairDynamics) -> dict[str, float]:
    decided = dynamics.sample.decided
    if not decided.any():
        return {}
    groups = summarise_flip_groups(
        dynamics.group[decided], dynamics.loss[decided], dynamics.margin[decided]
    )
    found: dict[str, float | None] = {}
    for name in FLIP_GROUPS:
        place = f"flips/{metric_name(name)}"
        found[f"{place}/share"] = groups[name].share
        found[f"{place}/loss"] = groups[name].loss
        found[f"{place}/margins"] = groups[name].reward_margin
    return {name: value for name, value in found.items() if value is not None}


def _diversity(policy: PairScores) -> dict[str, float]:
    found = intra_diversity(policy.chosen, policy.rejected)
    levels = {
        f"intra_diversity/q{round(100 * level):02d}": value
        for level, value in found.quantiles.items()
    }
    return {"intra_diversity/mean": found.mean, "intra_diversity/std": found.std, **levels}


def _lengths(dynamics: PairDynamics) -> dict[str, float]:
    """How far the margin follows length; the lengths of a fixed sample do not change."""
    chosen, rejected = (side.double() for side in dynamics.sample.lengths)
    found = {"lengths/chosen": float(chosen.mean()), "lengths/rejected": float(rejected.mean())}
    together = torch.stack([chosen - rejected, dynamics.margin])
    correlation = float(torch.corrcoef(together)[0, 1]) if len(chosen) > 1 else math.nan
    if math.isfinite(correlation):
        found["lengths/margin_correlation"] = correlation
    return found
