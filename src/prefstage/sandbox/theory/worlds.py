"""Tabular worlds: finite prompts and responses, where every expectation is a sum."""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from prefstage.losses import DPO

PreferenceModel = Literal["bradley-terry", "noisy", "ties", "intransitive"]
"""How preferences follow from rewards; only the first is a Bradley-Terry model."""

HALF = 0.5
SMALL = 1e-6
"""Values that differ by more are taken as different, whatever rounding does."""
ROUNDING = 1e-12

PAIRS_A_SIDE = 2
"""Responses of each side to a prompt, as many as measuring takes."""

NOISE = 0.1
TIE_REACH = 0.7
CYCLE = 1.5
_NEWTON_STEPS = 60
_NEWTON_REACH = 4.0


@dataclass(frozen=True)
class Worlds:
    """A batch of worlds.

    Attributes:
        log_policy: log π(y|x). [worlds, prompts, responses], nats, float64.
        log_reference: log π_ref(y|x). [worlds, prompts, responses], nats.
        reward: r(x, y). [worlds, prompts, responses].
        preference: P(y_i ≻ y_j | x). [worlds, prompts, responses, responses].
        beta: Pull towards the reference. [worlds, 1, 1], 1/nats.
        seed: That they were drawn from.
    """

    log_policy: Tensor
    log_reference: Tensor
    reward: Tensor
    preference: Tensor
    beta: Tensor
    seed: int

    def preferring(self, model: PreferenceModel) -> "Worlds":
        """The same worlds with another preference model."""
        return replace(self, preference=preference_of(self.reward, model))


def generator_of(seed: int) -> torch.Generator:
    """A generator of random numbers with its own seed."""
    return torch.Generator().manual_seed(seed)


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    """Standard normal numbers, float64. [*shape]."""
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def uniform(generator: torch.Generator, *shape: int) -> Tensor:
    """Numbers in [0, 1), float64. [*shape]."""
    return torch.rand(shape, generator=generator, dtype=torch.float64)


def differences(values: Tensor) -> Tensor:
    """x_i - x_j of every two. [..., responses] -> [..., responses, responses]."""
    return values[..., :, None] - values[..., None, :]


def products(first: Tensor, second: Tensor) -> Tensor:
    """x_i y_j: of two distributions, that of independent draws. [..., responses, responses]."""
    return first[..., :, None] * second[..., None, :]


def draw_worlds(
    count: int, *, seed: int, prompts: int = 2, responses: int = 6, spread: float = 1.0
) -> Worlds:
    """Draw random worlds with Bradley-Terry preferences.

    Args:
        count: Number of worlds.
        seed: Of all random numbers.
        prompts: Prompts of each world.
        responses: Responses to each prompt.
        spread: Standard deviation of rewards and of unnormalised log-probs.

    Returns:
        The worlds; β is log-uniform in [0.05, 2].
    """
    generator = generator_of(seed)
    policy, reference, reward = (
        spread * normal(generator, count, prompts, responses) for _ in range(3)
    )
    return Worlds(
        log_policy=policy.log_softmax(-1),
        log_reference=reference.log_softmax(-1),
        reward=reward,
        preference=preference_of(reward, "bradley-terry"),
        beta=0.05 * 40 ** uniform(generator, count, 1, 1),
        seed=seed,
    )


def verdict(gap: Tensor) -> Tensor:
    """1 where the first response is better, ½ for a tie. Of the shape of `gap`."""
    return (gap > 0).double() + HALF * (gap == 0)


def draw_responses(chance: Tensor, asked: Tensor, generator: torch.Generator) -> Tensor:
    """Draw responses to prompts, `PAIRS_A_SIDE` to each, with replacement.

    Args:
        chance: π(y|x). [worlds, prompts, responses].
        asked: Which prompts. [worlds, drawn].
        generator: Of all draws.

    Returns:
        Which responses. [worlds, drawn, `PAIRS_A_SIDE`].
    """
    rows = torch.arange(len(asked))[:, None]
    drawn = chance[rows, asked].flatten(0, 1).multinomial(PAIRS_A_SIDE, True, generator=generator)
    return drawn.reshape(*asked.shape, PAIRS_A_SIDE)


def preference_of(reward: Tensor, model: PreferenceModel) -> Tensor:
    """P(y_i ≻ y_j | x) of every two responses.

    ``bradley-terry``: σ(r_i - r_j). ``noisy``: every tenth label is turned round. ``ties``:
    rewards closer than 0.7 count as equal. ``intransitive``: beyond the reward, each response
    beats the next one in a cycle.

    Args:
        reward: r. [..., responses].
        model: Which of these.

    Returns:
        P. [..., responses, responses]; P_ij + P_ji = 1.
    """
    margin = differences(reward)
    return {
        "bradley-terry": margin.sigmoid(),
        "noisy": NOISE + (1 - 2 * NOISE) * margin.sigmoid(),
        "ties": torch.where(margin.abs() < TIE_REACH, 0.0, margin).sigmoid(),
        "intransitive": (margin + CYCLE * cycle(reward.shape[-1])).sigmoid(),
    }[model]


def cycle(responses: int) -> Tensor:
    """The antisymmetric matrix by which each response beats the next one, in a circle."""
    following = torch.eye(responses, dtype=torch.float64).roll(1, dims=1)
    return following - following.T


def optimum(log_reference: Tensor, reward: Tensor, beta: Tensor) -> Tensor:
    """Log π* of the alignment objective: ``π* ∝ π_ref exp(r/β)`` (arXiv:2508.10530, Eq. 7)."""
    return (log_reference + reward / beta).log_softmax(-1)


def parted(log_first: Tensor, log_second: Tensor, distance: float) -> tuple[Tensor, Tensor]:
    """Draw two policies apart, towards different halves of the responses.

    Args:
        log_first: Log-probs. [..., responses].
        log_second: Likewise.
        distance: Nats; 0 leaves both as they are.

    Returns:
        Both. [..., responses].
    """
    side = distance * (-1.0) ** torch.arange(1, 1 + log_first.shape[-1], dtype=torch.float64)
    return (log_first + side).log_softmax(-1), (log_second - side).log_softmax(-1)


def objective(worlds: Worlds, log_policy: Tensor, reward: Tensor) -> Tensor:
    """The alignment objective: ``E_π[r] - β KL(π, π_ref)`` (arXiv:2508.10530, Eq. 3).

    Args:
        worlds: Reference and β.
        log_policy: log π. [..., worlds, prompts, responses].
        reward: r. [worlds, prompts, responses].

    Returns:
        The objective. [..., worlds, prompts].
    """
    return (log_policy.exp() * reward).sum(-1) - worlds.beta[..., 0] * kl(
        log_policy, worlds.log_reference
    )


def kl(log_first: Tensor, log_second: Tensor) -> Tensor:
    """KL divergence over the last axis, nats."""
    return (log_first.exp() * (log_first - log_second)).sum(-1)


def labelled(first: Tensor, second: Tensor, preference: Tensor) -> Tensor:
    """Joint distribution of (y_w, y_l) when y_1 and y_2 are drawn and then labelled.

    Args:
        first: Probabilities of y_1. [..., responses].
        second: Probabilities of y_2, drawn independently. [..., responses].
        preference: P(y_i ≻ y_j). [..., responses, responses].

    Returns:
        P(y_w = i, y_l = j). [..., responses, responses]; sums to 1.
    """
    drawn = products(first, second)
    return (drawn + drawn.transpose(-1, -2)) * preference


def dpo_loss(log_ratio: Tensor, beta: Tensor | float, joint: Tensor) -> Tensor:
    """Expected DPO loss by the library's `DPO`.

    Args:
        log_ratio: f = log π/π_ref, up to a constant a prompt. [worlds, prompts, responses].
        beta: [worlds, 1, 1], or one for all.
        joint: P(y_w = i, y_l = j). [worlds, prompts, responses, responses].

    Returns:
        The loss. [worlds, prompts].
    """
    # The library takes items in one row: every two responses of every prompt are one.
    scaled = (beta * log_ratio)[..., None].expand(joint.shape)
    losses = DPO(beta=1.0).of_ratios(scaled.reshape(-1), scaled.mT.reshape(-1))
    return (joint * losses.reshape(joint.shape)).sum((-1, -2))


def dpo_gradient(log_ratio: Tensor, beta: Tensor | float, joint: Tensor) -> Tensor:
    """Functional gradient of `dpo_loss` by f, from automatic differentiation.

    Args:
        log_ratio: As for `dpo_loss`.
        beta: Likewise.
        joint: Likewise.

    Returns:
        δL/δf. [worlds, prompts, responses].
    """
    leaf = log_ratio.detach().clone().requires_grad_()
    return torch.autograd.grad(dpo_loss(leaf, beta, joint).sum(), leaf)[0]


def dpo_optimum(joint: Tensor) -> Tensor:
    """The minimiser βf of the expected DPO loss, by Newton's method.

    The loss is convex in βf; it has one minimum, up to a constant, where every two responses
    are linked by pairs labelled either way.

    Args:
        joint: P(y_w = i, y_l = j), positive off the diagonal. [..., responses, responses].

    Returns:
        βf with mean 0. [..., responses].
    """
    either = joint + joint.transpose(-1, -2)
    scaled = joint.new_zeros(joint.shape[:-1])
    for _ in range(_NEWTON_STEPS):
        share = differences(scaled).sigmoid()
        weight = either * share * (1 - share)
        # The loss does not see a constant a prompt; the 1 gives that direction curvature, so
        # that the system can be solved.
        step = torch.linalg.solve(
            torch.diag_embed(weight.sum(-1)) - weight + 1, (either * share - joint).sum(-1)
        )
        # Far from the optimum the logistic curve is flat and a whole Newton step overshoots.
        scaled = scaled - step * (
            _NEWTON_REACH / step.abs().amax(-1, keepdim=True).clamp(min=_NEWTON_REACH)
        )
    return scaled - scaled.mean(-1, keepdim=True)
