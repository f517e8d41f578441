"""One process of a training over several: run by torchrun (as `accelerate launch` does on GPUs).

accelerate shards weights (FSDP) on accelerators alone. On a CPU it is told that it is on
one; everything that it then does is its own.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch

from tests.training.preference_runs import preference_trainer, tiny_pairs


def shard_on_cpu(version: int) -> None:
    """Make accelerate shard weights although there is no accelerator."""
    from accelerate import state

    initialise = state.AcceleratorState.__init__

    def initialised(self: Any, *args: Any, fsdp_plugin: Any = None, **others: Any) -> None:
        initialise(self, *args, fsdp_plugin=fsdp_plugin, **others)
        if fsdp_plugin is not None:
            shared = state.PartialState._shared_state
            self.distributed_type = shared["distributed_type"] = state.DistributedType.FSDP
            self.fsdp_plugin = fsdp_plugin
            if version == 1:  # it compares devices by name, and "cpu:0" is not "cpu"
                self.device = shared["device"] = torch.device("cpu")

    state.AcceleratorState.__init__ = initialised


def main(order: dict[str, Any]) -> None:
    """Train as ordered; the first process writes losses and, unless sharded (1), weights."""
    torch.set_num_threads(1)
    settings = order["settings"]
    if order.get("fsdp"):
        shard_on_cpu(order["fsdp"])
    if order.get("fsdp") and not order.get("by_launcher"):
        settings["fsdp"] = True
        settings["fsdp_config"] = {
            "version": order["fsdp"],
            "transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"],
            "sync_module_states": False,
        }
    evaluated = tiny_pairs(7, seed=5)
    trainer = preference_trainer(order["folder"], eval_dataset=evaluated, **settings)
    trainer.train()
    weights = {}
    if order.get("fsdp") != 1:
        weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if trainer.is_world_process_zero():
        torch.save(weights, Path(order["folder"]) / "weights.pt")
        name = json.dumps(type(trainer.model_wrapped).__name__)
        (Path(order["folder"]) / "wrapped.json").write_text(name, encoding="utf-8")
        log = json.dumps(trainer.state.log_history)
        (Path(order["folder"]) / "log.json").write_text(log, encoding="utf-8")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
