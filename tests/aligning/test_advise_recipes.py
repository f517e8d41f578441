"""Advice for other recipes than full float32 trainings of a whole model on prompts of the data."""

import math
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from prefstage.aligning import advise, plan_advice
from prefstage.core import ConfigError
from tests.aligning.tiny_world import settings


def recipe(world: Path, **changed: Any) -> dict[str, Any]:
    given = settings(
        world, off_policy=str(world / "many.jsonl"), measure=False, schedule="advise", **changed
    )
    few = {"depth": "forecast", "target_prompts": 8, "responses": 2, "pairs": 8, "shares": [0.2]}
    return {**given, "advise": {**few, **changed.get("advise", {})}}


@pytest.fixture
def adapter(world: Path, tmp_path: Path) -> str:
    """An adapter of the world's policy."""
    folder = str(tmp_path / "adapter")
    config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear")
    get_peft_model(AutoModelForCausalLM.from_pretrained(world / "policy"), config).save_pretrained(
        folder
    )
    AutoTokenizer.from_pretrained(world / "policy").save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "changed",
    [{"lora": {"r": 2}}, {"dtype": "bfloat16"}, {"training": {"bf16": True, "use_cpu": True}}],
    ids=["a new adapter on an adapter", "bfloat16", "autocast"],
)
def test_adapters_and_low_precision_are_forecast(
    world: Path, adapter: str, tmp_path: Path, changed: dict[str, Any]
) -> None:
    """The policy is an adapter: trained on, or, if there shall be a new one, merged before."""
    given = recipe(world, policy=adapter)
    training = {**given["train"]["training"], **changed.pop("training", {})}
    given["train"] = {**given["train"], **changed, "training": training}
    for candidate in advise(given, out=tmp_path / "run").result["candidates"]:
        told = candidate["forecast"]
        assert all(map(math.isfinite, (told["gain"], told["error"], told["cosine"])))
        assert told["gain"] != 0


def test_fewer_prompts_than_asked_for_are_counted(world: Path, tmp_path: Path) -> None:
    given = recipe(world, advise={"prompts": str(world / "pairs.jsonl"), "target_prompts": 128})
    advised = advise(given, out=tmp_path / "run")
    assert advised.result["target_prompts"] == 12
    assert "judged answers to 12 prompts" in advised.summary


def test_online_training_is_piloted_and_not_forecast(world: Path, tmp_path: Path) -> None:
    given = recipe(world)
    given["train"] |= {"online": True}
    with pytest.raises(
        ConfigError, match=r"train\.online with depth forecast; .*depth: pilot"
    ) as e:
        advise(given, out=tmp_path / "run")
    assert "\n" not in str(e.value)
    given["advise"]["depth"] = "pilot"
    planned = {Path(step.step).name for step in plan_advice(given, out=tmp_path / "run")}
    assert {"train", "target"} <= {name.partition("-")[0] for name in planned}
    result = advise(given, out=tmp_path / "run").result
    assert result["depth"] == "pilot"
    assert all(c["forecast"] is None and c["pilots"] for c in result["candidates"])
