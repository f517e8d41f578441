"""Small trainings on the sandbox world, with DPO in a plain transformers Trainer."""

import functools
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import logsigmoid
from transformers import Trainer, TrainingArguments

from prefstage.data import PairSet, ResponseEncoder, TokenTree
from prefstage.sandbox import World, build_policy, build_tokenizer, train_sft
from prefstage.scoring import Scorer, response_log_probs

BETA = 0.1


@functools.cache
def tokenizer() -> Any:
    return build_tokenizer()


@functools.cache
def encoder() -> ResponseEncoder:
    return ResponseEncoder(tokenizer())


@functools.cache
def pairs(count: int = 40, split: str = "pool") -> PairSet:
    return World(0).pairs(count, split=split)


def trees(of: PairSet) -> list[TokenTree]:
    return [encoder().encode(pair.prompt, [pair.chosen[0], pair.rejected[0]]) for pair in of]


@functools.cache
def _weak_weights() -> dict[str, torch.Tensor]:
    model = build_policy(tokenizer(), seed=0, hidden_size=32, layers=1)
    shown = [encoder().encode(prompt, [text]) for prompt, text in World(0).demonstrations(100)]
    train_sft(model, shown, steps=20, seed=0, batch_size=16)
    return {name: value.clone() for name, value in model.state_dict().items()}


def weak_policy() -> Any:
    """A policy that has seen a few demonstrations."""
    model = build_policy(tokenizer(), seed=0, hidden_size=32, layers=1)
    model.load_state_dict(_weak_weights())
    return model


class PlainDPO(Trainer):
    """The least that trains: DPO of prepared trees, each pair weighted at random.

    The random weights make the result depend on the state of the generators.
    """

    def __init__(self, model: Any, args: TrainingArguments, trees: list[TokenTree], **rest: Any):
        super().__init__(
            model,
            args,
            train_dataset=[{"place": place} for place in range(len(trees))],
            eval_dataset=[{"place": place} for place in range(4)],
            data_collator=lambda rows: {"place": torch.tensor([row["place"] for row in rows])},
            **rest,
        )
        self.trees = trees
        self.reference = [each.sums for each in Scorer(model).score(trees)]

    def compute_loss(self, model: Any, inputs: Any, *rest: Any, **more: Any) -> torch.Tensor:
        places = inputs["place"].tolist()
        scored = response_log_probs(model, [self.trees[place] for place in places])
        gaps = torch.stack(
            [
                (each.sums - self.reference[place]) @ torch.tensor([1.0, -1.0])
                for each, place in zip(scored, places, strict=True)
            ]
        )
        weights = 0.5 + torch.rand(len(places)) if model.training else torch.ones(len(places))
        return (-weights * logsigmoid(BETA * gaps)).mean()

    def prediction_step(self, model: Any, inputs: Any, *rest: Any, **more: Any) -> Any:
        with torch.no_grad():
            return self.compute_loss(model, inputs), None, None


def arguments(folder: Path, **changes: Any) -> TrainingArguments:
    settings = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-3,
        "max_steps": 8,
        "eval_strategy": "steps",
        "eval_steps": 4,
        "save_strategy": "no",
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "use_cpu": True,
        "seed": 1,
    }
    return TrainingArguments(**{**settings, **changes})
