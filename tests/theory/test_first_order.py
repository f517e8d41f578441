"""DPO's first step, computed again: pair by pair, in tables, with the library's loss."""

from itertools import product

import pytest
import torch
from torch import Tensor

from prefstage.losses import DPO
from prefstage.sandbox.theory.first_order import divided, moments, sampled
from prefstage.sandbox.theory.stage_calls import draw_feature_worlds
from prefstage.sandbox.theory.worlds import labelled, normal, preference_of

RESPONSES, BETA = 5, 0.3


def table(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of a policy, P(y_i ≻ y_j) with a cycle in it, and rewards."""
    random = torch.Generator().manual_seed(seed)
    reward = normal(random, RESPONSES)
    return normal(random, RESPONSES), preference_of(reward, "intransitive"), reward


def descent_on(logits: Tensor, weights: dict[tuple[int, int], float]) -> Tensor:
    """-∇ by logits of DPO's loss at its reference, on pairs (chosen, rejected) by weight."""
    leaf = logits.clone().requires_grad_()
    ratios = leaf.log_softmax(-1) - logits.log_softmax(-1)
    total = sum(
        weight * DPO(beta=BETA).of_ratios(ratios[[w]], ratios[[k]]).sum()
        for (w, k), weight in weights.items()
    )
    return -torch.autograd.grad(total, leaf)[0]  # type: ignore[arg-type]


def policy_gradient(logits: Tensor, quality: list[float]) -> Tensor:
    """∇ Σ π(y) u(y) by logits: π(y) (u(y) - mean u)."""
    chance = logits.softmax(-1)
    values = torch.tensor(quality, dtype=torch.double)
    return chance * (values - (chance * values).sum())


@pytest.mark.parametrize("seed", range(5))
def test_own_pairs_follow_the_gradient_of_the_win_rate(seed: int) -> None:
    logits, preference, _ = table(seed)
    chance = logits.softmax(-1).tolist()
    pairs = {
        (w, k): 2 * chance[w] * chance[k] * float(preference[w, k])
        for w, k in product(range(RESPONSES), repeat=2)
    }
    wins = [
        sum(p * float(preference[y, other]) for other, p in enumerate(chance))
        for y in range(RESPONSES)
    ]
    uphill = policy_gradient(logits, wins)
    assert torch.allclose(descent_on(logits, pairs), 2 * BETA * uphill, atol=1e-15)
    # Evenly drawn answers give another direction.
    even = {
        (w, k): 2 / RESPONSES**2 * float(preference[w, k])
        for w, k in product(range(RESPONSES), repeat=2)
    }
    cosine = torch.cosine_similarity(descent_on(logits, even), uphill, dim=0)
    assert float(cosine) < 1 - 1e-4


@pytest.mark.parametrize("answers", [2, 3, 4])
def test_best_against_worst_follows_a_rising_function_of_the_rank(answers: int) -> None:
    logits, _, reward = table(7)
    chance, rewards = logits.softmax(-1).tolist(), reward.tolist()
    pairs = dict.fromkeys(product(range(RESPONSES), repeat=2), 0.0)
    for drawn in product(range(RESPONSES), repeat=answers):
        weight = 1.0
        for y in drawn:
            weight *= chance[y]
        pairs[max(drawn, key=rewards.__getitem__), min(drawn, key=rewards.__getitem__)] += weight
    # A table has ties: F is the mean of m F^(m-1) between below and below + π(y), for continuous
    # ranks m F(y)^(m-1).
    quality = []
    for y in range(RESPONSES):
        below = sum(p for p, r in zip(chance, rewards, strict=True) if r < rewards[y])
        up_to, above = below + chance[y], 1 - below - chance[y]
        best = (up_to**answers - below**answers) / chance[y]
        worst = ((above + chance[y]) ** answers - above**answers) / chance[y]
        quality.append(best - worst)
    expected = BETA / 2 * policy_gradient(logits, quality)
    assert torch.allclose(descent_on(logits, pairs), expected, atol=1e-15)
    ranked = sorted(range(RESPONSES), key=rewards.__getitem__)
    assert [quality[y] for y in ranked] == sorted(quality)


def test_moments_are_those_of_single_pairs() -> None:
    worlds = draw_feature_worlds(1, seed=1)
    drawn = worlds.log_probs(worlds.off).exp()
    joint = labelled(drawn, drawn, torch.full((8, 8), 0.5, dtype=torch.double))
    mean, square = moments(worlds, joint)
    first, second = torch.zeros_like(mean[0]), torch.zeros_like(mean[0])
    for x, w, k in product(range(8), repeat=3):
        descent = 0.05 * (worlds.features[0, x, w] - worlds.features[0, x, k])
        first += joint[0, x, w, k] / 8 * descent
        second += joint[0, x, w, k] / 8 * descent**2
    assert torch.allclose(mean[0], first, atol=1e-15)
    assert torch.allclose(square[0], second, atol=1e-15)
    # E[g²] of means of 16: the squared mean, and a sixteenth of the variance.
    spread = (first**2 + (second - first**2) / 16).sqrt()
    assert torch.allclose(divided(mean, square)[0], first / spread, rtol=1e-6)


def test_samples_hold_what_pairs_hold_on_the_average() -> None:
    worlds = draw_feature_worlds(400, seed=2)
    joint = labelled(
        *[worlds.log_probs(worlds.policy).exp()] * 2, worlds.reward.new_full((8, 8), 0.5)
    )
    one = sampled(joint, 64, torch.Generator().manual_seed(0))
    assert torch.equal((one * 8).round(), one * 8)  # counts of 64 pairs of 8 prompts
    assert torch.allclose(one.sum((-1, -2, -3)), torch.full((400,), 8.0).double())
    off = moments(worlds, one)[0] - moments(worlds, joint)[0]
    assert float(off.mean(0).abs().max()) < 4 * float(off.std(0).max()) / 20
