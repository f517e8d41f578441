"""Forecasts against what real optimisers' steps gain in worlds whose J is a sum."""

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from prefstage.advising.forecast import ExpectedReward, Family, forecast, step_direction
from tests.advising.test_forecast import drift_of, flat_basis

WORLDS, PROMPTS, RESPONSES, FEATURES = 200, 200, 6, 12
PAIRS, BATCH, BETA, RATE = 256, 8, 0.1, 1e-6
STUDENT_T = 2.262  # of 95 %, for ten groups


class LinearWorlds:
    """Policies π(y|x) ∝ exp(θ·φ(x, y)) with a reward, and preferences that follow from it."""

    def __init__(self, seed: int = 0) -> None:
        self.random = torch.Generator().manual_seed(seed)
        self.features = self._normal(WORLDS, PROMPTS, RESPONSES, FEATURES)
        self.rewards = self._scores(self._normal(WORLDS, FEATURES)).sigmoid()
        self.start = 0.3 * self._normal(WORLDS, FEATURES)
        self.policy = self._scores(self.start).softmax(-1)
        gaps = self.rewards[..., :, None] - self.rewards[..., None, :]
        self.wins = (4 * gaps).sigmoid()

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.random, dtype=torch.double)

    def _scores(self, theta: Tensor) -> Tensor:
        return torch.einsum("wxyf,wf->wxy", self.features, theta)

    def value(self, theta: Tensor, *, compared: bool) -> Tensor:
        """J: the expected reward, or the win rate over the start. [worlds]."""
        against_start = (self.wins * self.policy[..., None, :]).sum(-1)
        quality = against_start if compared else self.rewards
        return (self._scores(theta).softmax(-1) * quality).sum(-1).mean(-1)

    def targets(self, answers: int, *, compared: bool) -> Tensor:
        """Estimates of ∇J from drawn and judged answers. [worlds, prompts, features]."""
        chance = self.policy.reshape(-1, RESPONSES)
        drawn = chance.multinomial(answers, True, generator=self.random)
        if compared:
            rows = torch.arange(len(drawn))[:, None, None]
            wins = self.wins.reshape(-1, RESPONSES, RESPONSES)
            table = wins[rows, drawn[:, :, None], drawn[:, None, :]]
            scores = (table.sum(-1) - 0.5) / (answers - 1)  # but for the answer itself
        else:
            scores = self.rewards.reshape(-1, RESPONSES).gather(1, drawn)
        log_probs = torch.zeros(scores.numel(), dtype=torch.double, requires_grad=True)
        batch = SimpleNamespace(
            responses=SimpleNamespace(scores=scores.reshape(-1), log_probs=log_probs),
            group=torch.arange(len(drawn)).repeat_interleave(answers),
        )
        ExpectedReward(compared=compared)._items(batch).sum().backward()
        shares = -log_probs.grad.reshape(WORLDS, PROMPTS, answers, 1)  # type: ignore[union-attr]
        index = drawn.reshape(WORLDS, PROMPTS, answers, 1).expand(-1, -1, -1, FEATURES)
        mean = (self.policy[..., None] * self.features).sum(2, keepdim=True)
        return (shares * (self.features.gather(2, index) - mean)).sum(2)

    def pairs(self) -> Tensor:
        """φ(x, y_w) - φ(x, y_l): own or uniform answers, up to 30 % of the labels wrong."""
        worlds = torch.arange(WORLDS)
        prompts = torch.randint(PROMPTS, (WORLDS, PAIRS), generator=self.random)
        at = worlds[:, None], prompts
        own = (worlds % 2 == 0)[:, None, None]
        chance = torch.where(own, self.policy[at], torch.ones((), dtype=torch.double))
        drawn = chance.reshape(-1, RESPONSES).multinomial(2, generator=self.random)
        drawn = drawn.reshape(WORLDS, PAIRS, 2)
        rewards = self.rewards[at].gather(2, drawn)
        flips = torch.rand(WORLDS, PAIRS, generator=self.random) < 0.1 * (worlds % 4)[:, None]
        first, second = (
            self.features[at].gather(2, drawn[..., k, None, None].expand(-1, -1, 1, FEATURES))
            for k in (0, 1)
        )
        turned = (rewards[..., 0] < rewards[..., 1]) ^ flips
        gaps = (first - second).squeeze(2)
        return torch.where(turned[..., None], -gaps, gaps)


@pytest.fixture(scope="module")
def worlds() -> tuple[LinearWorlds, Tensor]:
    made = LinearWorlds()
    return made, made.pairs()


def trained(
    start: Tensor, gaps: Tensor, optimizer: Callable[[Any], Any], *, passes: int, clip: float = 0.0
) -> tuple[Tensor, int]:
    """θ after DPO in every world by a real optimiser, from the start, and the steps it took."""
    theta, steps = start.clone().requires_grad_(), 0
    descent = optimizer([theta])
    random = torch.Generator().manual_seed(1)
    for _ in range(passes):
        for batch in torch.randperm(PAIRS, generator=random).split(BATCH):
            margins = torch.einsum("wbf,wf->wb", gaps[:, batch], theta - start)
            descent.zero_grad()
            (-logsigmoid(BETA * margins).mean(-1).sum()).backward()
            if clip:
                norms = theta.grad.norm(dim=-1, keepdim=True)  # type: ignore[union-attr]
                theta.grad *= (clip / norms).clamp(max=1)
            descent.step()
            steps += 1
    return theta.detach(), steps


# -∇L at the reference, a batch a row.
def descents_of(gaps: Tensor) -> Tensor:
    return BETA / 2 * gaps.view(WORLDS, -1, BATCH, FEATURES).mean(2)


OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "adam": lambda weights: torch.optim.AdamW(weights, RATE, weight_decay=0),
    "sgd": lambda weights: torch.optim.SGD(weights, RATE),
}


# Adam from its cold start: the moments of the first steps are of few batches, as in a training.
@pytest.mark.parametrize(("family", "passes"), [("adam", 10), ("sgd", 1)])
@pytest.mark.parametrize(
    ("compared", "answers"), [(False, 8), (True, 8), (True, 2)], ids=["reward", "wins", "two"]
)
def test_the_gain_of_real_steps_lies_within_the_interval(
    worlds: tuple[LinearWorlds, Tensor],
    family: Family,
    passes: int,
    compared: bool,
    answers: int,
) -> None:
    world, gaps = worlds
    end, steps = trained(world.start, gaps, OPTIMIZERS[family], passes=passes)
    before = world.value(world.start, compared=compared)
    gains = (world.value(end, compared=compared) - before) / (steps * RATE)
    right = 0
    for target, descent, gain in zip(
        world.targets(answers, compared=compared), descents_of(gaps), gains, strict=True
    ):
        told = forecast(
            drift_of(target, 10, 1),
            drift_of(descent, 8, BATCH),
            flat_basis(FEATURES),
            family=family,
            batch=BATCH,
            epsilon=1e-8,
            largest_norm=0.0,
        ).gain
        # The data is what it is: only the prompts' answers are drawn anew.
        spread = math.sqrt(float((told.by_prompts - told.by_prompts.mean()).square().sum()) * 0.9)
        right += abs(told.value - float(gain)) < STUDENT_T * spread
    print(f"{right} of {WORLDS} worlds")
    assert right / WORLDS >= 0.93  # 95 % within two standard errors of 200 worlds


def test_clipped_steps_go_where_they_are_forecast(worlds: tuple[LinearWorlds, Tensor]) -> None:
    """Nearly: what is cut of long gradients is taken to be the same share of all."""
    world, gaps = worlds
    clip = 0.8 * float(descents_of(gaps).norm(dim=-1).mean())
    end, steps = trained(world.start, gaps, OPTIMIZERS["sgd"], passes=1, clip=clip)
    moves, apart = (end - world.start) / (steps * RATE), []
    for descent, moved in zip(descents_of(gaps), moves, strict=True):
        told = step_direction(
            drift_of(descent, 8, BATCH),
            flat_basis(FEATURES),
            family="sgd",
            batch=BATCH,
            epsilon=0.0,
            largest_norm=clip,
        )
        apart.append(float((told - moved).norm() / moved.norm()))
    assert sum(apart) / WORLDS < 0.1
    assert max(apart) < 0.3
