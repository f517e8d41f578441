"""The forecast against the exact change of the expected reward, in small worlds."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from prefstage.advising.forecast import (
    Estimate,
    ExpectedReward,
    Forecast,
    family_of,
    forecast,
    forecast_gains,
    step_direction,
)
from prefstage.advising.gradients import Basis, Drift, Gradients, halves_agree
from prefstage.core import InputError
from prefstage.data import Candidates, CandidateSet, Pair, PairSet, prompt_id_of
from prefstage.losses import LossMix, LossTerm
from prefstage.training.batches import StepItems
from prefstage.training.datasets import item_set_of
from prefstage.training.step import StepRunner
from tests.training.preference_runs import (
    largest_difference,
    preference_trainer,
    tiny_pairs,
    weights_of,
)

RESPONSES, FEATURES = 6, 12


class LinearWorld:
    """log π(y|x) = log-softmax(φ(x, y)·θ), rewards of every response known."""

    def __init__(self, seed: int, prompts: int = 200) -> None:
        self.random = torch.Generator().manual_seed(seed)
        shape = (prompts, RESPONSES, FEATURES)
        self.features = torch.randn(shape, generator=self.random, dtype=torch.double)
        truth = torch.randn(FEATURES, generator=self.random, dtype=torch.double)
        self.rewards = torch.sigmoid(self.features @ truth)
        self.theta = 0.3 * torch.randn(FEATURES, generator=self.random, dtype=torch.double)

    def probabilities(self, theta: Any) -> Any:
        return (self.features @ theta).softmax(-1)

    def scores(self, prompts: Any, responses: Any) -> Any:
        """∇ log π(y|x). [n, features]."""
        mean = (self.probabilities(self.theta)[..., None] * self.features).sum(1)
        return self.features[prompts, responses] - mean[prompts]

    def target(self, answers: int = 8, groups: int = 10) -> Drift:
        """∇J estimated from sampled answers, a group of prompts a batch."""
        prompts = torch.arange(len(self.features))
        drawn = torch.multinomial(
            self.probabilities(self.theta), answers, True, generator=self.random
        )
        rewards = self.rewards.gather(1, drawn)
        advantage = (rewards - rewards.mean(1, keepdim=True)) / (answers - 1)
        parts = torch.zeros(len(prompts), FEATURES, dtype=torch.double)
        for k in range(answers):
            parts += advantage[:, k : k + 1] * self.scores(prompts, drawn[:, k])
        return drift_of(parts, groups, 1)

    def pairs(self, count: int, *, own: bool, flips: float) -> Drift:
        """Descent directions of DPO at its reference on pairs of own or uniform responses."""
        prompts = torch.randint(len(self.features), (count,), generator=self.random)
        weights = self.probabilities(self.theta) if own else torch.ones_like(self.rewards)
        drawn = torch.multinomial(weights[prompts], 2, generator=self.random)
        better = self.rewards[prompts[:, None], drawn]
        swap = (better[:, 0] < better[:, 1]) ^ (torch.rand(count, generator=self.random) < flips)
        chosen = torch.where(swap, drawn[:, 1], drawn[:, 0])
        rejected = torch.where(swap, drawn[:, 0], drawn[:, 1])
        # -∇L = β/2 · (∇ log π(y_w) - ∇ log π(y_l)), β = 0.1
        parts = 0.05 * (self.scores(prompts, chosen) - self.scores(prompts, rejected))
        return drift_of(parts.view(-1, 8, FEATURES).mean(1), 8, 8)


def drift_of(parts: Any, groups: int, size: int) -> Drift:
    chunks = parts.tensor_split(groups)
    return Drift(
        torch.stack([chunk.sum(0) for chunk in chunks]),
        torch.stack([chunk.square().sum(0) for chunk in chunks]),
        torch.tensor([float(len(chunk)) for chunk in chunks]),
        size,
    )


def flat_basis(size: int) -> Any:
    basis = object.__new__(Basis)
    basis.weights = torch.ones(size)
    return basis


def test_intervals_of_differences_hold() -> None:
    """Two data sets drawn anew: the true difference of their sources lies in the interval."""
    basis, right, worlds = flat_basis(FEATURES), 0, 200
    recipe: dict[str, Any] = {"family": "sgd", "batch": 8, "epsilon": 0.0, "largest_norm": 0.0}
    for seed in range(worlds):
        world = LinearWorld(seed)
        own, other = (world.pairs(256, own=source, flips=0.1) for source in (True, False))
        target = world.target()
        exact = world.theta.clone().requires_grad_()
        value = ((world.features @ exact).softmax(-1) * world.rewards).sum(-1).mean()
        (gradient,) = torch.autograd.grad(value, exact)
        many = [world.pairs(16_384, own=source, flips=0.1).mean for source in (True, False)]
        truth = float(gradient @ (many[0] - many[1]))
        gap = forecast(target, own, basis, **recipe).gain.minus(
            forecast(target, other, basis, **recipe).gain
        )
        right += abs(gap.value - truth) < 2.262 * gap.error
    assert right / worlds >= 0.93


def test_a_forecast_of_the_target_itself_has_cosine_one() -> None:
    world = LinearWorld(0)
    target, basis = world.target(), flat_basis(FEATURES)
    recipe: dict[str, Any] = {"family": "sgd", "batch": 8, "epsilon": 0.0, "largest_norm": 0.0}
    assert forecast(target, target, basis, **recipe).cosine.value == pytest.approx(1)
    assert halves_agree(target, basis) > 0.5


def test_long_gradients_are_clipped_for_sgd_only() -> None:
    world, basis = LinearWorld(0), flat_basis(FEATURES)
    data = world.pairs(256, own=True, flips=0.0)
    recipe: dict[str, Any] = {"batch": 8, "epsilon": 1e-8}
    free = step_direction(data, basis, family="sgd", largest_norm=0.0, **recipe)
    norm = float(data.mean_square(8).sum().sqrt())
    clipped = step_direction(data, basis, family="sgd", largest_norm=norm / 2, **recipe)
    assert torch.allclose(clipped, free / 2)
    unmoved = step_direction(data, basis, family="adam", largest_norm=norm / 2, **recipe)
    assert torch.equal(
        unmoved, step_direction(data, basis, family="adam", largest_norm=0, **recipe)
    )


@pytest.mark.parametrize(
    ("optimizer", "family"),
    [("adamw_torch", "adam"), ("rmsprop", "adam"), ("sgd", "sgd"), ("lion_8bit", "sign")],
)
def test_families(optimizer: str, family: str) -> None:
    assert family_of(optimizer) == family


def test_expected_reward_is_reinforce_with_the_others_as_baseline() -> None:
    log_probs = torch.tensor([-1.0, -2.0, -3.0, -4.0, -5.0], requires_grad=True)
    scores = torch.tensor([1.0, 0.0, 2.0, 0.5, 0.5])
    batch: Any = SimpleNamespace(
        responses=SimpleNamespace(scores=scores, log_probs=log_probs),
        group=torch.tensor([0, 0, 0, 1, 1]),
    )
    ExpectedReward()._items(batch).sum().backward()
    expected = torch.tensor([(1 - 1.0) / 3, (0 - 1.5) / 3, (2 - 0.5) / 3, 0.0, 0.0])
    assert torch.allclose(-log_probs.grad, expected)  # type: ignore[arg-type]  # set by backward


def test_probabilities_of_winning_are_counted_from_one_half() -> None:
    log_probs = torch.tensor([-1.0, -2.0], requires_grad=True)
    batch: Any = SimpleNamespace(
        responses=SimpleNamespace(scores=torch.tensor([0.8, 0.2]), log_probs=log_probs),
        group=torch.tensor([0, 0]),
    )
    ExpectedReward(compared=True)._items(batch).sum().backward()
    assert torch.allclose(-log_probs.grad, torch.tensor([0.15, -0.15]))  # type: ignore[arg-type]


def test_the_target_of_a_real_policy_points_uphill(tmp_path: Path) -> None:
    trainer = preference_trainer(tmp_path)
    texts = ("fox", "red moon", "the quick story", "tall")

    def row(number: int) -> Candidates:
        prompt = ({"role": "user", "content": f"fox {number} once"},)
        return Candidates(prompt_id_of(prompt), prompt, texts, (None,) * 4, (1.0, 0.0, 0.5, 0.2))

    goal = LossMix((LossTerm(ExpectedReward()),))
    items = item_set_of(CandidateSet.of(row(n) for n in range(8)), trainer.encoder, goal)
    basis = Basis(trainer.model)
    gradients = Gradients(trainer, basis)
    batches = [[2 * n, 2 * n + 1] for n in range(4)]
    drift = gradients.drift(items, batches, groups=4, loss=goal)

    def objective() -> float:
        step = [StepItems(items.kind, tuple(items.items[n] for n in batch)) for batch in batches]
        known = trainer.runner
        runner = StepRunner(
            known.scorer, trainer.accelerator, goal, token_budget=known.token_budget
        )
        with gradients._prepared():
            return sum(float(runner.train(trainer.model, s, {}).loss) for s in step) / 4

    before, start = objective(), 0
    for parameter in (p for p in trainer.model.parameters() if p.requires_grad):
        part = drift.mean[start : start + parameter.numel()].view_as(parameter)
        parameter.data += 1e-4 * part
        start += parameter.numel()
    change = before - objective()
    assert change == pytest.approx(1e-4 * float(basis.dot(drift.mean, drift.mean)), rel=0.02)


def judged(count: int) -> CandidateSet:
    """Three answers a prompt, with their scores."""
    texts = ("fox", "red moon", "the quick story")
    prompts = [({"role": "user", "content": f"fox {n} once"},) for n in range(count)]
    return CandidateSet.of(
        Candidates(prompt_id_of(prompt), prompt, texts, (None,) * 3, (1.0, 0.0, 0.2 * (n % 3)))
        for n, prompt in enumerate(prompts)
    )


def turned(pairs: PairSet) -> PairSet:
    """The same pairs, each the other way round."""
    return PairSet.of(
        Pair(pair.prompt_id, pair.prompt, pair.rejected, pair.chosen) for pair in pairs
    )


def test_data_that_point_one_way_agree_and_labels_by_chance_do_not(tmp_path: Path) -> None:
    trainer = preference_trainer(tmp_path, loss="sigmoid")
    pairs = tiny_pairs(64)
    same = PairSet.of(
        Pair(f"{n}", pairs[0].prompt, pairs[0].chosen, pairs[0].rejected) for n in range(16)
    )
    mixed = PairSet.of([*list(pairs)[:32], *list(turned(PairSet.of(list(pairs)[:32])))])
    made = forecast_gains(trainer, judged(8), {"same": same, "mixed": mixed}).by_name
    assert made["same"].agreement.value == pytest.approx(1.0, abs=1e-5)
    assert made["mixed"].agreement.value < 0.6


def test_the_rating_is_the_gain_that_pairs_share() -> None:
    def estimate(value: float, *left_out: float) -> Estimate:
        return Estimate(value, torch.full((2,), value), (torch.tensor(left_out),))

    cosine = estimate(0.3, 0.3, 0.3)
    shared = Forecast(estimate(2.0, 1.0, 3.0), cosine, estimate(0.6, 0.5, 0.7)).rating
    assert shared.value == pytest.approx(1.2)
    assert shared.by_prompts.tolist() == pytest.approx([1.2, 1.2])
    assert shared.by_batches[0].tolist() == pytest.approx([0.5, 2.1])
    # What no two pairs share gains next to nothing, and loses nothing.
    for gain in (2.0, -2.0):
        alone = Forecast(estimate(gain, gain, gain), cosine, estimate(-0.2, -0.2, -0.2)).rating
        assert alone.value == pytest.approx(0.01 * gain)


def test_a_turned_data_set_is_forecast_to_lose_what_the_other_gains(tmp_path: Path) -> None:
    trainer = preference_trainer(tmp_path, loss="sigmoid", optim="sgd", max_grad_norm=0.0)
    before, pairs = weights_of(trainer.model), tiny_pairs(16)
    found = forecast_gains(trainer, judged(16), {"ours": pairs, "turned": turned(pairs)})
    # At the start DPO's gradient is -β/2 (∇log π(y_w) - ∇log π(y_l)): turned, it changes its sign.
    ours, other = found.by_name["ours"], found.by_name["turned"]
    assert other.gain.value == pytest.approx(-ours.gain.value, rel=1e-4)
    assert other.cosine.value == pytest.approx(-ours.cosine.value, rel=1e-4)
    assert other.gain.error == pytest.approx(ours.gain.error, rel=1e-3)
    assert found.rate == trainer.args.learning_rate
    assert -1 <= found.agreement <= 1
    assert largest_difference(before, weights_of(trainer.model)) == 0
    assert trainer.state.global_step == 0


@pytest.mark.parametrize("loss", ["sigmoid", "slic", "bco", "aot"])
def test_forecasts_do_not_depend_on_the_token_budget(loss: str, tmp_path: Path) -> None:
    gains = []
    for budget in (20, 4000):
        trainer = preference_trainer(tmp_path / str(budget), loss=loss, token_budget=budget)
        found = forecast_gains(trainer, judged(8), {"ours": tiny_pairs(16)})
        gains.append(found.by_name["ours"].cosine.value)
    assert gains[0] == pytest.approx(gains[1], abs=1e-5)


@pytest.mark.parametrize("loss", ["sigmoid", "ipo", "kto", "aot"])
def test_a_reference_that_is_the_start_takes_no_pass_of_its_own(loss: str, tmp_path: Path) -> None:
    trainer = preference_trainer(tmp_path / "start", loss=loss)
    policy = tmp_path / "policy"
    trainer.model.save_pretrained(policy)
    trainer.processing_class.save_pretrained(policy)
    other = preference_trainer(tmp_path / "named", loss=loss, reference=str(policy))
    first, second = (
        forecast_gains(each, judged(8), {"ours": tiny_pairs(16)}).by_name["ours"]
        for each in (trainer, other)
    )
    assert first.gain.value == pytest.approx(second.gain.value, rel=1e-3)
    assert first.cosine.value == pytest.approx(second.cosine.value, rel=1e-3)
    assert not list((tmp_path / "start").rglob("*.parquet"))
    assert list((tmp_path / "named").rglob("*.parquet"))


def test_an_adapter_is_forecast_over_its_own_weights(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    lora = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear")
    trainer = preference_trainer(tmp_path, peft_config=lora)
    found = forecast_gains(trainer, judged(8), {"ours": tiny_pairs(8)})
    assert math.isfinite(found.by_name["ours"].gain.value)
    assert found.by_name["ours"].gain.value != 0


def test_what_cannot_be_forecast_is_one_line(tmp_path: Path) -> None:
    trainer = preference_trainer(tmp_path)
    with pytest.raises(InputError, match=r"answers to 3 prompts; expected .* at least 8 prompts"):
        forecast_gains(trainer, judged(3), {"ours": tiny_pairs(8)})
    with pytest.raises(InputError, match="no pairs of ours"):
        forecast_gains(trainer, judged(8), {"ours": PairSet.of([])})
