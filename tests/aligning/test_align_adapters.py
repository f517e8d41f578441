"""Alignments that begin at an adapter."""

import json
from pathlib import Path

import pytest
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from prefstage import align
from tests.aligning.tiny_world import settings


@pytest.fixture
def adapter(world: Path, tmp_path: Path) -> Path:
    """An adapter of the world's policy, with its tokenizer, as a training leaves it."""
    folder = tmp_path / "adapter"
    config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(world / "policy"), config)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(world / "policy").save_pretrained(folder)
    return folder


def test_an_adapter_is_trained_on(world: Path, adapter: Path, tmp_path: Path) -> None:
    given = settings(world, policy=str(adapter), schedule=["off", "on"], iterations=2)
    done = align(given, out=tmp_path / "run")
    losses = [row["training"]["first_loss"] for row in done.result["iterations"]]
    assert losses == pytest.approx([0.6931, 0.6931], abs=1e-3)
    config = json.loads((Path(done.policy) / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(world / "policy")


def test_a_new_adapter_begins_from_an_adapter(world: Path, adapter: Path, tmp_path: Path) -> None:
    given = settings(world, policy=str(adapter), schedule=["off", "on"], iterations=2)
    given["train"]["lora"] = {"r": 2, "target_modules": "all-linear"}
    done = align(given, out=tmp_path / "run")
    losses = [row["training"]["first_loss"] for row in done.result["iterations"]]
    assert losses == pytest.approx([0.6931, 0.6931], abs=1e-3)
    assert (Path(done.policy) / "model.safetensors").exists()
