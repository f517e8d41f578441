"""Rotary embedding in one step, against the model files' own function."""

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.cohere import modeling_cohere
from transformers.models.gpt_neox import modeling_gpt_neox
from transformers.models.llama import modeling_llama

from prefstage.scoring import fused_rotary
from prefstage.scoring.fused_layers import find_fused_layers, fused_layers
from prefstage.scoring.fused_rotary import NAME, Rotation, rotate, rotation_of
from tests.scoring.tiny_models import tiny_model

PLACES, DIM = 7, 8


def numbers(*shape: int, seed: int = 0, **options: Any) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(**options)


def test_it_turns_every_pair_by_its_angle() -> None:
    angles = numbers(1, 1, PLACES, DIM // 2, seed=2)
    both = torch.cat([angles, angles], -1)
    query, key = numbers(1, 3, PLACES, DIM), numbers(1, 2, PLACES, DIM, seed=1)
    turn = torch.polar(torch.ones_like(angles), angles)
    for x, found in zip((query, key), rotate(query, key, both.cos(), both.sin()), strict=True):
        expected = torch.complex(*x.chunk(2, -1)) * turn
        torch.testing.assert_close(found, torch.cat([expected.real, expected.imag], -1))


def test_its_gradient_is_right() -> None:
    query, key = numbers(1, 2, 3, 4).requires_grad_(), numbers(1, 1, 3, 4, seed=1).requires_grad_()
    # Any factors, not those of an angle alone: the halves of a long-context embedding may differ.
    cos, sin = numbers(1, 1, 3, 4, seed=2), numbers(1, 1, 3, 4, seed=3)
    assert torch.autograd.gradcheck(lambda q, k: rotate(q, k, cos, sin), (query, key))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_it_stands_in_for_the_function_of_a_model_file(dtype: torch.dtype) -> None:
    found = rotation_of(modeling_llama.__name__)
    assert found is not None
    namespace, rotation = found
    assert namespace is vars(modeling_llama)
    assert rotation.replaced is modeling_llama.apply_rotary_pos_emb
    query = numbers(1, PLACES, 3, DIM, dtype=dtype).transpose(1, 2)
    key = numbers(1, PLACES, 2, DIM, seed=1, dtype=dtype).transpose(1, 2)
    cos, sin = (numbers(1, PLACES, DIM, seed=i, dtype=dtype) for i in (2, 3))
    for one, other in zip(
        rotation(query, key, cos, sin), rotation.replaced(query, key, cos, sin), strict=True
    ):
        torch.testing.assert_close(one, other)
    places = {"unsqueeze_dim": 2}
    for one, other in zip(
        rotation(query.transpose(1, 2), key.transpose(1, 2), cos, sin, **places),
        rotation.replaced(query.transpose(1, 2), key.transpose(1, 2), cos, sin, **places),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_calls_of_another_form_go_to_the_own_function(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = list[Any]()

    def own(query: Tensor, key: Tensor, *others: Any, **named: Any) -> tuple[Tensor, Tensor]:
        calls.append((len(others), named))
        return query, key

    def never(*_: Any) -> Any:
        raise AssertionError

    monkeypatch.setattr(fused_rotary, "rotate", never)
    query, cos = torch.zeros(1, 2, PLACES, DIM), torch.zeros(1, PLACES, DIM)
    rotation = Rotation(own)
    rotation(query, query, cos, cos, None)
    rotation(query, query, cos, cos, position_ids=None)
    rotation(query, query, cos[..., :4], cos[..., :4])
    rotation(query.half(), query.half(), cos.half(), cos.half())
    rotation(query, query, cos.requires_grad_(), cos)
    assert len(calls) == 5


def test_a_function_that_rotates_otherwise_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert rotation_of(modeling_cohere.__name__) is None  # even and odd
    assert rotation_of("torch") is None
    file = ModuleType("odd_file")
    monkeypatch.setitem(sys.modules, "odd_file", file)
    vars(file)[NAME] = lambda query, key, cos: (query, key)
    assert rotation_of("odd_file") is None
    vars(file)[NAME] = lambda query, key, cos, sin: (query,)
    assert rotation_of("odd_file") is None


def test_it_is_there_for_the_time_of_a_pass() -> None:
    body, own = tiny_model("llama").get_decoder(), modeling_llama.apply_rotary_pos_emb
    ids = torch.arange(9)[None]
    expected = body(input_ids=ids).last_hidden_state
    find_fused_layers(body)
    with fused_layers(body):
        inside = modeling_llama.apply_rotary_pos_emb
        assert isinstance(inside, Rotation)
        assert rotation_of(modeling_llama.__name__)[1].replaced is own
        with fused_layers(body):
            pass
        torch.testing.assert_close(body(input_ids=ids).last_hidden_state, expected)
    assert modeling_llama.apply_rotary_pos_emb is own


def test_partial_rotation_keeps_its_own() -> None:
    body = tiny_model("gpt-neox").get_decoder()
    ids = torch.arange(9)[None]
    expected = body(input_ids=ids).last_hidden_state
    find_fused_layers(body)
    with fused_layers(body):
        torch.testing.assert_close(body(input_ids=ids).last_hidden_state, expected)
    assert not isinstance(modeling_gpt_neox.apply_rotary_pos_emb, Rotation)
