"""The stage call: by an imperfect judge, against exact gains, and with shared features."""

from dataclasses import dataclass
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
from prefstage.sandbox.theory.worlds import (
    HALF,
    ROUNDING,
    Worlds,
    differences,
    dpo_gradient,
    dpo_loss,
    draw_responses,
    draw_worlds,
    generator_of,
    labelled,
    normal,
    parted,
    products,
    uniform,
    verdict,
)

ACCURACY, BIAS, BETA = 0.7, 0.1, 0.1
STEPS = 20
PROMPTS, RESPONSES = 4, 8
DISTANCES = (0.1, 0.25, 0.5, 1.0, 2.0)
USUAL_DISTANCE = 0.5
SIZES = (25, 100, 400)


def expected_score(wins: Tensor, policy: Tensor, off: Tensor) -> Tensor:
    """BS of all responses, each comparison won with probability `wins`. [worlds]."""
    return (products(policy.exp(), off.exp()) * wins).sum((-1, -2)).mean(-1)


def wins_of(worlds: Worlds) -> Tensor:
    """1 where y_i is preferred to y_j, ½ for a tie. [worlds, prompts, responses, responses]."""
    return verdict(worlds.preference - HALF)


def judged(wins: Tensor, *, accuracy: float, bias: float) -> Tensor:
    """P(the judge gives the comparison to the on-policy response).

    Args:
        wins: `wins_of`.
        accuracy: P(the judge names the better response) where it reads.
        bias: Share of comparisons that it gives to the on-policy side unread.

    Returns:
        The probability, of the shape of `wins`.
    """
    return bias + (1 - bias) * (accuracy * wins + (1 - accuracy) * (1 - wins))


def measured_score(
    verdicts: Tensor, policy: Tensor, off: Tensor, *, prompts: int, generator: torch.Generator
) -> Tensor:
    """One simulated measurement of 2 x 2 responses to each of many drawn prompts. [worlds].

    Args:
        verdicts: `judged`. [worlds, prompts, responses, responses].
        policy: log π_θ.
        off: log π_off.
        prompts: Prompts to draw, with replacement.
        generator: Of all draws.

    Returns:
        The boundary score.
    """
    asked = torch.randint(verdicts.shape[1], (len(verdicts), prompts), generator=generator)
    ours, theirs = (draw_responses(side.exp(), asked, generator) for side in (policy, off))
    rows = torch.arange(len(verdicts))[:, None, None, None]
    return (
        verdicts[rows, asked[..., None, None], ours[..., :, None], theirs[..., None, :]]
        .bernoulli(generator=generator)
        .mean((-1, -2, -3))
    )


def _sides(worlds: Worlds, distance: float) -> tuple[Tensor, Tensor]:
    # Log π_θ and log π_off; the halves that they are drawn towards know nothing of the reward.
    return parted(worlds.log_reference, worlds.log_reference, distance)


def gain(worlds: Worlds, policy: Tensor, source: Tensor) -> Tensor:
    """Exact reward gained by a few DPO steps from π_θ on labelled pairs of one source. [worlds].

    Args:
        worlds: Reward and preference.
        policy: log π_θ, the start and the reference.
        source: Log-probs that both responses are drawn with.
    """
    joint = labelled(source.exp(), source.exp(), worlds.preference)
    ratio = torch.zeros_like(policy)
    for _ in range(STEPS):
        ratio = ratio - dpo_gradient(ratio, BETA, joint) / BETA
    after = (policy + ratio).log_softmax(-1).exp()
    return ((after - policy.exp()) * worlds.reward).sum(-1).mean(-1)


@check(
    "stage-call",
    "TwoStage, arXiv:2508.10530, Algorithm 1",
    "The boundary score tells which pairs the policy gains more from.",
    "An unbiased judge better than chance leaves the exact stage as it is, at the price of "
    "prompts; a judge with a bias towards one side may turn it. In these tables, where what "
    "is learnt of one response carries over to no other, the stage is a poor guide to which "
    "pairs gain more reward in a few steps: the farther apart the two sides, the less the "
    "policy draws what off-policy pairs teach, and own pairs gain more in any stage. The rule "
    "thus rests on generalisation between responses, which a table has not.",
    draw=partial(draw_worlds, prompts=PROMPTS, responses=RESPONSES),
)
def _call(worlds: Worlds) -> Evidence:
    generator = generator_of(worlds.seed + 1)
    wins = wins_of(worlds)
    biased, fair = (judged(wins, accuracy=ACCURACY, bias=bias) for bias in (BIAS, 0.0))
    policy, off = _sides(worlds, USUAL_DISTANCE)
    exact, seen, fairly = (expected_score(v, policy, off) for v in (wins, biased, fair))
    errors = torch.stack(
        [
            (measured_score(fair, policy, off, prompts=size, generator=generator) - fairly)
            .square()
            .mean()
            .sqrt()
            for size in SIZES
        ]
    )
    shares = []
    for sides in (_sides(worlds, distance) for distance in DISTANCES):
        called = expected_score(wins, *sides) > HALF
        score = measured_score(fair, *sides, prompts=SIZES[1], generator=generator)
        on = gain(worlds, sides[0], sides[0]) > gain(worlds, *sides)
        overlap = torch.minimum(*(side.exp() for side in sides)).sum(-1)
        columns = (overlap, (score > HALF) != called, called != on, on)
        shares.append([column.double().mean() for column in columns])
    overlaps, sampled, gained, ons = (list(column) for column in zip(*shares, strict=True))
    return Evidence(
        [
            equality("a judge of accuracy p and bias b sees b + (1-b)(1-p + (2p-1) BS)",
                     seen - BIAS - (1 - BIAS) * (1 - ACCURACY + (2 * ACCURACY - 1) * exact)),
            rule("an unbiased judge better than chance expects the same stage",
                 ((fairly > HALF) != (exact > HALF)) & ((exact - HALF).abs() > ROUNDING)),
            counterexample("so does a judge with a bias of 10 %", (seen > HALF) != (exact > HALF)),
            order("error of the measured score by prompts",
                  torch.tensor(SIZES, dtype=torch.float64), errors, wanted=-0.5,
                  worlds=len(worlds.reward), within=0.05),
            counterexample("the exact stage names the pairs that gain more exact reward",
                           (exact > HALF)
                           != (gain(worlds, policy, policy) > gain(worlds, policy, off))),
        ],
        Figure("Wrong stage calls in worlds without generalisation", "overlap of π_θ and π_off",
               "share of worlds",
               [curve(f"{SIZES[1]} prompts, judge right in 70 %, against the exact stage",
                      overlaps, sampled),
                curve("exact stage against the greater gain", overlaps, gained),
                curve("on-policy pairs gain more", overlaps, ons)]),
    )  # fmt: skip


FEATURES, FEATURE_PROMPTS = 4, 8
SEEN = slice(FEATURE_PROMPTS // 2)
"""The prompts of training; on the others nothing is trained."""
REACH = 1.0
TRAINED_STEPS = (1, 2, 5, 10, 20, 50, 100)
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

    def joint(self, source: Tensor) -> Tensor:
        """P(y_w, y_l) of pairs that the policy of a θ writes to the prompts of training."""
        drawn = self.log_probs(source)[:, SEEN].exp()
        return labelled(drawn, drawn, differences(self.reward[:, SEEN]).sigmoid())

    def slope(self, moved: Tensor, joint: Tensor) -> Tensor:
        """Gradient of DPO's loss by θ, from that by log-ratios. [worlds, features].

        Args:
            moved: θ less that of π_θ. [worlds, features].
            joint: P(y_w, y_l) of the pairs.

        Returns:
            The gradient; the constant a prompt that log-ratios leave open does not matter.
        """
        seen = self.features[:, SEEN]
        return (dpo_gradient(_dot(seen, moved), BETA, joint)[..., None] * seen).sum((-2, -3))


def draw_feature_worlds(count: int, *, seed: int) -> FeatureWorlds:
    """Draw worlds in which the other side is better or worse than the policy, by chance.

    Args:
        count: Number of worlds.
        seed: Of all draws.

    Returns:
        The worlds; the other side is the policy after a step of -1 to 1 along the reward.
    """
    generator = generator_of(seed)
    drawn = partial(normal, generator, count)
    features = drawn(FEATURE_PROMPTS, RESPONSES, FEATURES) / FEATURES**0.5
    weights, policy = drawn(FEATURES), drawn(FEATURES)
    step = REACH * (2 * uniform(generator, count, 1) - 1)
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
    joint, moved, path = worlds.joint(source), torch.zeros_like(source), []
    for _ in range(steps):
        moved = moved - worlds.slope(moved, joint) / BETA
        path.append(worlds.policy + moved)
    return path


def gains(worlds: FeatureWorlds, theta: Tensor) -> tuple[Tensor, Tensor]:
    """Reward gained over π_θ on the prompts of training, and on the others. [worlds] each."""
    after, before = (worlds.log_probs(side).exp() for side in (theta, worlds.policy))
    gain = ((after - before) * worlds.reward).sum(-1)
    return gain[:, SEEN].mean(-1), gain[:, FEATURE_PROMPTS // 2 :].mean(-1)


def _dot(features: Tensor, theta: Tensor) -> Tensor:
    return (features * theta[:, None, None, :]).sum(-1)


@check(
    "stage-call-shared",
    "TwoStage, arXiv:2508.10530, Algorithm 1",
    "The boundary score tells which pairs the policy gains more from.",
    "More often than a coin, where responses share features (linear softmax policies), the "
    "other side is the policy moved along the reward or against it, and training goes on long "
    "enough: after a few steps the stage says nothing there either, and on prompts that were "
    "not trained on it says less. Both sides' pairs carry the same labels, so that a better "
    "side helps only by where it puts its mass.",
    draw=draw_feature_worlds,
)
def _shared_features(worlds: FeatureWorlds) -> Evidence:
    sides = worlds.log_probs(worlds.policy), worlds.log_probs(worlds.off)
    tuning = expected_score(verdict(differences(worlds.reward)), *sides) > HALF
    paths = [train(worlds, side, steps=TRAINED_STEPS[-1]) for side in (worlds.policy, worlds.off)]
    wrong = {}
    for step in TRAINED_STEPS:
        on, off = (gains(worlds, path[step - 1]) for path in paths)
        wrong[step] = [tuning != (first > second) for first, second in zip(on, off, strict=True)]
    seen, unseen = ([calls[k].double().mean() for calls in wrong.values()] for k in (0, 1))
    # The slope of `train` at π_off against autograd's on the loss of log π_off/π_θ.
    joint, theta = worlds.joint(worlds.off), worlds.off.clone().requires_grad_()
    (slope,) = torch.autograd.grad(
        dpo_loss((worlds.log_probs(theta) - sides[0])[:, SEEN], BETA, joint).sum(), theta
    )
    return Evidence(
        [
            equality("the slope by θ is that by log-ratios, carried by features",
                     slope - worlds.slope(worlds.off - worlds.policy, joint)),
            rule("own pairs raise the reward on their prompts", gains(worlds, paths[0][0])[0] < 0),
            counterexample("the exact stage names the pairs that gain more",
                           wrong[USUAL_STEPS][0]),
            counterexample("and on prompts that were not trained on", wrong[USUAL_STEPS][1]),
        ],
        Figure("Wrong stage calls where responses share features", "steps of DPO",
               "share of worlds",
               [curve("on the prompts of training", list(wrong), seen),
                curve("on other prompts", list(wrong), unseen)],
               log="x"),
    )  # fmt: skip


CHECKS = (_call, _shared_features)
