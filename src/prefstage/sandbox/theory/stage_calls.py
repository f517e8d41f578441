"""The stage call: by an imperfect judge, against exact gains, and with shared features."""

from dataclasses import dataclass

import torch
from torch import Tensor

from prefstage.sandbox.theory.evidence import (
    Evidence,
    Figure,
    Setting,
    check,
    counterexample,
    curve,
    equality,
    order,
    rule,
)
from prefstage.sandbox.theory.worlds import (
    Worlds,
    differences,
    dpo_gradient,
    dpo_loss,
    draw_worlds,
    generator_of,
    labelled,
    log_normalised,
    normal,
    parted,
    products,
)

HALF = 0.5
ACCURACY, BIAS, BETA = 0.7, 0.1, 0.1
STEPS = 20
PROMPTS, RESPONSES, PAIRS_A_SIDE = 4, 8, 2
DISTANCES = (0.1, 0.25, 0.5, 1.0, 2.0)
USUAL_DISTANCE = 0.5
SIZES = (25, 100, 400)
ROUNDING = 1e-12


def _sides(worlds: Worlds, distance: float) -> tuple[Tensor, Tensor]:
    # Log π_θ and log π_off; the halves that they are drawn towards know nothing of the reward.
    return parted(worlds.log_reference, worlds.log_reference, distance)


def expected_score(wins: Tensor, policy: Tensor, off: Tensor) -> Tensor:
    """BS of all responses, each comparison won with probability `wins`. [worlds]."""
    return (products(policy.exp(), off.exp()) * wins).sum((-1, -2)).mean(-1)


def wins_of(worlds: Worlds) -> Tensor:
    """1 where y_i is preferred to y_j, ½ for a tie. [worlds, prompts, responses, responses]."""
    return (worlds.preference > HALF).double() + HALF * (worlds.preference == HALF)


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
    worlds = len(verdicts)
    rows = torch.arange(worlds)[:, None]
    asked = torch.randint(verdicts.shape[1], (worlds, prompts), generator=generator)
    ours, theirs = (
        side[rows, asked]
        .exp()
        .reshape(-1, verdicts.shape[-1])
        .multinomial(PAIRS_A_SIDE, True, generator=generator)
        .reshape(worlds, prompts, PAIRS_A_SIDE)
        for side in (policy, off)
    )
    index = rows[..., None, None], asked[..., None, None], ours[..., :, None], theirs[..., None, :]
    chance = verdicts[index]
    return chance.bernoulli(generator=generator).mean((-1, -2, -3))


def gain(worlds: Worlds, policy: Tensor, source: Tensor) -> Tensor:
    """Exact reward gained by a few DPO steps from π_θ on labelled pairs of one source. [worlds].

    Args:
        worlds: Reward and preference.
        policy: log π_θ, the start and the reference.
        source: Log-probs that both responses are drawn with.
    """
    joint = labelled(source.exp(), source.exp(), worlds.preference)
    scale = torch.full_like(worlds.beta, BETA)
    ratio = torch.zeros_like(policy)
    for _ in range(STEPS):
        ratio = ratio - dpo_gradient(ratio, scale, joint) / BETA
    after = log_normalised(policy + ratio)
    return ((after.exp() - policy.exp()) * worlds.reward).sum(-1).mean(-1)


def _wrong_calls(worlds: Worlds, generator: torch.Generator) -> list[list[float]]:
    # Overlap, share of wrong calls against the exact stage and the gain; a row a distance.
    rows, wins = [], wins_of(worlds)
    verdicts = judged(wins, accuracy=ACCURACY, bias=0.0)
    for distance in DISTANCES:
        policy, off = _sides(worlds, distance)
        exact = expected_score(wins, policy, off) > HALF
        score = measured_score(verdicts, policy, off, prompts=SIZES[1], generator=generator)
        shared = torch.minimum(policy.exp(), off.exp()).sum(-1)
        better = gain(worlds, policy, policy) > gain(worlds, policy, off)
        columns = (shared, (score > HALF) != exact, exact != better, better)
        rows.append([float(column.double().mean()) for column in columns])
    return rows


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
)
def _call(setting: Setting) -> Evidence:
    worlds = draw_worlds(
        setting.worlds, seed=setting.seed, prompts=PROMPTS, responses=RESPONSES, spread=1.0
    )
    generator = generator_of(setting.seed + 1)
    policy, off = _sides(worlds, USUAL_DISTANCE)
    wins = wins_of(worlds)
    biased, fair = (judged(wins, accuracy=ACCURACY, bias=bias) for bias in (BIAS, 0.0))
    exact, seen, fairly = (expected_score(v, policy, off) for v in (wins, biased, fair))
    line = BIAS + (1 - BIAS) * (1 - ACCURACY + (2 * ACCURACY - 1) * exact)
    errors = torch.stack(
        [
            (measured_score(fair, policy, off, prompts=size, generator=generator) - fairly)
            .square()
            .mean()
            .sqrt()
            for size in SIZES
        ]
    )
    better = gain(worlds, policy, policy) > gain(worlds, policy, off)
    overlap, sampled, gained, on = zip(*_wrong_calls(worlds, generator), strict=True)
    sizes = torch.tensor(SIZES, dtype=torch.float64)
    clear = (exact - HALF).abs() > ROUNDING
    return Evidence(
        [
            equality("a judge of accuracy p and bias b sees b + (1-b)(1-p + (2p-1) BS)",
                     seen - line),
            rule("an unbiased judge better than chance expects the same stage",
                 ((fairly > HALF) != (exact > HALF)) & clear),
            counterexample("so does a judge with a bias of 10 %", (seen > HALF) != (exact > HALF)),
            order("error of the measured score by prompts", sizes, errors, wanted=-0.5,
                  worlds=worlds.count, within=0.05),
            counterexample("the exact stage names the pairs that gain more exact reward",
                           (exact > HALF) != better),
        ],
        Figure("Wrong stage calls in worlds without generalisation", "overlap of π_θ and π_off",
               "share of worlds",
               [curve(f"{SIZES[1]} prompts, judge right in 70 %, against the exact stage",
                      list(overlap), list(sampled)),
                curve("exact stage against the greater gain", list(overlap), list(gained)),
                curve("on-policy pairs gain more", list(overlap), list(on))]),
    )  # fmt: skip


FEATURES, FEATURE_PROMPTS = 4, 8  # half of the prompts are trained on
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


def draw_feature_worlds(count: int, *, generator: torch.Generator) -> FeatureWorlds:
    """Draw worlds in which the other side is better or worse than the policy, by chance.

    Args:
        count: Number of worlds.
        generator: Of all draws.

    Returns:
        The worlds; the other side is the policy after a step of -1 to 1 along the reward.
    """

    def drawn(*shape: int) -> Tensor:
        return normal(generator, count, *shape)

    features = drawn(FEATURE_PROMPTS, RESPONSES, FEATURES) / FEATURES**0.5
    weights, policy = drawn(FEATURES), drawn(FEATURES)
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
    seen = worlds.features[:, : FEATURE_PROMPTS // 2]
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
    after, before = (worlds.log_probs(side).exp() for side in (theta, worlds.policy))
    gain = ((after - before) * worlds.reward).sum(-1)
    return gain[:, : FEATURE_PROMPTS // 2].mean(-1), gain[:, FEATURE_PROMPTS // 2 :].mean(-1)


def _dot(features: Tensor, theta: Tensor) -> Tensor:
    return (features * theta[:, None, None, :]).sum(-1)


def _carried(slope: Tensor, features: Tensor) -> Tensor:
    # A slope by responses' log-ratios as one by θ; a constant a prompt does not matter.
    return (slope[..., None] * features).sum((-2, -3))


def _joint(worlds: FeatureWorlds, source: Tensor) -> Tensor:
    half = slice(FEATURE_PROMPTS // 2)
    drawn = worlds.log_probs(source)[:, half].exp()
    return labelled(drawn, drawn, differences(worlds.reward[:, half]).sigmoid())


@check(
    "stage-call-shared",
    "TwoStage, arXiv:2508.10530, Algorithm 1",
    "The boundary score tells which pairs the policy gains more from.",
    "More often than a coin, where responses share features (linear softmax policies), the "
    "other side is the policy moved along the reward or against it, and training goes on long "
    "enough: after a few steps the stage says nothing there either, and on prompts that were "
    "not trained on it says less. Both sides' pairs carry the same labels, so that a better "
    "side helps only by where it puts its mass.",
)
def _shared_features(setting: Setting) -> Evidence:
    worlds = draw_feature_worlds(setting.worlds, generator=generator_of(setting.seed))
    margin = differences(worlds.reward)
    wins = (margin > 0).double() + HALF * (margin == 0)
    score = expected_score(wins, worlds.log_probs(worlds.policy), worlds.log_probs(worlds.off))
    tuning = score > HALF
    paths = [train(worlds, side, steps=TRAINED_STEPS[-1]) for side in (worlds.policy, worlds.off)]
    wrong = []
    for step in TRAINED_STEPS:
        on, off = (gains(worlds, path[step - 1]) for path in paths)
        wrong.append([tuning != (first > second) for first, second in zip(on, off, strict=True)])
    usual = wrong[TRAINED_STEPS.index(USUAL_STEPS)]
    shares = [[float(calls.double().mean()) for calls in both] for both in wrong]
    seen, unseen = zip(*shares, strict=True)
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
               [curve("on the prompts of training", list(TRAINED_STEPS), list(seen)),
                curve("on other prompts", list(TRAINED_STEPS), list(unseen))],
               log="x"),
    )  # fmt: skip


def _slope_residual(worlds: FeatureWorlds) -> Tensor:
    # Of `train`'s slope at π_off against autograd's on the loss of log π_off/π_θ.
    half = slice(FEATURE_PROMPTS // 2)
    joint, seen = _joint(worlds, worlds.off), worlds.features[:, half]
    scale = torch.full((len(joint), 1, 1), BETA, dtype=torch.float64)
    theta = worlds.off.clone().requires_grad_()
    ratio = worlds.log_probs(theta) - worlds.log_probs(worlds.policy)
    (wanted,) = torch.autograd.grad(dpo_loss(ratio[:, half], scale, joint).sum(), theta)
    moved = _dot(seen, worlds.off - worlds.policy)
    return wanted - _carried(dpo_gradient(moved, scale, joint), seen)


CHECKS = (_call, _shared_features)
