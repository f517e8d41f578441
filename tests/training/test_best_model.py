"""Where the best checkpoint is loaded at the end, every figure is of the model that is exported."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner

from prefstage.aligning.runs import table
from prefstage.aligning.steps import training_figures
from prefstage.cli.main import app
from prefstage.core.config import load_config
from prefstage.reporting import write_report
from prefstage.training import PreferenceTrainer
from prefstage.training.dynamics.records import read_dynamics
from prefstage.training.export import describe_exported, metrics_at
from prefstage.training.policy import load_policy
from prefstage.training.recipe import Recipe, training_arguments
from prefstage.training.recipe_run import check_sets, train_recipe
from tests.tiny_models import tiny_tokenizer
from tests.training.preference_runs import tiny_pairs, tiny_policy

EVERY_STEP = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}


def recipe(folder: Path, **changes: Any) -> dict[str, Any]:
    """A rate at which the loss on other pairs soon rises."""
    tokenizer = tiny_tokenizer()
    tiny_policy(tokenizer).save_pretrained(folder / "policy")
    tokenizer.save_pretrained(folder / "policy")
    tiny_pairs(16).save(folder / "pairs.jsonl")
    tiny_pairs(8, seed=4).save(folder / "others.jsonl")
    training = {
        "per_device_train_batch_size": 8,
        "learning_rate": 3e-2,
        "lr_scheduler_type": "constant",
        "max_steps": 6,
        "logging_steps": 1,
        "load_best_model_at_end": True,
        "report_to": "none",
        "use_cpu": True,
        **EVERY_STEP,
        **changes.pop("training", {}),
    }
    return {
        "policy": str(folder / "policy"),
        "data": str(folder / "pairs.jsonl"),
        "eval": str(folder / "others.jsonl"),
        "training": training,
        **changes,
    }


def run(folder: Path, **changes: Any) -> tuple[Any, Recipe]:
    made = load_config(Recipe, recipe(folder, **changes))
    return train_recipe(made, folder / "run"), made


def evaluated_again(folder: Path, made: Recipe) -> dict[str, float]:
    """Figures of the exported model itself, its reference the model that training began from."""
    trainer = PreferenceTrainer(
        load_policy(str(folder / "run" / "model")),
        training_arguments(made.model_copy(update={"reference": made.policy}), folder / "another"),
        train_dataset=check_sets({"data": made.data}, _loss())["data"],
        eval_dataset=check_sets(made.eval, _loss())["eval"],
    )
    return trainer.evaluate()


def _loss() -> Any:
    from prefstage.losses import parse_loss

    return parse_loss("sigmoid")


def history(folder: Path) -> list[dict[str, float]]:
    found: list[dict[str, float]] = json.loads((folder / "run" / "history.json").read_text())[
        "history"
    ]
    return found


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"lora": {"r": 2}},
        {"training": {"metric_for_best_model": "rewards/margins"}},
        {"training": {"metric_for_best_model": "logps/chosen", "greater_is_better": False}},
        {"training": {"eval_steps": 1, "save_steps": 2}},
        {"training": {"save_strategy": "best"}},
    ],
    ids=[
        "lowest loss",
        "LoRA",
        "highest margin",
        "lowest log-prob",
        "fewer saves",
        "saved if best",
    ],
)
def test_figures_are_of_the_exported_model(tmp_path: Path, changes: dict[str, Any]) -> None:
    trained, made = run(tmp_path, **changes)
    result, logged = trained.result, history(tmp_path)
    best = result["best"]
    metric, sign = best["metric"], 1 if best["greater_is_better"] else -1
    saved = made.training["save_steps"]
    values = {
        entry["step"]: sign * entry[metric]
        for entry in logged
        if metric in entry and entry["step"] % saved == 0
    }
    assert best["value"] == sign * values[best["step"]]
    if "save_steps" not in changes.get("training", {}):  # else the best may have no checkpoint
        assert best["step"] == max(values, key=lambda step: values[step])
    assert result["exported_step"] == best["step"]
    assert result["steps"] == 6
    again = evaluated_again(tmp_path, made)
    assert result["metrics"] == metrics_at(logged, best["step"])
    for name in ("eval_loss", "eval_logps/chosen", "eval_rewards/margins"):
        assert result["metrics"][name] == pytest.approx(again[name], rel=1e-3, abs=1e-4), name


def test_everything_names_the_step(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe(tmp_path, dynamics={"every": 1, "distance": False})))
    done = CliRunner().invoke(app, ["train", str(file), "--out", str(tmp_path / "run")])
    assert done.exit_code == 0, done.output
    result = json.loads((tmp_path / "run" / "train.json").read_text())
    step = result["exported_step"]
    assert 0 < step < 6
    told = f"the model of step {step} of 6, best by eval_loss = {result['best']['value']:.4g}"
    assert f"exported: {told}" in done.stdout
    assert f"eval_loss: {result['metrics']['eval_loss']:.4g}" in done.stdout
    losses = {e["step"]: e["loss"] for e in history(tmp_path) if "loss" in e}
    assert result["last_loss"] == losses[step]
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    assert told in card
    assert f"step {step} |" in card
    assert "step 6 |" not in card
    config = yaml.safe_load((tmp_path / "run" / "model" / "training_config.yaml").read_text())
    assert config["exported_step"] == step
    page = write_report(tmp_path / "run", out=tmp_path / "page.html").read_text("utf-8")
    assert told in page
    assert f"{step} of 6" in page
    assert f"eval pairs, step {step}" in page
    assert "eval pairs, step 6" not in page
    assert max(read_dynamics(tmp_path / "run" / "dynamics")["step"].to_pylist()) == 6


def test_a_run_that_goes_on_says_the_same(tmp_path: Path) -> None:
    whole, _ = run(tmp_path)
    again = train_recipe(load_config(Recipe, recipe(tmp_path)), tmp_path / "run")
    assert again.result == whole.result
    other = tmp_path / "stopped"
    other.mkdir()
    first = recipe(other)
    first["training"]["max_steps"] = 4
    train_recipe(load_config(Recipe, first), other / "run")
    first["training"]["max_steps"] = 6
    longer = train_recipe(load_config(Recipe, first), other / "run").result
    for name in ("exported_step", "best", "metrics", "steps", "last_loss"):
        assert longer[name] == whole.result[name], name
    weights = [
        load_policy(str(folder / "run" / "model")).state_dict() for folder in (tmp_path, other)
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_without_it_the_last_step_is_exported(tmp_path: Path) -> None:
    trained, _ = run(tmp_path, training={"load_best_model_at_end": False})
    assert trained.result["exported_step"] == trained.result["steps"] == 6
    assert trained.result["best"] is None
    assert describe_exported(trained.result) is None
    assert trained.result["metrics"] == metrics_at(history(tmp_path), 6)
    assert "It is the model of" not in (tmp_path / "run" / "model" / "README.md").read_text()


def test_the_table_of_an_alignment_names_the_step(tmp_path: Path) -> None:
    trained, _ = run(tmp_path)
    training = training_figures(trained.result)
    row = {"iteration": 1, "data": "off", "stage": None, "pairs": 16, "evaluation": None}
    row["training"] = training
    step = trained.result["exported_step"]
    assert f"| {step} of 6 |" in table({"iterations": [row]})
    assert any(
        note.startswith(f"exported: the model of step {step} of 6") for note in training["notes"]
    )
