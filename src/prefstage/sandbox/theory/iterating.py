"""DPO again and again: how its optimum moves with where the pairs are drawn from."""

import torch
from torch import Tensor

from prefstage.sandbox.theory.evidence import (
    Check,
    Evidence,
    Figure,
    Setting,
    counterexample,
    curve,
    equality,
    rule,
)
from prefstage.sandbox.theory.worlds import (
    Worlds,
    dpo_gradient,
    dpo_optimum,
    draw_worlds,
    generator_of,
    labelled,
    log_normalised,
    optimum,
)

ROUNDS = 12
SMALL = 1e-6
ROUNDING = 1e-12
FLOOR = 1e-3
"""Share of the pairs drawn evenly, so that every comparison keeps some weight."""


def entropy(log_policy: Tensor) -> Tensor:
    """Entropy over the last axis, nats."""
    return -(log_policy.exp() * log_policy).sum(-1)


def trained(worlds: Worlds, sampled: Tensor, log_start: Tensor) -> Tensor:
    """Log π that minimises DPO's loss on pairs from a sampling distribution.

    Args:
        worlds: Preferences and β.
        sampled: Probabilities that both responses are drawn with. [worlds, prompts, responses].
        log_start: log π_ref. [worlds, prompts, responses].

    Returns:
        log π. [worlds, prompts, responses].
    """
    mixed = (1 - FLOOR) * sampled + FLOOR / sampled.shape[-1]
    scaled = dpo_optimum(labelled(mixed, mixed, worlds.preference))
    return log_normalised(log_start + scaled / worlds.beta)


def iterated(worlds: Worlds, rounds: int) -> list[Tensor]:
    """On-policy rounds in closed form: ``π_T ∝ π_0 exp(T r/β)``; start included."""
    return [
        log_normalised(worlds.log_reference + step * worlds.reward / worlds.beta)
        for step in range(rounds + 1)
    ]


def check_concentration(setting: Setting) -> Evidence:
    """What repeated on-policy rounds do under Bradley-Terry preferences."""
    worlds = draw_worlds(setting.worlds, seed=setting.seed)
    rounds = iterated(worlds, ROUNDS)
    policy = worlds.log_reference
    steps = []
    for _ in range(ROUNDS):
        policy = optimum(policy, worlds.reward, worlds.beta)
        steps.append(policy)
    gains = torch.stack([(each.exp() * worlds.reward).sum(-1) for each in rounds], -1)
    best = worlds.reward.argmax(-1, keepdim=True)
    on_best = torch.stack([each.gather(-1, best)[..., 0] for each in rounds], -1)
    spread = torch.stack([entropy(each) for each in rounds], -1)
    moves = torch.arange(ROUNDS + 1, dtype=torch.float64)
    return Evidence(
        [
            equality("T rounds, each with the last policy as reference: π_0 exp(T r/β)",
                     torch.stack(steps, 1).exp() - torch.stack(rounds[1:], 1).exp()),
            rule("the expected reward never falls", gains.diff(dim=-1) < -ROUNDING),
            rule("the best response never loses", on_best.diff(dim=-1) < -ROUNDING),
            counterexample("the entropy never rises", spread.diff(dim=-1) > SMALL),
        ],
        Figure("Repeated on-policy DPO concentrates", "round", "mean over worlds",
               [curve("entropy (nats)", moves, spread.mean((0, 1))),
                curve("π(best response)", moves, on_best.exp().mean((0, 1))),
                curve("expected reward", moves, gains.mean((0, 1)))]),
    )  # fmt: skip


def check_sampling(setting: Setting) -> Evidence:
    """Whether the optimum depends on where the pairs are drawn from."""
    worlds = draw_worlds(setting.worlds, seed=setting.seed)
    generator = generator_of(setting.seed + 1)
    draws = torch.randn((2, *worlds.reward.shape), generator=generator, dtype=torch.float64)
    one, other = draws.softmax(-1)
    ratio = worlds.reward / worlds.beta
    slope = dpo_gradient(ratio, worlds.beta, labelled(one, one, worlds.preference))
    circular = worlds.preferring("intransitive")
    moved = trained(circular, one, worlds.log_reference) - trained(
        circular, other, worlds.log_reference
    )
    curves = []
    for label, world in (("Bradley-Terry", worlds), ("intransitive", circular)):
        policy, paths = worlds.log_reference, []
        for _ in range(ROUNDS):
            following = trained(world, policy.exp(), worlds.log_reference)
            paths.append(float((following.exp() - policy.exp()).abs().sum(-1).mean() / 2))
            policy = following
        curves.append(curve(label, [float(step) for step in range(1, ROUNDS + 1)], paths))
    return Evidence(
        [
            equality("under Bradley-Terry DPO's gradient vanishes at π* for any sampling", slope),
            counterexample("without it the optimum does not depend on the sampling",
                           moved.abs() > SMALL),
        ],
        Figure("Sampling from the last round's policy, fixed reference", "round",
               "mean change of the policy (total variation)", curves),
    )  # fmt: skip


CHECKS = (
    Check(
        "sampling-concentrates",
        "Rafailov et al. 2023, arXiv:2305.18290, Eq. 4, repeated",
        "Repeated on-policy DPO, each round's reference the last policy, puts all mass on the best "
        "response.",
        "Exact Bradley-Terry preferences and full support. Reward and mass of the best response "
        "rise in every round; the entropy may first rise, where the start is sure and wrong.",
        check_concentration,
    ),
    Check(
        "sampling-moves",
        "How Sampling Shapes LLM Alignment (the statement in our words)",
        "DPO's optimum depends on the distribution that the pairs are drawn from.",
        "Only where preferences are not Bradley-Terry (or the support is not full): with a "
        "Bradley-Terry P* the optimum is the same for every sampling of full support.",
        check_sampling,
    ),
)
