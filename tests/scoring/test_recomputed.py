"""Layers that run again in the backward pass."""

from typing import Any

import pytest
import torch
from torch import Tensor

from prefstage.scoring import response_log_probs
from prefstage.scoring.attention import TREE_ATTENTION
from prefstage.scoring.compat import layers_of
from prefstage.scoring.cpu.fused import find_fused_layers
from prefstage.scoring.cpu.lean import Recipes, recomputed_layers, saving
from prefstage.scoring.engine import ModelParts
from tests.scoring.tiny_models import CONFIGS, tiny_model, tree_of


@pytest.mark.parametrize(
    ("tokens", "room", "count"),
    [(100, 100, 0), (50, 100, 0), (101, 100, 1), (200, 100, 15), (1000, 1, 30), (0, 1, 0)],
)
def test_no_more_layers_than_need_be(tokens: int, room: int, count: int) -> None:
    body = tiny_model("llama", num_hidden_layers=30, hidden_size=4, head_dim=2).get_decoder()
    with recomputed_layers(body, tokens=tokens, room=room) as number:
        assert number == sum(layer.gradient_checkpointing for layer in body.layers) == count
    assert not any(layer.gradient_checkpointing for layer in body.layers)
    if tokens > room:
        assert (30 - count) * tokens <= 30 * room < (31 - count) * tokens


def gradients(model: Any, room: int, layout: str = "tree") -> tuple[int, dict[str, Tensor]]:
    """Layers run again, and gradients."""
    model.zero_grad()
    body = ModelParts.of(model).body
    ids = torch.randint(3, 90, (40,), generator=torch.Generator().manual_seed(3)).tolist()
    tree = tree_of(ids[:20], [ids[20:33], ids[33:]])
    with (
        saving(direct=True),
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
    body = ModelParts.of(model).body
    find_fused_layers(body)
    for layer in layers_of(body):
        layer.training = True  # without dropout inside; transformers looks at the layer
    none, expected = gradients(model, 38, layout)
    half, some = gradients(model, 19, layout)
    every, all_ = gradients(model, 1, layout)
    assert (none, half, every) == (0, 1, 2)
    for found in (some, all_):
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_who_put_a_forward_there_finds_it_again() -> None:
    model = tiny_model("llama").train()
    body = ModelParts.of(model).body
    forward = body.layers[0].forward
    vars(body.layers[0])["forward"] = forward
    with recomputed_layers(body, tokens=10, room=1) as count:
        assert count == 2
        assert vars(body.layers[0])["forward"] is forward
    assert vars(body.layers[0])["forward"] is forward
