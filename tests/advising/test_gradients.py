"""Directions of data: equal to brute force for every loss, whatever the batches and layout."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from prefstage.advising.gradients import Basis, Drift, Gradients
from prefstage.data import PairSet
from prefstage.losses import LOSSES
from tests.tiny_models import tiny_tokenizer
from tests.training.preference_runs import preference_trainer, tiny_pairs, tiny_policy

PAIRS, BATCH = 10, 5


def brute_force(trainer: Any, positions: list[int], step: int, state: Any) -> tuple[Tensor, Any]:
    """-∇ of the objective from the model's own forward passes, a response at a time."""
    known = trainer.references.of(trainer.train_dataset)
    items = trainer.step_items(trainer.train_dataset, positions, known, step=step)
    log_probs, squares = [], []
    for tree in items.trees:
        for response in tree.response_ids:
            ids = torch.tensor([[*tree.prompt_ids, *response]])
            logits = trainer.model(input_ids=ids).logits[0, len(tree.prompt_ids) - 1 : -1]
            shares = logits.log_softmax(-1)
            log_probs.append(shares.gather(1, torch.tensor(response)[:, None])[:, 0])
            squares.append((2 * shares.detach()).logsumexp(-1))
    batch = items.loss_batch(torch.cat(log_probs), torch.cat(squares))
    values = trainer.loss.compute(batch, state)
    trainer.model.zero_grad()
    (values.values.sum() / items.whole_totals.items).backward()
    flat = torch.cat([p.grad.reshape(-1) for p in trainer.model.parameters() if p.requires_grad])
    trainer.model.zero_grad(set_to_none=True)
    return -flat, values.state


def measured(trainer: Any, batches: list[list[int]], groups: int = 2, **basis: Any) -> Drift:
    trainer.compute_references()
    gradients = Gradients(trainer, Basis(trainer.model, **basis))
    return gradients.drift(trainer.train_dataset, batches, groups=groups)


def batches_of(trainer: Any, size: int = BATCH) -> list[list[int]]:
    count = len(trainer.train_dataset)
    return [list(range(start, min(start + size, count))) for start in range(0, count, size)]


# Of every loss, in several micro-batches a step, with all weights and with an adapter's alone.
@pytest.mark.parametrize("loss", list(LOSSES))
@pytest.mark.parametrize("layout", ["tree", "flat"])
def test_directions_equal_brute_force(tmp_path: Path, loss: str, layout: str) -> None:
    reference = "start" if "reference" in LOSSES[loss].needs else "none"
    gold = "gold" in LOSSES[loss].needs
    pairs = [replace(pair, agreement=0.8) for pair in tiny_pairs(PAIRS, gold=gold)]
    adapter = None
    if layout == "flat":
        peft = pytest.importorskip("peft")
        adapter = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear")
    trainer = preference_trainer(
        tmp_path,
        data=PairSet.of(pairs),
        loss=loss,
        reference=reference,
        peft_config=adapter,
        layout=layout,
        token_budget=60,
    )
    batches = batches_of(trainer)
    first = trainer.step_items(trainer.train_dataset, batches[0], None, step=0)
    assert len(trainer.runner.plan(first)[0]) > 1
    trainer.compute_references()
    # Away from the reference, where some losses have a kink that rounding would decide.
    torch.manual_seed(0)
    for parameter in trainer.model.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)

    drift = measured(trainer, batches)

    state, descents = trainer.loss.start_state(), []
    for step, positions in enumerate(batches):
        descent, state = brute_force(trainer, positions, step, state)
        descents.append(descent)
    expected = torch.stack(descents)
    scale = expected.norm()
    assert scale > 0
    assert (drift.mean - expected.mean(0)).norm() / scale < 1e-5
    assert (drift.squares.sum(0) - expected.square().sum(0)).norm() / scale**2 < 1e-5


@pytest.mark.parametrize("settings", [{"layout": "flat"}, {"token_budget": 40}])
@pytest.mark.parametrize("loss", ["sigmoid", "bco_pair"])
def test_neither_layout_nor_budget_moves_them(
    tmp_path: Path, settings: dict[str, Any], loss: str
) -> None:
    usual = preference_trainer(tmp_path / "a", pairs=PAIRS, loss=loss)
    other = preference_trainer(tmp_path / "b", pairs=PAIRS, loss=loss, **settings)
    first, second = measured(usual, batches_of(usual)), measured(other, batches_of(other))
    assert (first.sums - second.sums).norm() / first.sums.norm() < 1e-5


def test_the_policy_is_as_it_was(tmp_path: Path) -> None:
    trainer = preference_trainer(tmp_path, pairs=PAIRS)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.model.eval()
    measured(trainer, batches_of(trainer))
    assert all(torch.equal(value, before[n]) for n, value in trainer.model.state_dict().items())
    assert not any(module.training for module in trainer.model.modules())
    assert all(parameter.grad is None for parameter in trainer.model.parameters())


def test_low_precision_points_the_same_way(tmp_path: Path) -> None:
    low = tiny_policy(tiny_tokenizer("chatml")).to(torch.bfloat16)
    exact, same, rough = (
        measured(trainer, batches_of(trainer)).mean
        for trainer in (
            preference_trainer(tmp_path / "a", pairs=PAIRS),
            preference_trainer(tmp_path / "b", pairs=PAIRS, bf16=True),
            preference_trainer(tmp_path / "c", pairs=PAIRS, model=low),
        )
    )
    assert 1e-4 < (rough - exact).norm() / exact.norm() < 0.1
    assert torch.equal(same, exact)  # gradients have the precision of the weights


def test_some_coordinates_stand_for_all(tmp_path: Path) -> None:
    trainer = preference_trainer(tmp_path, pairs=PAIRS)
    batches = batches_of(trainer)
    basis = Basis(trainer.model)
    whole = measured(trainer, batches)
    exact = float(basis.dot(whole.sums[0], whole.sums[1]))
    norms = float(basis.norm(whole.sums[0]) * basis.norm(whole.sums[1]))
    estimates = []
    for seed in range(24):
        some = Basis(trainer.model, most=2_000, seed=seed)
        assert len(some) < len(basis) / 2
        assert float(some.weights.sum()) == pytest.approx(len(basis))
        drift = measured(trainer, batches, most=2_000, seed=seed)
        estimates.append(float(some.dot(drift.sums[0], drift.sums[1])))
    spread = torch.tensor(estimates).std()
    assert spread / norms < 0.25
    assert abs(torch.tensor(estimates).mean() - exact) < 4 * spread / len(estimates) ** 0.5


def test_mean_square_of_other_batch_sizes() -> None:
    generator = torch.Generator().manual_seed(0)
    items = 0.3 + torch.randn(4096, 3, generator=generator)
    for size in (1, 4, 16):
        batches = items.view(-1, size, 3).mean(1)
        drift = Drift(
            batches.sum(0, keepdim=True),
            batches.square().sum(0, keepdim=True),
            torch.tensor([float(len(batches))]),
            size,
        )
        plain = batches.square().mean(0)
        assert torch.allclose(drift.mean_square(size), plain, rtol=1e-5)
        # E[g²] = mean² + variance / batch
        assert torch.allclose(drift.mean_square(16), torch.tensor(0.09 + 1 / 16), atol=0.03)


def test_groups_left_out() -> None:
    drift = Drift(
        torch.tensor([[1.0], [4.0]]), torch.tensor([[1.0], [8.0]]), torch.tensor([1.0, 2.0]), 4
    )
    assert float(drift.mean) == pytest.approx(5 / 3)
    assert float(drift.without(0).mean) == 2.0
    assert float(drift.without(1).mean) == 1.0
