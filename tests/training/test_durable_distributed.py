import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from prefstage.training.checkpoints import newest_whole, verify_checkpoint
from tests.training.run_results import hashes_of, results_of

REPOSITORY = Path(__file__).resolve().parents[2]
ORDERS = {
    "DDP": {"fsdp": 0},
    "FSDP, sharded state": {"fsdp": 2, "state": "SHARDED_STATE_DICT"},
    "FSDP, full state": {"fsdp": 2, "state": "FULL_STATE_DICT"},
}


@pytest.mark.slow
@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_two_processes_go_on_where_they_were(tmp_path: Path, order: dict) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}"]
    program = ["-m", "tests.training.distributed_checkpoints", str(tmp_path), json.dumps(order)]
    ran = subprocess.run(
        [sys.executable, "-m", *command, *program],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    checkpoint = newest_whole(whole)
    assert checkpoint is not None
    record = verify_checkpoint(checkpoint)
    assert record["processes"] == 2
    assert {"prefstage_state_0.json", "prefstage_state_1.json"} <= set(record["files"])
    assert results_of(resumed) == results_of(whole)
    again = verify_checkpoint(resumed / checkpoint.name)["files"]
    shards = [name for name in record["files"] if name.endswith(".distcp")]
    assert bool(shards) == (order.get("state") == "SHARDED_STATE_DICT")
    assert all(again[name] == record["files"][name] for name in shards)
    exported = [load_file(each / "exported" / "model.safetensors") for each in (whole, resumed)]
    assert hashes_of(exported[0]) == hashes_of(exported[1])
    AutoModelForCausalLM.from_pretrained(whole / "exported")
