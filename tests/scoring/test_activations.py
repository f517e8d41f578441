"""What is kept for a backward pass: once, exactly, and freed by it."""

import gc
from typing import Any

import pytest
import torch
from torch import Tensor

from prefstage.scoring import activations, response_log_probs
from prefstage.scoring.activations import ActivationStore, current_store
from prefstage.scoring.fused_layers import find_fused_layers
from prefstage.scoring.model_parts import ModelParts
from tests.scoring.tiny_models import CONFIGS, tiny_model, tree_of

BLOCK = 1 << 16


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activations, "BLOCK_BYTES", BLOCK)
    monkeypatch.setattr(activations, "SMALLEST_BYTES", 64)


def gradients(model: Any, store: ActivationStore | None, *, seed: int = 0) -> list[Tensor]:
    model.zero_grad()
    ids = torch.randint(3, 90, (40,), generator=torch.Generator().manual_seed(seed)).tolist()
    tree = tree_of(ids[:20], [ids[20:33], ids[33:]])
    if store is None:
        scored = response_log_probs(model, [tree])
    else:
        with store.keeping(model.parameters()):
            assert current_store() is store
            scored = response_log_probs(model, [tree])
        assert store.used_bytes > 0
    assert current_store() is None
    (scored[0].sums * torch.tensor([1.0, -1.0])).sum().backward()
    return [weight.grad.clone() for weight in model.parameters() if weight.grad is not None]


@pytest.mark.parametrize("architecture", sorted(CONFIGS.keys() - {"mamba"}))
def test_gradients_are_the_same_to_the_bit(architecture: str) -> None:
    model, store = tiny_model(architecture), ActivationStore()
    find_fused_layers(ModelParts.of(model).body)
    for seed in range(2):
        expected = gradients(model, None, seed=seed)
        found = gradients(model, store, seed=seed)
        assert len(found) == len(expected)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_tensor_is_kept_once_and_weights_not_at_all() -> None:
    store, weight = ActivationStore(), torch.ones(100, requires_grad=True)
    with store.keeping([weight]):
        x = weight * 2
        y = x * x + x.exp() * x.view(10, 10).t().reshape(-1)
        assert store.used_bytes <= 4 * (64 + x.nbytes)  # x, e^x, and the transposed copy
        y.sum().backward()
    two = torch.tensor(2.0)
    slope = 2 * two + two.exp() * (1 + two)
    torch.testing.assert_close(weight.grad, (2 * slope).expand(100))


def test_a_change_after_keeping_does_not_reach_what_was_kept() -> None:
    store, weight = ActivationStore(), torch.full((50,), 3.0, requires_grad=True)
    with store.keeping([]):
        x = weight * 1.0
        square = x.square()
        with torch.no_grad():
            x.mul_(10)
        cube = x * x.detach()
    (square + 0 * cube).sum().backward()
    torch.testing.assert_close(weight.grad, torch.full((50,), 6.0))


def test_a_norm_is_computed_again_instead_of_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    model, store = tiny_model("llama"), ActivationStore()
    find_fused_layers(ModelParts.of(model).body)
    gradients(model, store)
    with_recipes = store.used_bytes
    monkeypatch.setattr(ActivationStore, "computed_by", lambda *_: None)
    gradients(model, store)
    assert store.used_bytes >= with_recipes + 4 * 38 * 32 * 4  # places · hidden · float32


def test_blocks_are_filled_before_another_is_made() -> None:
    store = ActivationStore()
    with store.keeping([]):
        halves = [store.new((BLOCK // 8,), torch.float32) for _ in range(4)]
        large = store.new((3 * BLOCK,), torch.uint8)
    assert len({tensor.untyped_storage().data_ptr() for tensor in halves}) == 2
    assert store.used_bytes == 5 * BLOCK
    assert large.nbytes == 3 * BLOCK
    for index, tensor in enumerate(halves):
        tensor.fill_(index)
    assert [float(tensor.mean()) for tensor in halves] == [0, 1, 2, 3]


def test_blocks_let_go_are_freed_by_the_backward_pass() -> None:
    store, weight = ActivationStore(), torch.ones(BLOCK // 4, requires_grad=True)
    with store.keeping([weight]):
        result = (weight * 2).square().exp()
    assert store.used_bytes >= 2 * BLOCK
    living = activations._reference(store._blocks[0].data.untyped_storage())
    store.let_go()
    assert store.used_bytes == 0
    assert not living.expired()
    result.sum().backward()
    del result
    gc.collect()
    assert living.expired()
    four = torch.tensor(4.0)
    torch.testing.assert_close(weight.grad, (8 * four.exp()).expand(len(weight)))
