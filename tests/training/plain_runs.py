"""A tiny training with transformers' own loss, for tests of what is durable."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments

from prefstage.training.durable import DurableTrainer

ROWS = 22


class Rows(torch.utils.data.Dataset):
    """Rows of tokens that depend on the seed alone."""

    def __init__(self, rows: int = ROWS, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.ids = torch.randint(0, 64, (rows, 12), generator=generator)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.ids[index], "labels": self.ids[index]}


def tiny_model(*, dropout: float = 0.1, hidden_size: int = 16) -> LlamaForCausalLM:
    """A causal LM of random weights, the same at every call."""
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
        attention_dropout=dropout,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LlamaForCausalLM(config)


def plain_trainer(
    folder: Path, *, model: Any = None, data: Any = None, callbacks: Any = None, **settings: Any
) -> DurableTrainer:
    """A durable trainer without preference data."""
    arguments = {
        "per_device_train_batch_size": 4,
        "num_train_epochs": 2,
        "logging_steps": 3,
        "save_steps": 2,
        "learning_rate": 1e-2,
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
        **settings,
    }
    return DurableTrainer(
        model=model if model is not None else tiny_model(),
        args=TrainingArguments(output_dir=str(folder), **arguments),
        train_dataset=data or Rows(),
        eval_dataset=Rows(5, seed=9),
        callbacks=callbacks,
    )


def run(folder: Path, settings: dict[str, Any]) -> None:
    """Train until done, from the newest checkpoint if there is one."""
    torch.set_num_threads(1)
    trainer = plain_trainer(folder, **settings)
    trainer.train(resume_from_checkpoint="auto")
    trainer.save_state()
