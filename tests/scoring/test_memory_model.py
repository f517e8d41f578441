"""What a layer keeps: the widths read off a model, and the tensors that are really kept."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from prefstage.scoring import response_log_probs
from prefstage.scoring.cpu.fused import find_fused_layers
from prefstage.scoring.cpu.lean import Recipes, _Recipe, saving
from prefstage.scoring.memory import ModelShape, _intermediate
from tests.scoring.tiny_models import CONFIGS, tiny_model, tree_of

TOKENS = 60


def kept_numbers(model: Any, monkeypatch: pytest.MonkeyPatch, *, norms_recomputed: bool) -> float:
    """Numbers that a pass in training keeps for each token, weights and recipes left out."""
    sizes, tensors = dict[int, int](), list[Tensor]()
    keep = Recipes._keep

    def noting(recipes: Recipes, tensor: Tensor) -> Any:
        kept = keep(recipes, tensor)
        tensors.append(tensor)  # or its address would be given away
        recomputed = norms_recomputed and isinstance(kept, _Recipe)
        if not (recomputed or isinstance(tensor, torch.nn.Parameter)):
            storage = tensor.untyped_storage()
            sizes[storage.data_ptr()] = tensor.numel() * tensor.element_size()
        return kept

    tree = tree_of(range(3, 23), [range(23, 44), range(44, 65)])
    find_fused_layers(model.get_decoder())
    with monkeypatch.context() as patch:
        patch.setattr(Recipes, "_keep", noting)
        with Recipes().keeping(), saving(direct=True):
            response_log_probs(model, [tree])
    return sum(sizes.values()) / 4 / TOKENS


@pytest.mark.parametrize("norms_recomputed", [True, False])
@pytest.mark.parametrize("architecture", ["llama", "mistral", "qwen2"])
def test_the_estimate_is_what_a_layer_keeps(
    architecture: str, norms_recomputed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [
        kept_numbers(
            tiny_model(architecture, num_hidden_layers=layers, intermediate_size=200),
            monkeypatch,
            norms_recomputed=norms_recomputed,
        )
        for layers in (2, 4)
    ]
    shape = ModelShape.of(tiny_model(architecture, intermediate_size=200))
    expected = shape.kept_bytes(norms_recomputed=norms_recomputed) / (shape.layers * 4)
    assert (found[1] - found[0]) / 2 == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("architecture", CONFIGS)
def test_widths_are_read_off_every_architecture(architecture: str) -> None:
    model = tiny_model(architecture)
    shape = ModelShape.of(model)
    assert (shape.layers, shape.hidden) == (2, 32)
    assert shape.kept_bytes(norms_recomputed=False) >= shape.kept_bytes(norms_recomputed=True)
    plain = {"gpt2", "gpt-neox", "mixtral", "qwen2-moe", "cohere", "mamba"}
    assert shape.fused is (architecture not in plain)


def test_the_widest_of_unequal_mlps_counts() -> None:
    config = SimpleNamespace(hidden_size=32, intermediate_size=[48, 200, 96])
    assert _intermediate(config, 0) == 200
