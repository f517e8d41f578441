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
from prefstage.data import ResponseEncoder, load_conversations, load_pairs, load_tokenizer
from prefstage.scoring import Scorer
from prefstage.training import encode_items

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


def held_out_log_probs(world: Path, folder: Path) -> tuple[float, float]:
    """Mean log-prob of the chosen and of the rejected responses that no training has seen."""
    encoder = ResponseEncoder(load_tokenizer(str(folder)))
    items = encode_items(load_pairs(world / "world" / "held_out.jsonl"), encoder)
    scored = Scorer.load(str(folder), device_map="cpu").score([i.trees[0] for i in items.items])
    sums = [[float(tokens.double().sum()) for tokens in pair.per_token] for pair in scored]
    return mean(pair[0] for pair in sums), mean(pair[1] for pair in sums)


def test_there_is_an_example_for_each_kind() -> None:
    kinds = ("full", "kto", "lora", "online", "sft", "slic")
    assert [f"train_{kind}.yaml" for kind in kinds] == RECIPES


@pytest.fixture(scope="module")
def start(world: Path) -> tuple[float, float]:
    """Log-probs of held-out responses under the policy before any training."""
    return held_out_log_probs(world, world / "world" / "policy")


def check_preferences(result: Any) -> None:
    """Held-out pairs are told apart better than by chance, and their loss has fallen."""
    assert result["metrics"]["eval_rewards/accuracies"] > 0.5
    assert result["metrics"]["eval_rewards/margins"] > 0
    assert result["last_loss"] < result["first_loss"]


def check_exported(world: Path, folder: Path, start: tuple[float, float], result: Any) -> None:
    """The exported model is the one that was evaluated, and prefers more than the start did.

    Directions alone: by how much depends on the rounding of a torch build, answers even more.
    """
    chosen, rejected = held_out_log_probs(world, folder)
    assert chosen - rejected > start[0] - start[1]
    assert chosen == pytest.approx(result["metrics"]["eval_logps/chosen"], abs=0.02)


def test_full(world: Path, start: tuple[float, float]) -> None:
    result = run(world, "full")
    check_preferences(result)
    assert (result["steps"], result["kind"]) == (16, "pairs")
    assert result["metrics"]["eval_loss"] < log(2)
    folder = world / "runs" / "full"
    check_exported(world, folder / "model", start, result)
    assert "sigmoid" in (folder / "model" / "README.md").read_text()
    assert list((folder / "dynamics").rglob("*.parquet"))
    resolved = yaml.safe_load((folder / "config.yaml").read_text())
    assert resolved["data"]["path"] == "world/pairs.jsonl"


def test_lora(world: Path, start: tuple[float, float]) -> None:
    result = run(world, "lora")
    check_preferences(result)
    assert result["metrics"]["eval_loss"] < log(2)
    folder = world / "runs" / "lora"
    assert (folder / "model" / "adapter_model.safetensors").exists()
    check_exported(world, folder / "merged", start, result)


def test_sft(world: Path, start: tuple[float, float]) -> None:
    result = run(world, "sft")
    assert result["kind"] == "responses"
    assert result["last_loss"] < result["first_loss"]
    chosen, _ = held_out_log_probs(world, world / "runs" / "sft" / "model")
    assert chosen > start[0]


def test_kto(world: Path, start: tuple[float, float]) -> None:
    result = run(world, "kto")
    assert result["kind"] == "unpaired"
    assert result["last_loss"] < result["first_loss"]
    check_exported(world, world / "runs" / "kto" / "model", start, result)


def test_online(world: Path, start: tuple[float, float]) -> None:
    result = run(world, "online")
    counts = result["online"]
    assert counts["fresh"] > 0
    assert counts["fresh"] + counts["kept"] >= result["items"]
    # Fresh responses are ever harder to tell apart: which way the loss goes is not given.
    chosen, _ = held_out_log_probs(world, world / "runs" / "online" / "model")
    assert chosen != start[0]
    assert chosen == pytest.approx(result["metrics"]["eval_logps/chosen"], abs=0.02)


def test_slic(world: Path, start: tuple[float, float]) -> None:
    result = run(world, "slic")
    assert result["last_loss"] < result["first_loss"]
    check_exported(world, world / "runs" / "slic" / "model", start, result)


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
