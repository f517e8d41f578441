"""`accelerate launch`, of a script and of the command: two processes end where one ends."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.tiny_models import tiny_tokenizer
from tests.training.preference_runs import (
    largest_difference,
    logged,
    preference_trainer,
    tiny_pairs,
    tiny_policy,
    weights_of,
)

REPOSITORY = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent

# accelerate starts one process where it is told of a CPU; told of "several GPUs" it starts as
# many as it is asked for, and finds no GPU in them.
DDP = ["--multi_gpu"]
FSDP = [
    *("--use_fsdp", "--fsdp_version", "2", "--fsdp_auto_wrap_policy", "TRANSFORMER_BASED_WRAP"),
    *("--fsdp_transformer_layer_cls_to_wrap", "LlamaDecoderLayer"),
]


def launch(options: list[str], *program: str) -> subprocess.CompletedProcess[str]:
    """Run a program in two processes by `accelerate launch`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    many = ["--num_processes", "2", "--num_machines", "1", "--main_process_port", str(port)]
    plain = ["--mixed_precision", "no", "--dynamo_backend", "no"]
    done = subprocess.run(
        [str(BIN / "accelerate"), "launch", *options, *many, *plain, *program],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.mark.slow
@pytest.mark.parametrize(("options", "fsdp"), [(DDP, 0), (FSDP, 2)], ids=["DDP", "FSDP"])
def test_a_launched_script_ends_where_one_process_ends(
    options: list[str], fsdp: int, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"token_budget": 150}
    one = preference_trainer(tmp_path / "one", eval_dataset=tiny_pairs(7, seed=5), **settings)
    one.train()
    order = {"folder": str(tmp_path / "two"), "fsdp": fsdp, "by_launcher": True}
    order["settings"] = {**settings, "per_device_train_batch_size": 4}
    (tmp_path / "two").mkdir()
    launch(options, "-m", "tests.training.distributed_run", json.dumps(order))
    difference = largest_difference(weights_of(one.model), torch.load(tmp_path / "two/weights.pt"))
    print(f"largest difference of a weight: {difference:.2g}")
    assert difference < 1e-5
    log = json.loads((tmp_path / "two" / "log.json").read_text(encoding="utf-8"))
    found = [entry["loss"] for entry in log if "loss" in entry]
    assert found == pytest.approx(logged(one), rel=1e-4)
    assert (
        json.loads((tmp_path / "two" / "wrapped.json").read_text())
        == {
            0: "DistributedDataParallel",
            2: "FSDPLlamaForCausalLM",
        }[fsdp]
    )


@pytest.mark.slow
def test_the_launched_command_ends_where_one_process_ends(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer("chatml")
    for each in (tokenizer, tiny_policy(tokenizer)):
        each.save_pretrained(tmp_path / "policy")
    tiny_pairs(21).save(tmp_path / "pairs.jsonl")
    found = []
    for name, options, batch in (("one", None, 8), ("two", DDP, 4)):
        training = {
            **{"per_device_train_batch_size": batch, "max_steps": 4, "learning_rate": 0.1},
            **{"optim": "sgd", "logging_steps": 1, "report_to": "none", "use_cpu": True},
        }
        recipe = {"policy": str(tmp_path / "policy"), "data": str(tmp_path / "pairs.jsonl")}
        file = tmp_path / f"{name}.yaml"
        file.write_text(yaml.safe_dump({**recipe, "training": training}))
        typed = [str(BIN / "prefstage"), "train", str(file), "--out", str(tmp_path / name)]
        if options is None:
            subprocess.run([*typed, "--json"], check=True, capture_output=True)
        else:
            told = json.loads(launch(options, *typed, "--json").stdout)  # said once, not twice
            assert told["steps"] == 4
        history = json.loads((tmp_path / name / "history.json").read_text())["history"]
        losses = [entry["loss"] for entry in history if "loss" in entry]
        found.append((load_file(tmp_path / name / "model" / "model.safetensors"), losses))
    (weights, losses), (others, other_losses) = found
    assert largest_difference(weights, others) < 1e-5
    assert losses == pytest.approx(other_losses, rel=1e-4)
