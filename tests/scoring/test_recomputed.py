"""Layers that run again in the backward pass."""

from typing import Any

import pytest
import torch
from torch import Tensor

from prefstage.scoring import response_log_probs
from prefstage.scoring.attention import TREE_ATTENTION
from prefstage.scoring.direct import direct_gradients
from prefstage.scoring.fused_layers import find_fused_layers
from prefstage.scoring.model_parts import ModelParts
from prefstage.scoring.recipes import Recipes
from prefstage.scoring.recomputed import layers_to_recompute, recomputed_layers
from tests.scoring.tiny_models import CONFIGS, tiny_model, tree_of


@pytest.mark.parametrize(
    ("tokens", "room", "count"),
    [(100, 100, 0), (50, 100, 0), (101, 100, 1), (200, 100, 15), (1000, 1, 30), (0, 1, 0)],
)
def test_no_more_layers_than_need_be(tokens: int, room: int, count: int) -> None:
    assert layers_to_recompute(30, tokens=tokens, room=room) == count
    if tokens > room:
        assert (30 - count) * tokens <= 30 * room < (31 - count) * tokens


def gradients(model: Any, room: int, layout: str = "tree") -> tuple[int, dict[str, Tensor]]:
    """Layers run again, and gradients."""
    model.zero_grad()
    body = ModelParts.of(model).body
    ids = torch.randint(3, 90, (40,), generator=torch.Generator().manual_seed(3)).tolist()
    tree = tree_of(ids[:20], [ids[20:33], ids[33:]])
    with (
        direct_gradients(),
        Recipes().keeping(),
        recomputed_layers(body, tokens=38, room=room) as again,
    ):
        scored = response_log_probs(model, [tree], layout=layout)
    assert not any("forward" in vars(module) for module in body.modules())
    assert body.config._attn_implementation != TREE_ATTENTION
    (scored[0].sums * torch.tensor([1.0, -1.0])).sum().backward()
    assert body.config._attn_implementation != TREE_ATTENTION
    return again, {n: w.grad.clone() for n, w in model.named_parameters() if w.grad is not None}


@pytest.mark.parametrize("layout", ["tree", "flat"])
@pytest.mark.parametrize("architecture", sorted(CONFIGS.keys() - {"mamba"}))
def test_gradients_are_the_same_to_the_bit(architecture: str, layout: str) -> None:
    model = tiny_model(architecture)
    find_fused_layers(ModelParts.of(model).body)
    none, expected = gradients(model, 38, layout)
    half, some = gradients(model, 19, layout)
    every, all_ = gradients(model, 1, layout)
    assert (none, half, every) == (0, 1, 2)
    for found in (some, all_):
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_another_s_forward_is_left_alone() -> None:
    model = tiny_model("llama")
    body = ModelParts.of(model).body
    own = body.layers[0].forward
    vars(body.layers[0])["forward"] = own
    with recomputed_layers(body, tokens=10, room=1) as again:
        assert again == 1
        assert vars(body.layers[0])["forward"] is own
    assert vars(body.layers[0])["forward"] is own
