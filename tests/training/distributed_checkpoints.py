"""One process of a training over several that is taken up again: run by torchrun.

Trains into FOLDER/whole, copies what was there after step 3 to FOLDER/resumed, goes on from it,
and exports both.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch

from prefstage.training.checkpoints import checkpoints_in, step_of
from tests.training.checkpoint_runs import preference_trainer, some_pairs
from tests.training.distributed_run import shard_on_cpu

STEP = 3


def train(folder: Path, settings: dict[str, Any]) -> Any:
    """Train or go on, and export."""
    trainer = preference_trainer(folder, evaluated=some_pairs(4, shift=1), **settings)
    trainer.train(resume_from_checkpoint="auto")
    trainer.save_state()
    trainer.save_model(str(folder / "exported"))
    trainer.accelerator.wait_for_everyone()
    return trainer


def main(folder: Path, order: dict[str, Any]) -> None:
    """Train whole, then again from a checkpoint in the middle."""
    torch.set_num_threads(1)
    settings = {"loss": "bco", "per_device_train_batch_size": 2, "eval_strategy": "epoch"}
    if order["fsdp"]:
        shard_on_cpu(order["fsdp"])
        settings |= {
            "fsdp": True,
            "fsdp_config": {
                "version": order["fsdp"],
                "transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"],
                "sync_module_states": False,
                "state_dict_type": order["state"],
            },
        }
    trainer = train(folder / "whole", settings)
    if trainer.is_world_process_zero():
        shutil.copytree(folder / "whole", folder / "resumed")
        for checkpoint in checkpoints_in(folder / "resumed"):
            if step_of(checkpoint) > STEP:
                shutil.rmtree(checkpoint)
    trainer.accelerator.wait_for_everyone()
    train(folder / "resumed", settings)


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
