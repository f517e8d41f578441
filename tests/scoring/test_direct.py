"""Gradients added in passing against those that autograd passes on."""

from typing import Any

import pytest
import torch
from torch import Tensor

from prefstage.scoring import response_log_probs
from prefstage.scoring.direct import (
    direct_gradients,
    map_linearly,
    maps_directly,
    new_gradient,
    reserve_gradients,
    takes_direct_gradient,
)
from prefstage.scoring.fused_layers import find_fused_layers, fused_layers, weights_of
from prefstage.scoring.model_parts import ModelParts
from tests.scoring.tiny_models import tiny_model, tree_of


def gradients(model: Any, *, direct: bool, passes: int) -> dict[str, Tensor]:
    """Gradients of several passes, added up."""
    model.zero_grad()
    for index in range(passes):
        tree = tree_of([3, 4, 0, 5, 3 + index], [[6, 7, 0, 8], [9, 3]])
        if direct:
            with direct_gradients():
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
    assert not takes_direct_gradient(weight)
    with direct_gradients():
        assert takes_direct_gradient(weight)
        assert not takes_direct_gradient(torch.nn.Parameter(torch.zeros(2, dtype=torch.bfloat16)))
        assert not takes_direct_gradient(weight * 2)
        with torch.no_grad():
            assert not takes_direct_gradient(weight)
        handle = weight.register_post_accumulate_grad_hook(lambda _: None)
        assert not takes_direct_gradient(weight)
        handle.remove()
        weight.register_hook(lambda gradient: gradient)
        assert not takes_direct_gradient(weight)


@pytest.mark.parametrize("with_bias", [False, True])
def test_a_map_s_gradient_is_the_formula_s(with_bias: bool) -> None:
    weight, bias = torch.nn.Parameter(torch.randn(5, 3)), torch.nn.Parameter(torch.randn(5))
    x = torch.randn(2, 4, 3, requires_grad=True)
    given = bias if with_bias else None
    upstream = torch.randn(2, 4, 5)
    wanted = [x, weight, *([bias] if with_bias else [])]
    result = torch.nn.functional.linear(x, weight, given)
    expected = torch.autograd.grad(result, wanted, upstream)
    for _ in range(2):
        map_linearly(x, weight, given).backward(upstream)
    for tensor, gradient in zip(wanted, expected, strict=True):
        torch.testing.assert_close(tensor.grad, 2 * gradient)


def test_every_large_weight_takes_its_gradient_in_memory_set_aside() -> None:
    model = tiny_model("llama", tie_word_embeddings=True)
    parts = ModelParts.of(model)
    find_fused_layers(parts.body)
    reserve_gradients([*weights_of(parts.body), parts.projection.weight])
    places = {name: new_gradient(w).data_ptr() for name, w in model.named_parameters()}
    for _ in range(2):
        model.zero_grad()
        assert gradients(model, direct=True, passes=2)
        found = {name: w.grad.data_ptr() for name, w in model.named_parameters()}
        assert found == places


def test_a_gradient_that_somebody_holds_is_not_written_over() -> None:
    weight = torch.nn.Parameter(torch.zeros(3))
    reserve_gradients([weight])
    weight.grad = new_gradient(weight).fill_(1)
    place, held = weight.grad.data_ptr(), weight.grad
    weight.grad = None
    assert new_gradient(weight).data_ptr() != place
    view = held[1:]
    del held
    assert new_gradient(weight).data_ptr() != place
    del view
    assert new_gradient(weight).data_ptr() == place


def test_what_takes_no_gradient_in_passing_has_no_memory_set_aside() -> None:
    frozen = torch.zeros(3)
    reserve_gradients([frozen])
    assert new_gradient(frozen).data_ptr() != new_gradient(frozen.clone()).data_ptr()
    assert not maps_directly(torch.nn.Parameter(torch.zeros(2, 3)))
    with direct_gradients(maps=False):
        assert not maps_directly(torch.nn.Parameter(torch.zeros(2, 3)))
    model = tiny_model("llama")
    body = model.get_decoder()
    find_fused_layers(body)
    with direct_gradients(maps=False), fused_layers(body):
        body(input_ids=torch.arange(5)[None]).last_hidden_state.sum().backward()
    assert all(layer.self_attn.q_proj.weight.grad is not None for layer in body.layers)
