"""Every training recipe in `examples/`, run by the command on the sandbox's world."""

import gzip
import importlib.util
import json
from itertools import islice
from math import log
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from prefstage.cli.main import app
from prefstage.data import load_conversations, load_tokenizer
from prefstage.sampling import SamplingConfig, TransformersSampler, requests_for
from prefstage.sandbox import World, true_reward

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
RECIPES = sorted(path.name for path in EXAMPLES.glob("train_*.yaml"))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which `world` lies, made by the examples' own script."""
    spec = importlib.util.spec_from_file_location("make_world", EXAMPLES / "make_world.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    folder = tmp_path_factory.mktemp("sandbox")
    script.make_world(folder / "world", pairs=256, steps=200, seed=0)
    return folder


def run(world: Path, name: str, *options: str, code: int = 0) -> Any:
    """Train by an example; the command's result."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(world)
        out = f"runs/{name}"
        typed = ["train", str(EXAMPLES / f"train_{name}.yaml"), "--out", out, *options]
        result = CliRunner().invoke(app, [*typed, "--json"])
    assert result.exit_code == code, result.output
    if code:
        return result.stderr
    return json.loads(result.stdout)


def mean_true_reward(folder: Path) -> float:
    """Of greedy answers to instructions that no training has seen."""
    sampler = TransformersSampler.load(
        str(folder), SamplingConfig(responses=1, temperature=0, max_new_tokens=32), device="cpu"
    )
    rows = list(World(0).candidates(64, split="test"))
    asked = {row.prompt_id: row.prompt for row in rows}
    samples = sampler.sample(requests_for(rows, responses=1))
    return mean(true_reward(asked[sample.prompt_id], sample.text) for sample in samples)


def test_there_is_an_example_for_each_kind() -> None:
    kinds = ("full", "kto", "lora", "online", "sft", "slic")
    assert [f"train_{kind}.yaml" for kind in kinds] == RECIPES


@pytest.fixture(scope="module")
def start(world: Path) -> float:
    """The policy's mean true reward before any training."""
    return mean_true_reward(world / "world" / "policy")


def check_preferences(result: Any) -> None:
    """Held-out pairs are told apart, far better than by chance, and their loss has fallen."""
    assert result["metrics"]["eval_rewards/accuracies"] > 0.65
    assert result["metrics"]["eval_rewards/margins"] > 0
    assert result["last_loss"] < result["first_loss"]


def test_full(world: Path, start: float) -> None:
    result = run(world, "full")
    check_preferences(result)
    assert (result["steps"], result["kind"]) == (16, "pairs")
    assert result["metrics"]["eval_loss"] < log(2)
    folder = world / "runs" / "full"
    assert mean_true_reward(folder / "model") > start
    load_tokenizer(str(folder / "model"))
    assert "sigmoid" in (folder / "model" / "README.md").read_text()
    assert list((folder / "dynamics").rglob("*.parquet"))
    resolved = yaml.safe_load((folder / "config.yaml").read_text())
    assert resolved["data"]["path"] == "world/pairs.jsonl"


def test_lora(world: Path, start: float) -> None:
    result = run(world, "lora")
    check_preferences(result)
    assert result["metrics"]["eval_loss"] < log(2)
    folder = world / "runs" / "lora"
    assert (folder / "model" / "adapter_model.safetensors").exists()
    assert mean_true_reward(folder / "merged") > start


def test_sft(world: Path, start: float) -> None:
    result = run(world, "sft")
    assert result["kind"] == "responses"
    assert result["last_loss"] < result["first_loss"]
    assert mean_true_reward(world / "runs" / "sft" / "model") > start + 0.02


def test_kto(world: Path, start: float) -> None:
    result = run(world, "kto")
    assert result["kind"] == "unpaired"
    assert result["last_loss"] < result["first_loss"]
    found = result["metrics"]
    assert found["eval_rewards/chosen"] > found["eval_rewards/rejected"]
    assert mean_true_reward(world / "runs" / "kto" / "model") > start


def test_online(world: Path, start: float) -> None:
    result = run(world, "online")
    counts = result["online"]
    assert counts["fresh"] > 0
    assert counts["fresh"] + counts["kept"] >= result["items"]
    assert result["metrics"]["eval_rewards/accuracies"] > 0.6
    assert mean_true_reward(world / "runs" / "online" / "model") > start


def test_slic(world: Path, start: float) -> None:
    result = run(world, "slic")
    assert result["last_loss"] < 0.8 * result["first_loss"]
    assert result["metrics"]["eval_rewards/accuracies"] > 0.65
    assert mean_true_reward(world / "runs" / "slic" / "model") > start


def test_the_same_command_goes_on_where_it_was_stopped(world: Path) -> None:
    stop = ("--set", "training.lr_scheduler_type=constant", "--set", "dynamics=false")
    stop += ("--set", "training.warmup_steps=0")
    folder = world / "runs" / "full"
    stages = [
        run(world, "full", "--set", f"training.max_steps={steps}", *stop, "--out", f"runs/{name}")
        for name, steps in (("parts", 2), ("parts", 4), ("whole", 4))
    ]
    assert [stage["steps"] for stage in stages] == [2, 4, 4]
    parts, whole = (
        (folder.with_name(name) / "model" / "model.safetensors").read_bytes()
        for name in ("parts", "whole")
    )
    assert parts == whole


def test_a_folder_of_another_run_is_refused(world: Path) -> None:
    quick = ("--set", "training.max_steps=1", "--set", "dynamics=false", "--out", "runs/other")
    run(world, "full", *quick)
    said = run(world, "full", *quick, "--set", "loss=hinge", code=2)
    assert "holds another run (different: loss)" in said


def test_conversations_of_the_world_are_read_as_such(world: Path) -> None:
    rows = load_conversations(world / "world" / "conversations.jsonl")
    assert rows.report.format == "prompt-completion"
    assert len(rows) == 512


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lora", "full"])
def test_the_real_chat_model_learns_from_real_pairs(
    name: str, shared: Path, chat_model: Path, tmp_path: Path
) -> None:
    source = shared / "data" / "hh_rlhf_harmless_test.jsonl.gz"
    with gzip.open(source, "rt", encoding="utf-8") as stream:
        lines = list(islice(stream, 128))
    (tmp_path / "hh.jsonl").write_text("".join(lines[:96]))
    (tmp_path / "hh_held_out.jsonl").write_text("".join(lines[96:]))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        typed = ["train", str(EXAMPLES / f"real_{name}.yaml"), "--out", "run", "--json"]
        result = CliRunner().invoke(app, [*typed, "--set", f"policy={chat_model}"])
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert (found["items"], found["steps"]) == (95, 12)
    history = json.loads((tmp_path / "run" / "history.json").read_text())["history"]
    losses = [entry["loss"] for entry in history if "loss" in entry]
    assert losses[0] == pytest.approx(log(2), abs=5e-3)
    assert found["metrics"]["eval_loss"] < log(2)
    assert found["metrics"]["eval_rewards/accuracies"] > 0.5
