"""Short supervised fine-tuning of the sandbox's policy: a plain loop, seeded throughout."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from prefstage.core.hashing import seed_for
from prefstage.data import TokenTree

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

IGNORED = -100
WARMUP_SHARE = 0.05


def train_sft(
    model: "PreTrainedModel",
    demonstrations: Sequence[TokenTree],
    *,
    steps: int,
    seed: int,
    batch_size: int = 64,
    learning_rate: float = 3e-3,
    on_step: Callable[[int, float], None] | None = None,
) -> list[float]:
    """Train a policy in place to give the demonstrated responses.

    Each step minimises the mean of -log π(token) over the response tokens of one batch
    (AdamW, linear warm-up, then cosine decay to zero). The batches depend on the seed alone.

    Args:
        model: The policy; left in evaluation mode.
        demonstrations: Prompts with their demonstrated response; of a tree with several
            responses the first counts.
        steps: Optimiser steps, >= 1.
        seed: Of the order of the batches.
        batch_size: Demonstrations a step.
        learning_rate: Peak rate.
        on_step: Called after each step with the steps done and the step's loss; may save a
            checkpoint, must leave the model as it is.

    Returns:
        The loss of each step, nats a token. [steps].
    """
    import torch

    order = torch.Generator().manual_seed(seed_for(seed, "sft order"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, total_steps=steps + 1, pct_start=WARMUP_SHARE
    )
    losses = []
    model.train()
    for step in range(1, steps + 1):
        picks = torch.randint(len(demonstrations), (batch_size,), generator=order)
        batch = _pad([demonstrations[pick] for pick in picks.tolist()])
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        if on_step is not None:
            on_step(step, losses[-1])
    model.eval()
    return losses


def _pad(trees: Sequence[TokenTree]) -> "dict[str, torch.Tensor]":
    """One right-padded batch with the prompts' and the padding's labels ignored."""
    import torch

    rows = [(*tree.prompt_ids, *tree.response_ids[0]) for tree in trees]
    shape = (len(rows), max(map(len, rows)))
    input_ids = torch.zeros(shape, dtype=torch.long)
    attention_mask = torch.zeros(shape, dtype=torch.long)
    labels = torch.full(shape, IGNORED)
    for place, (tree, row) in enumerate(zip(trees, rows, strict=True)):
        start, end = len(tree.prompt_ids), len(row)
        input_ids[place, :end] = torch.tensor(row)
        attention_mask[place, :end] = 1
        labels[place, start:end] = input_ids[place, start:end]
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
