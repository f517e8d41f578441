"""Tensors computed again in the backward pass: the same gradient, for less memory."""

from typing import Any

import pytest
import torch
from torch import Tensor

from prefstage.scoring import response_log_probs
from prefstage.scoring.cpu.fused import find_fused_layers, rms_norm
from prefstage.scoring.cpu.lean import Recipes, _Recipe, computed_by
from prefstage.scoring.engine import ModelParts
from tests.scoring.tiny_models import CONFIGS, tiny_model, tree_of


def gradients(model: Any, recipes: Recipes | None, *, seed: int = 0) -> list[Tensor]:
    model.zero_grad()
    ids = torch.randint(3, 90, (40,), generator=torch.Generator().manual_seed(seed)).tolist()
    tree = tree_of(ids[:20], [ids[20:33], ids[33:]])
    if recipes is None:
        scored = response_log_probs(model, [tree])
    else:
        with recipes.keeping():
            scored = response_log_probs(model, [tree])
    (scored[0].sums * torch.tensor([1.0, -1.0])).sum().backward()
    return [weight.grad.clone() for weight in model.parameters() if weight.grad is not None]


@pytest.mark.parametrize("architecture", sorted(CONFIGS.keys() - {"mamba"}))
def test_gradients_are_the_same_to_the_bit(architecture: str) -> None:
    model, recipes = tiny_model(architecture), Recipes()
    find_fused_layers(ModelParts.of(model).body)
    for seed in range(2):
        expected = gradients(model, None, seed=seed)
        found = gradients(model, recipes, seed=seed)
        assert len(found) == len(expected)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_what_has_a_recipe_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = list[Any]()
    keep = Recipes._keep

    def noting(recipes: Recipes, tensor: Tensor) -> Any:
        kept.append(keep(recipes, tensor))
        return kept[-1]

    monkeypatch.setattr(Recipes, "_keep", noting)
    x, weight = torch.randn(5, 4, requires_grad=True), torch.ones(4, requires_grad=True)
    maps = [torch.nn.Linear(4, 3, bias=False) for _ in range(2)]
    recipes = Recipes()
    with recipes.keeping():
        normal = rms_norm(x, weight, eps=1e-5)
        result = sum(each(normal).sum() for each in maps)
    assert sum(isinstance(each, _Recipe) for each in kept) == 2
    assert not recipes.known
    result.backward()
    assert x.grad is not None


def test_maps_of_the_same_input_compute_it_once() -> None:
    x = torch.randn(5, 4, requires_grad=True)
    recipes, calls = Recipes(), list[int]()
    maps = [torch.nn.Linear(4, 3, bias=False) for _ in range(3)]
    with recipes.keeping():
        double = x * 2
        computed_by(double, lambda: calls.append(1) or x.detach() * 2)
        result = sum(each(double).sum() for each in maps)
    result.backward()
    assert calls == [1]
    torch.testing.assert_close(x.grad, 2 * sum(m.weight.sum(0) for m in maps).expand(5, 4))


def test_a_change_after_keeping_is_an_error() -> None:
    weight = torch.full((50,), 3.0, requires_grad=True)
    with Recipes().keeping():
        x = weight * 1.0
        square = x.square()
    with torch.no_grad():
        x.mul_(10)
    with pytest.raises(RuntimeError, match=r"shape \(50,\).*changed in place"):
        square.sum().backward()
