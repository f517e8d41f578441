"""TRL's own loss code, called with given log-probs instead of a model's."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor

from prefstage.losses import PairBatch, Responses, UnpairedBatch
from tests.tiny_models import tiny_tokenizer
from tests.training.preference_runs import tiny_policy

PROMPT = 3
"""Tokens of every prompt."""

ROW = {"prompt": "Why?", "chosen": " So.", "rejected": " No."}
UNPAIRED_ROWS = [
    {"prompt": f"Why {place}?", "completion": " So.", "label": place % 2 == 0} for place in range(4)
]
SETTINGS: dict[str, Any] = {
    "use_cpu": True,
    "bf16": False,
    "report_to": "none",
    "gradient_checkpointing": False,
    "max_length": None,
    "disable_tqdm": True,
}


def dpo_trainer(folder: Path, **settings: Any) -> Any:
    """A DPOTrainer of these settings; its model is never run."""
    from trl import DPOConfig, DPOTrainer

    tokenizer = tiny_tokenizer("chatml")
    return DPOTrainer(
        tiny_policy(tokenizer),
        ref_model=tiny_policy(tokenizer),
        args=DPOConfig(output_dir=str(folder), **SETTINGS, **settings),
        train_dataset=Dataset.from_list([ROW]),
        processing_class=tokenizer,
    )


def kto_trainer(folder: Path, **settings: Any) -> Any:
    """A KTOTrainer of these settings; its model is never run."""
    from trl import KTOConfig, KTOTrainer

    tokenizer = tiny_tokenizer("chatml")
    return KTOTrainer(
        tiny_policy(tokenizer),
        ref_model=tiny_policy(tokenizer),
        args=KTOConfig(
            output_dir=str(folder), per_device_train_batch_size=2, **SETTINGS, **settings
        ),
        train_dataset=Dataset.from_list(UNPAIRED_ROWS),
        processing_class=tokenizer,
    )


def trl_dpo_loss(trainer: Any, batch: PairBatch) -> Tensor:
    """The loss that DPOTrainer makes of a batch's log-probs."""
    sides = [batch.chosen, batch.rejected]
    width = max(side.policy.shape[1] for side in sides)
    inputs = concatenated([inputs_of(side, width) for side in sides])
    trainer.ref_model = answering([_known(side.reference) for side in sides], width)
    policy = answering(
        [side.policy for side in sides], width, [_known(side.log_sum_squares) for side in sides]
    )
    return trainer._compute_loss(policy, inputs, False)


def trl_kto_loss(trainer: Any, batch: UnpairedBatch) -> Tensor:
    """The loss that KTOTrainer makes of a batch's log-probs, those of mismatched among them."""
    side, other = batch.responses, batch.mismatched
    assert other is not None
    width = max(side.policy.shape[1], other.policy.shape[1])
    inputs = inputs_of(side, width)
    mismatched = {f"KL_{name}": value for name, value in inputs_of(other, width).items()}
    mismatched["KL_input_ids"] = mismatched["KL_input_ids"] + 1  # told apart by their tokens

    def model(which: str) -> Any:
        def run(*, input_ids: Tensor, **_: Any) -> Any:
            asked = side if input_ids[0, 0] == 1 else other
            return answering([_known(getattr(asked, which))], width)()

        return run

    trainer.ref_model = model("reference")
    return trainer._compute_loss(
        model("policy"), {**inputs, **mismatched, "label": batch.desirable}, False
    )


def inputs_of(side: Responses, width: int) -> dict[str, Tensor]:
    """Tokens and masks: a prompt, the response, padding."""
    place = torch.arange(PROMPT + width)
    ends = PROMPT + side.lengths[:, None]
    return {
        "input_ids": torch.ones(len(side.lengths), PROMPT + width, dtype=torch.long),
        "attention_mask": (place < ends).long(),
        "completion_mask": ((place >= PROMPT) & (place < ends)).long(),
    }


def concatenated(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def answering(values: list[Tensor], width: int, squares: list[Tensor] | None = None) -> Any:
    """A model whose log-probs are given: place t of the output tells of token t + 1."""

    def placed(parts: list[Tensor]) -> Tensor:
        return torch.cat(
            [torch.nn.functional.pad(part, (PROMPT - 1, width - part.shape[1])) for part in parts]
        )

    log_probs = placed(values)
    nothing = torch.zeros_like(log_probs).detach()
    outputs = SimpleNamespace(
        log_probs=log_probs,
        entropy=nothing,
        mean_logits=nothing,
        is_top1=nothing.bool(),
        log_sum_sq_probs=nothing if squares is None else placed(squares),
    )
    return lambda **_: outputs


def _known(value: Tensor | None) -> Tensor:
    assert value is not None
    return value


def tpo_loss(batch: PairBatch, **settings: Any) -> Tensor:
    """The loss that TRL's TPOTrainer makes of a batch's log-probs.

    It takes logits: a vocabulary of two words whose first has the probability of the token that
    was written, which is word 0 throughout.
    """
    from collections import defaultdict

    from trl.experimental.tpo import TPOTrainer as Trainer

    assert batch.gold is not None
    sides = [batch.chosen, batch.rejected, batch.gold][: 3 if settings["tpo_alpha"] else 2]
    width = max(side.policy.shape[1] for side in sides)
    inputs = concatenated([inputs_of(side, width) for side in sides])
    inputs["input_ids"] = torch.zeros_like(inputs["input_ids"])
    written = answering([side.policy for side in sides], width)().log_probs
    written = torch.where(written < 0, written, -1.0)  # of the prompt: whatever
    logits = torch.stack([written, torch.log(-torch.expm1(written))], -1)
    logits = torch.nn.functional.pad(logits, (0, 0, 0, 1))
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=SimpleNamespace(gather_for_metrics=lambda x: x, gather=lambda x: x),
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
        aux_loss_enabled=False,
        **settings,
    )
    return Trainer._compute_loss(trainer, lambda **_: SimpleNamespace(logits=logits), inputs, False)


def without_reference(kind: str, batch: PairBatch, **settings: Any) -> Tensor:
    """The loss that TRL's CPOTrainer or ORPOTrainer makes of a batch's log-probs.

    Their imitation term is a cross-entropy of logits; it is given as what it is: the mean
    over the chosen responses' tokens.
    """
    if kind == "orpo":
        from trl.experimental.orpo import ORPOTrainer as Trainer
    else:
        from trl.experimental.cpo import CPOTrainer as Trainer
    chosen, rejected = batch.chosen, batch.rejected
    means = kind in ("orpo", "simpo") or settings.get("loss_type") == "ipo"
    sums = [each.mean_log_probs if means else each.log_probs for each in (chosen, rejected)]
    imitation = -chosen.policy.sum() / chosen.lengths.sum()
    logits = torch.zeros(1)
    accelerator = SimpleNamespace(device=torch.device("cpu"), gather_for_metrics=lambda x: x)
    usual = {
        "alpha": 0.0,
        "label_smoothing": 0.0,
        "loss_type": "simpo" if kind == "simpo" else "sigmoid",
    }
    trainer = SimpleNamespace(
        accelerator=accelerator,
        aux_loss_enabled=False,
        concatenated_forward=lambda *_: (*sums, logits, logits, imitation),
        **(usual | settings),
    )
    for name in ("cpo_loss", "odds_ratio_loss"):
        if hasattr(Trainer, name):
            setattr(trainer, name, getattr(Trainer, name).__get__(trainer))
    loss, _ = Trainer.get_batch_loss_metrics(trainer, None, {})
    return loss
