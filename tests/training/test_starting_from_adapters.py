"""Trainings that begin from an adapter: what they start at, compare with, and leave behind."""

import json
import math
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model

from prefstage.core.checkpoints import CAUSAL_LM, load_checkpoint
from prefstage.core.config import load_config
from prefstage.core.errors import ModelError
from prefstage.training.recipe import Recipe
from prefstage.training.recipe_run import train_recipe
from tests.tiny_models import save_tiny_llama, tiny_llama, tiny_tokenizer
from tests.training.preference_runs import preference_trainer

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
LOG_2 = math.log(2)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Pairs, a policy, and an adapter of it that matters."""
    rows = [
        {"prompt": f"What is {n}?", "chosen": f"The answer {n}.", "rejected": "a quick fox"}
        for n in range(6)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = tiny_tokenizer()
    save_tiny_llama(tmp_path / "policy", tokenizer)
    torch.manual_seed(0)
    config = LoraConfig(
        task_type="CAUSAL_LM", r=2, target_modules="all-linear", init_lora_weights=False
    )
    adapted = get_peft_model(tiny_llama(tokenizer), config)
    adapted.peft_config["default"].base_model_name_or_path = str(tmp_path / "policy")
    adapted.save_pretrained(tmp_path / "adapter")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def train(out: str, **changes: Any) -> dict[str, Any]:
    """Train on the world's pairs for some steps; the result."""
    training = {"max_steps": 2, "per_device_train_batch_size": 3, "use_cpu": True}
    training |= {"logging_steps": 1, "learning_rate": 1e-2, "lr_scheduler_type": "constant"}
    training |= {"save_steps": 1, "save_strategy": "steps", **changes.pop("training", {})}
    torch.manual_seed(0)  # of the new adapter's weights
    settings = {"policy": "adapter", "data": "pairs.jsonl", "training": training, **changes}
    return train_recipe(load_config(Recipe, settings), Path(out)).result


def load(folder: str) -> Any:
    return load_checkpoint(folder, CAUSAL_LM, dtype="auto", device_map="cpu", merge=True)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(torch.arange(20)[None]).logits


def alike(left: Any, right: Any) -> bool:
    return torch.allclose(logits(left), logits(right), atol=1e-5)


LORA = {"r": 2, "target_modules": "all-linear", "lora_dropout": 0.0}


def test_a_new_adapter_begins_from_the_old_one(world: Path) -> None:
    result = train("run", lora=LORA, export={"merge_adapter": True})
    assert result["first_loss"] == pytest.approx(LOG_2, abs=1e-5)  # the start is the reference
    assert result["last_loss"] < LOG_2
    assert alike(load("run/base"), load("adapter"))
    assert not alike(load("run/base"), load("policy"))
    assert alike(load("run/model"), load("run/merged"))
    assert not alike(load("run/model"), load("run/base"))


def test_what_is_left_is_read_by_other_tools_and_may_move(world: Path) -> None:
    train("run", lora=LORA)
    want = load("run/model")
    assert alike(AutoPeftModelForCausalLM.from_pretrained("run/model"), want)
    shutil.move("run", "elsewhere")
    assert alike(load("elsewhere/model"), want)
    assert "with its adapter merged" in Path("elsewhere/model/README.md").read_text()


def test_such_a_training_goes_on_where_it_stopped(world: Path) -> None:
    train("short", lora=LORA)
    train("short", lora=LORA, training={"max_steps": 4})
    train("long", lora=LORA, training={"max_steps": 4})
    assert torch.equal(logits(load("short/model")), logits(load("long/model")))


def test_another_adapter_is_not_taken_for_the_start(world: Path) -> None:
    train("run", lora=LORA)
    before = (world / "run" / "base" / "model.safetensors").read_bytes()
    file = world / "adapter" / "adapter_config.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"lora_alpha": 64}))
    with pytest.raises(ModelError, match=r"run/base holds the start of another training"):
        train("run", lora=LORA, training={"max_steps": 4})
    assert (world / "run" / "base" / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "at_start"),
    [
        ({}, True),  # the adapter as it began
        ({"reference": "adapter"}, True),
        ({"reference": "adapter-off"}, False),  # the model beneath
        ({"reference": "policy"}, False),
        ({"lora": LORA, "reference": "adapter"}, True),
        ({"lora": LORA, "reference": "adapter-off"}, True),  # without the new adapter
        ({"lora": LORA, "reference": "policy"}, False),
        ({"policy": "policy", "reference": "adapter"}, False),
    ],
)
def test_what_the_loss_compares_with(world: Path, changes: dict[str, Any], at_start: bool) -> None:
    loss = train("run", training={"max_steps": 1}, **changes)["first_loss"]
    assert (loss == pytest.approx(LOG_2, abs=1e-5)) == at_start


def test_an_adapter_that_is_trained_on_can_be_merged(world: Path) -> None:
    train("run", export={"merge_adapter": True})
    assert alike(load("run/merged"), load("run/model"))
    assert not alike(load("run/merged"), load("adapter"))
    assert not (world / "run" / "base").exists()


def test_the_trainer_merges_what_it_is_given(world: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        given = get_peft_model(
            tiny_llama(tiny_tokenizer()),
            LoraConfig(task_type="CAUSAL_LM", r=2, init_lora_weights=False),
        )
    want = logits(given)
    trainer = preference_trainer(
        world / "trainer", pairs=4, model=given, peft_config=LoraConfig(task_type="CAUSAL_LM")
    )
    assert torch.allclose(logits(trainer.model), want, atol=1e-5)
    assert torch.allclose(logits(load("trainer/base")), want, atol=1e-5)
