"""Gradients added in passing against those that autograd passes on."""

from typing import Any

import pytest
import torch
from torch import Tensor

from prefstage.scoring import response_log_probs
from prefstage.scoring.cpu.fused import find_fused_layers
from prefstage.scoring.cpu.lean import owner_of, saving
from prefstage.scoring.engine import ModelParts
from tests.scoring.tiny_models import tiny_model, tree_of


def gradients(model: Any, *, direct: bool, passes: int) -> dict[str, Tensor]:
    """Gradients of several passes, added up."""
    model.zero_grad()
    for index in range(passes):
        tree = tree_of([3, 4, 0, 5, 3 + index], [[6, 7, 0, 8], [9, 3]])
        if direct:
            with saving(direct=True):
                scored = response_log_probs(model, [tree])
        else:
            scored = response_log_probs(model, [tree])
        (scored[0].sums * torch.tensor([1.0, -2.0])).sum().backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters()}


@pytest.mark.parametrize("passes", [1, 3])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("architecture", ["llama", "phi3", "gemma2", "gpt2"])
def test_direct_gradients_are_the_gradients(architecture: str, tied: bool, passes: int) -> None:
    model = tiny_model(architecture, tie_word_embeddings=tied)
    find_fused_layers(ModelParts.of(model).body)
    expected = gradients(model, direct=False, passes=passes)
    found = gradients(model, direct=True, passes=passes)
    assert expected.keys() == found.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_they_are_off_where_another_waits_for_the_gradient() -> None:
    weight = torch.nn.Parameter(torch.zeros(2, 3))
    assert owner_of(weight) is None
    with saving(direct=True):
        assert owner_of(weight) is weight
        assert owner_of(torch.nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))) is None
        assert owner_of(weight * 2) is None
        with torch.no_grad():
            assert owner_of(weight) is None
        handle = weight.register_post_accumulate_grad_hook(lambda _: None)
        assert owner_of(weight) is None
        handle.remove()
        weight.register_hook(lambda gradient: gradient)
        assert owner_of(weight) is None
