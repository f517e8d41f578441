"""One process of a training with dynamics over two: run by torchrun."""

import json
import sys
from pathlib import Path
from typing import Any

import torch

from tests.training.distributed_run import shard_on_cpu
from tests.training.test_dynamics_preference import preference_run


def main(order: dict[str, Any]) -> None:
    """Train as ordered, half of each step on each process."""
    torch.set_num_threads(1)
    settings: dict[str, Any] = {"per_device_train_batch_size": 4}
    if order["fsdp"]:
        shard_on_cpu(order["fsdp"])
        settings["fsdp"] = True
        settings["fsdp_config"] = {
            "version": order["fsdp"],
            "transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"],
            "sync_module_states": False,
        }
    preference_run(Path(order["folder"]), **settings)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
