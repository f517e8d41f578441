from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from prefstage.core.errors import DataError
from prefstage.training.dynamics import distance as dynamics_distance
from prefstage.training.dynamics.distance import StartWeights, kind_of
from tests.training.dynamics_runs import weak_policy


def moved(model: Any, seed: int = 0) -> Any:
    """The model, its trainable weights changed at random in place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(0.01 * torch.randn(weight.shape, generator=generator))
    return model


def effective_weights(model: Any) -> dict[str, torch.Tensor]:
    """Every weight of the bare model that the adapted one computes with."""
    merged = model.merge_and_unload()
    return {name: value.detach().double().clone() for name, value in merged.named_parameters()}


def distance_between(one: dict, other: dict) -> float:
    return sum((one[name] - other[name]).square().sum().item() for name in one) ** 0.5


def test_full_fine_tuning_moves_by_the_norm_of_the_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dynamics_distance, "SHARD_BYTES", 20_000)  # several files
    monkeypatch.setattr(dynamics_distance, "_ELEMENTS_AT_ONCE", 1_000)  # several stretches
    model, start = weak_policy(), StartWeights(tmp_path)
    assert not start.exist()
    start.save(model)
    assert start.exist()
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert start.distance(model) == 0
    before = {name: value.detach().double().clone() for name, value in model.named_parameters()}
    moved(model)
    after = {name: value.detach().double() for name, value in model.named_parameters()}
    assert start.distance(model) == pytest.approx(distance_between(before, after), rel=1e-6)
    assert kind_of(model) == "weights"


def test_frozen_weights_are_neither_kept_nor_counted(tmp_path: Path) -> None:
    model = weak_policy()
    for weight in model.parameters():
        weight.requires_grad_(False)
    model.model.norm.weight.requires_grad_(True)
    start = StartWeights(tmp_path)
    start.save(model)
    with torch.no_grad():
        model.model.norm.weight += 0.5
    assert start.distance(model) == pytest.approx(0.5 * model.model.norm.weight.numel() ** 0.5)
    assert sum(path.stat().st_size for path in tmp_path.glob("*.safetensors")) < 1_000


@pytest.mark.parametrize("trained_before", [False, True])
def test_lora_moves_by_the_change_of_the_weights_it_acts_on(
    tmp_path: Path, trained_before: bool
) -> None:
    def adapted() -> Any:
        torch.manual_seed(0)
        config = LoraConfig(
            r=4,
            lora_alpha=12,
            target_modules=["q_proj", "down_proj"],
            modules_to_save=["norm"],
        )
        model = get_peft_model(weak_policy(), config)
        return moved(model, seed=1) if trained_before else model

    start, model = StartWeights(tmp_path), adapted()
    start.save(model)
    assert kind_of(model) == "effective weights"
    assert start.distance(model) == pytest.approx(0, abs=1e-7)
    moved(model)
    found = start.distance(model)
    expected = distance_between(effective_weights(adapted()), effective_weights(model))
    assert found == pytest.approx(expected, rel=1e-5)


def test_dora_moves_by_its_own_parameters(tmp_path: Path) -> None:
    config = LoraConfig(r=2, use_dora=True, target_modules=["q_proj"])
    model, start = get_peft_model(weak_policy(), config), StartWeights(tmp_path)
    start.save(model)
    assert kind_of(model) == "adapter parameters"
    before = [weight.detach().clone() for weight in model.parameters() if weight.requires_grad]
    moved(model)
    after = [weight.detach() for weight in model.parameters() if weight.requires_grad]
    squares = [(one - other).square().sum() for one, other in zip(before, after, strict=True)]
    assert start.distance(model) == pytest.approx(float(sum(squares)) ** 0.5, rel=1e-5)


def test_a_start_of_other_weights_is_an_error(tmp_path: Path) -> None:
    model, start = weak_policy(), StartWeights(tmp_path)
    start.save(model)
    model.model.norm.weight.requires_grad_(False)
    with pytest.raises(DataError, match=r"1 trainable weights .* such as model\.norm\.weight"):
        start.distance(model)
