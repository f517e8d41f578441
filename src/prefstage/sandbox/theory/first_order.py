"""DPO's first step: the policy's own pairs point along the policy gradient of the win rate."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from prefstage.sandbox.theory.evidence import (
    Evidence,
    Figure,
    check,
    counterexample,
    curve,
    equality,
    order,
    rule,
)
from prefstage.sandbox.theory.stage_calls import BETA, FeatureWorlds, draw_feature_worlds
from prefstage.sandbox.theory.worlds import (
    HALF,
    ROUNDING,
    SMALL,
    differences,
    dpo_loss,
    generator_of,
    labelled,
    preference_of,
    products,
    verdict,
)

TURNED, BATCH, PAIRS = 0.2, 16, 64
LENGTHS = torch.logspace(-3, 1, 9, dtype=torch.float64)
LONG = 6  # among them, 1


def slope_of(value: Callable[[Tensor], Tensor], theta: Tensor) -> Tensor:
    """Gradient of what is computed in every world from its θ. [worlds, features]."""
    leaf = theta.clone().requires_grad_()
    return torch.autograd.grad(value(leaf).sum(), leaf)[0]


def win_rate(
    worlds: FeatureWorlds, preference: Tensor, theta: Tensor, over: Tensor | None = None
) -> Tensor:
    """E[P(y ≻ y')] of answers y of one policy over y' of another. [worlds].

    Args:
        worlds: Features and the start.
        preference: P(y_i ≻ y_j). [worlds, prompts, responses, responses].
        theta: Of the one. [worlds, features].
        over: Of the other; None: the start.
    """
    others = worlds.policy if over is None else over
    sides = (worlds.log_probs(side).exp() for side in (theta, others))
    return (products(*sides) * preference).sum((-1, -2)).mean(-1)


def descent(worlds: FeatureWorlds, joint: Tensor) -> Tensor:
    """-∇ of DPO's loss at its reference, the start. [worlds, features].

    Args:
        worlds: Features and the start.
        joint: P(y_w = i, y_l = j). [worlds, prompts, responses, responses].
    """
    start = worlds.log_probs(worlds.policy)
    return -slope_of(
        lambda theta: dpo_loss(worlds.log_probs(theta) - start, BETA, joint).mean(-1),
        worlds.policy,
    )


def moments(worlds: FeatureWorlds, joint: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and mean square over pairs of (β/2)(∇log π(y_w) - ∇log π(y_l)).

    Args:
        worlds: Features and the start.
        joint: Of the pairs, as for `descent`; it may be what a sample holds.

    Returns:
        Both [worlds, features].
    """
    # ∇log π(y) = φ(y) - E[φ]: the mean, which both have, cancels.
    pairs = BETA / 2 * differences(worlds.features.mT).movedim(-3, -1)
    weights = joint[..., None] / joint.shape[1]
    return (weights * pairs).sum((1, 2, 3)), (weights * pairs**2).sum((1, 2, 3))


def sampled(joint: Tensor, pairs: int, generator: torch.Generator) -> Tensor:
    """What so many pairs, of prompts drawn evenly, hold in place of `joint`, of its shape."""
    drawn = joint.flatten(1).multinomial(pairs, True, generator=generator)
    counts = torch.zeros_like(joint.flatten(1)).scatter_add(
        1, drawn, torch.ones_like(drawn, dtype=joint.dtype)
    )
    return counts.reshape(joint.shape) * joint.shape[1] / pairs


def divided(mean: Tensor, square: Tensor) -> Tensor:
    """A descent as Adam divides it, by the root mean square of batches of `BATCH` pairs."""
    spread = mean**2 + (square - mean**2).clamp(min=0) / BATCH
    return mean / (spread.sqrt() + ROUNDING)


@check(
    "first-order",
    "ours, from DPO's gradient (Rafailov et al. 2023, arXiv:2305.18290, Section 4)",
    "At its reference, DPO on the policy's own judged answers follows the policy gradient of "
    "the win rate, and no other pairs gain more.",
    "To first order and in expectation. With both answers drawn from the policy and the label "
    "drawn from any P, -∇L = 2β∇J, where J(θ) = E[P(y ≻ y')] with y' from the start (over itself "
    "a policy's win rate has no gradient). Labels turned by chance shorten the step and do not "
    "turn it; if the better answer is always chosen, J counts better answers; the expected "
    "reward has another gradient. So own pairs gain, also divided by Adam's root mean square, and "
    "no pairs gain more at equal length. Others' pairs can gain more at one learning rate, since "
    "lengths differ; divided, since pairs that agree with one another are divided by less; if "
    "there are few pairs, whose mean is mostly noise; and in a long step.",
    draw=draw_feature_worlds,
)
def _first_order(worlds: FeatureWorlds) -> Evidence:
    fair, circular = (preference_of(worlds.reward, m) for m in ("bradley-terry", "intransitive"))
    better = verdict(fair - HALF)
    own, off = (worlds.log_probs(theta).exp() for theta in (worlds.policy, worlds.off))
    ours, theirs = labelled(own, own, fair), labelled(off, off, fair)
    uphill, uphill_circular, uphill_better = (
        slope_of(partial(win_rate, worlds, p), worlds.policy) for p in (fair, circular, better)
    )
    step, best = descent(worlds, ours), descent(worlds, labelled(own, own, better))
    turned = labelled(own, own, fair + TURNED * (1 - 2 * fair))
    still = slope_of(lambda theta: win_rate(worlds, circular, theta, over=theta), worlds.policy)
    # Σ_y π(y) r(y), whose length does not matter here.
    reward = slope_of(
        lambda theta: (worlds.log_probs(theta).exp() * worlds.reward).sum((-1, -2)), worlds.policy
    )
    ways = _ways(worlds, (ours, theirs))
    means, few, after_division = ways.values()
    rises = {
        way: [torch.stack([_risen(worlds, fair, side, n) for n in LENGTHS]) for side in sides]
        for way, sides in ways.items()
    }

    def first(direction: Tensor) -> Tensor:
        return (uphill * direction).sum(-1)

    small = LENGTHS[: len(LENGTHS) // 2]
    bent = rises["all pairs"][0] - LENGTHS[:, None] * first(_unit(step))
    return Evidence(
        [
            equality("anyone's pairs: -∇L = (β/2) E[∇log π(y_w) - ∇log π(y_l)]",
                     descent(worlds, theirs) - means[1]),
            equality("own pairs: -∇L = 2β∇J, whatever the preferences",
                     descent(worlds, labelled(own, own, circular)) - 2 * BETA * uphill_circular),
            equality("a share q of labels turned: (1 - 2q) of it",
                     descent(worlds, turned) - (1 - 2 * TURNED) * step),
            equality("the better answer always chosen: 2β∇ of P(y is better)",
                     best - 2 * BETA * uphill_better),
            equality("the win rate over oneself has no gradient", still),
            rule("at equal length no other pairs gain more",
                 first(_unit(step)) < first(_unit(means[1])) - ROUNDING),
            order("what is not first order in a step's gain", small,
                  bent.abs().mean(-1)[: len(small)], wanted=2.0, worlds=len(own)),
            rule("own pairs gain, divided by Adam's root mean square too",
                 (first(step) <= 0) | (first(after_division[0]) <= 0)),
            counterexample("own pairs point along the gradient of the expected reward",
                           1 - torch.cosine_similarity(step, reward) > SMALL),
            counterexample("own pairs gain more than others' at one learning rate",
                           first(step) < first(means[1])),
            counterexample("divided by Adam's root mean square",
                           first(after_division[0]) < first(after_division[1])),
            counterexample(f"of {PAIRS} pairs, at equal length",
                           first(_unit(few[0])) < first(_unit(few[1]))),
            counterexample(f"in a step of length {LENGTHS[LONG]:g}",
                           rises["all pairs"][0][LONG] < rises["all pairs"][1][LONG]),
        ],
        Figure("Own pairs gain more than others', at equal length of the step",
               "length of the step", "share of worlds",
               [curve(way, LENGTHS, (mine > others).double().mean(-1))
                for way, (mine, others) in rises.items()], log="x"),
    )  # fmt: skip


# Descents on own and on others' pairs, by what is done to them.
def _ways(worlds: FeatureWorlds, joints: tuple[Tensor, Tensor]) -> dict[str, list[Tensor]]:
    generator = generator_of(len(worlds.policy))
    exact = [moments(worlds, joint) for joint in joints]
    few = [moments(worlds, sampled(joint, PAIRS, generator)) for joint in joints]
    return {
        "all pairs": [mean for mean, _ in exact],
        f"{PAIRS} pairs": [mean for mean, _ in few],
        "all pairs, divided as by Adam": [divided(*both) for both in exact],
    }


# J gained by a step of some length. [worlds].
def _risen(worlds: FeatureWorlds, preference: Tensor, side: Tensor, length: Tensor) -> Tensor:
    ends = (worlds.policy + length * _unit(side), worlds.policy)
    after, before = (win_rate(worlds, preference, theta) for theta in ends)
    return after - before


def _unit(side: Tensor) -> Tensor:
    return side / side.square().sum(-1, keepdim=True).sqrt()


CHECKS = (_first_order,)
