"""The stage call where responses share features, so that what is learnt of one carries over."""

from dataclasses import dataclass

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
from prefstage.sandbox.theory.stage_call import HALF, expected_score
from prefstage.sandbox.theory.worlds import dpo_gradient, dpo_loss, generator_of, labelled

PROMPTS, RESPONSES, FEATURES = 8, 8, 4  # half of the prompts are trained on
BETA = 0.1
REACH = 1.0
STEPS = (1, 2, 5, 10, 20, 50, 100)
USUAL_STEPS = 50


@dataclass(frozen=True)
class FeatureWorlds:
    """Worlds of linear softmax policies, π(y|x) ∝ exp(θ·φ(x, y)).

    Attributes:
        features: φ. [worlds, prompts, responses, features].
        policy: θ of π_θ. [worlds, features].
        off: θ of π_off: the policy's, moved along or against the reward.
        reward: r = w·φ. [worlds, prompts, responses].
    """

    features: Tensor
    policy: Tensor
    off: Tensor
    reward: Tensor

    def log_probs(self, theta: Tensor) -> Tensor:
        """Log π of a θ. [worlds, prompts, responses]."""
        return _dot(self.features, theta).log_softmax(-1)


def draw_feature_worlds(count: int, *, generator: torch.Generator) -> FeatureWorlds:
    """Draw worlds in which the other side is better or worse than the policy, by chance.

    Args:
        count: Number of worlds.
        generator: Of all draws.

    Returns:
        The worlds; the other side is the policy after a step of -1 to 1 along the reward.
    """

    def normal(*shape: int) -> Tensor:
        return torch.randn((count, *shape), generator=generator, dtype=torch.float64)

    features = normal(PROMPTS, RESPONSES, FEATURES) / FEATURES**0.5
    weights, policy = normal(FEATURES), normal(FEATURES)
    step = REACH * (2 * torch.rand((count, 1), generator=generator, dtype=torch.float64) - 1)
    return FeatureWorlds(features, policy, policy + step * weights, _dot(features, weights))


def train(worlds: FeatureWorlds, source: Tensor, *, steps: int) -> list[Tensor]:
    """Exact DPO from π_θ on the first half of the prompts, both responses from one source.

    Args:
        worlds: Features and reward; labels are Bradley-Terry.
        source: θ of who writes the pairs. [worlds, features].
        steps: Gradient steps.

    Returns:
        θ after each step.
    """
    seen = worlds.features[:, : PROMPTS // 2]
    joint = _joint(worlds, source)
    scale = torch.full((len(source), 1, 1), BETA, dtype=torch.float64)
    moved, path = torch.zeros_like(source), []
    for _ in range(steps):
        slope = dpo_gradient(_dot(seen, moved), scale, joint)
        moved = moved - _carried(slope, seen) / BETA
        path.append(worlds.policy + moved)
    return path


def gains(worlds: FeatureWorlds, theta: Tensor) -> tuple[Tensor, Tensor]:
    """Reward gained over π_θ on the prompts of training, and on the others. [worlds] each."""
    after, before = (worlds.log_probs(each).exp() for each in (theta, worlds.policy))
    gain = ((after - before) * worlds.reward).sum(-1)
    return gain[:, : PROMPTS // 2].mean(-1), gain[:, PROMPTS // 2 :].mean(-1)


def _dot(features: Tensor, theta: Tensor) -> Tensor:
    return (features * theta[:, None, None, :]).sum(-1)


def _carried(slope: Tensor, features: Tensor) -> Tensor:
    """A slope by responses' log-ratios as one by θ; a constant a prompt does not matter."""
    return (slope[..., None] * features).sum((-2, -3))


def _joint(worlds: FeatureWorlds, source: Tensor) -> Tensor:
    half = slice(PROMPTS // 2)
    margin = worlds.reward[:, half, :, None] - worlds.reward[:, half, None, :]
    drawn = worlds.log_probs(source)[:, half].exp()
    return labelled(drawn, drawn, margin.sigmoid())


def check_shared_features(setting: Setting) -> Evidence:
    """The exact stage against the greater gain, by steps, on seen and unseen prompts."""
    worlds = draw_feature_worlds(setting.worlds, generator=generator_of(setting.seed))
    margin = worlds.reward[..., :, None] - worlds.reward[..., None, :]
    wins = (margin > 0).double() + HALF * (margin == 0)
    score = expected_score(wins, worlds.log_probs(worlds.policy), worlds.log_probs(worlds.off))
    own = score > HALF
    paths = [train(worlds, each, steps=STEPS[-1]) for each in (worlds.policy, worlds.off)]
    wrong = []
    for step in STEPS:
        on, off = (gains(worlds, path[step - 1]) for path in paths)
        wrong.append([own != (first > second) for first, second in zip(on, off, strict=True)])
    usual = wrong[STEPS.index(USUAL_STEPS)]
    shares = [[float(each.double().mean()) for each in both] for both in wrong]
    return Evidence(
        [
            equality("the slope by θ is that by log-ratios, carried by features",
                     _slope_residual(worlds)),
            rule("own pairs raise the reward on their prompts", gains(worlds, paths[0][0])[0] < 0),
            counterexample("the exact stage names the pairs that gain more", usual[0]),
            counterexample("and on prompts that were not trained on", usual[1]),
        ],
        Figure("Wrong stage calls where responses share features", "steps of DPO",
               "share of worlds",
               [curve("on the prompts of training", list(STEPS), [each[0] for each in shares]),
                curve("on other prompts", list(STEPS), [each[1] for each in shares])],
               log="x"),
    )  # fmt: skip


def _slope_residual(worlds: FeatureWorlds) -> Tensor:
    """Of `train`'s slope at π_off against autograd's on the loss of log π_off/π_θ."""
    half = slice(PROMPTS // 2)
    joint, seen = _joint(worlds, worlds.off), worlds.features[:, half]
    scale = torch.full((len(joint), 1, 1), BETA, dtype=torch.float64)
    theta = worlds.off.clone().requires_grad_()
    ratio = worlds.log_probs(theta) - worlds.log_probs(worlds.policy)
    (wanted,) = torch.autograd.grad(dpo_loss(ratio[:, half], scale, joint).sum(), theta)
    moved = _dot(seen, worlds.off - worlds.policy)
    return wanted - _carried(dpo_gradient(moved, scale, joint), seen)


CHECKS = (
    Check(
        "stage-call-shared",
        "TwoStage, arXiv:2508.10530, Algorithm 1",
        "The boundary score tells which pairs the policy gains more from.",
        "More often than a coin, where responses share features (linear softmax policies), the "
        "other side is the policy moved along the reward or against it, and training goes on long "
        "enough: after a few steps the stage says nothing there either, and on prompts that were "
        "not trained on it says less. Both sides' pairs carry the same labels, so that a better "
        "side helps only by where it puts its mass.",
        check_shared_features,
    ),
)
