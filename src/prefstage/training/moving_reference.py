"""A reference that follows the policy: every so many steps it takes up a part of its weights."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import TrainerCallback

from prefstage.core import ConfigError
from prefstage.scoring import Scorer
from prefstage.training.batches import Flat, StepItems
from prefstage.training.items import TrainingItem
from prefstage.training.policy import START, score_trees, undisturbed

_FILE = "reference.safetensors"


class MovingReference(TrainerCallback):  # type: ignore[misc]  # transformers has no types here
    """Weights of the reference, updated at the end of every so many optimiser steps.

    ``π_ref ← α π + (1 - α) π_ref``, of the trained weights; of an adapter these are its factors.

    Args:
        model: The policy as training begins, bare or with PEFT adapters.
        args: With `ref_model_sync_steps` and `ref_model_mixup_alpha`.

    Attributes:
        updates: How many there were; before the first the reference is the start.

    Source:
        Gorbatovski et al. 2024, arXiv:2404.09656 (TR-DPO): soft updates, and hard ones at α = 1.
    """

    def __init__(self, model: Any, args: Any) -> None:
        self._model, self._alpha = model, float(args.ref_model_mixup_alpha)
        self._every, self.updates = int(args.ref_model_sync_steps), 0
        self._weights: dict[str, Tensor] = {
            name: weight.detach().clone() for name, weight in self._trained()
        }

    def _trained(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        return ((n, weight) for n, weight in self._model.named_parameters() if weight.requires_grad)

    @torch.no_grad()
    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Update the reference, if it is time."""
        if state.global_step % self._every == 0:
            for name, weight in self._trained():
                self._weights[name] = (
                    self._weights[name].to(weight.device).lerp(weight.detach(), self._alpha)
                )
            self.updates += 1

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the model have the reference's weights inside the block.

        Yields:
            Nothing.
        """
        # Tensors are exchanged, not copied: neither time nor memory for a second model.
        present = {name: weight.data for name, weight in self._trained()}
        try:
            for name, weight in self._trained():
                weight.data = self._weights[name].to(weight.device)
            yield
        finally:
            for name, weight in self._trained():
                weight.data = present[name]

    def score(
        self, kind: Any, items: Sequence[TrainingItem], scorer: Scorer, accelerator: Any
    ) -> list[Flat]:
        """Log-probs of items by the reference as it is now.

        Args:
            kind: What an item is.
            items: The items.
            scorer: Of the policy.
            accelerator: accelerate's, which knows the processes.

        Returns:
            For each item those of its response tokens in turn. nats.
        """
        with undisturbed(self._model), self.in_place():
            return score_trees(
                StepItems(kind, tuple(items)),
                lambda trees: scorer.score(trees, show_progress=False),
                accelerator,
            )

    def save(self, folder: Path) -> None:
        """Write the weights into a checkpoint that is being written."""
        weights = {name: weight.contiguous().cpu() for name, weight in self._weights.items()}
        save_file(weights, folder / _FILE)

    def load(self, folder: Path, updates: int) -> None:
        """Take up the weights of a checkpoint.

        Args:
            folder: The checkpoint.
            updates: How many there had been.
        """
        self._weights, self.updates = load_file(folder / _FILE), updates


def check_moving_reference(args: Any, *, needed: bool) -> None:
    """Check that a reference which shall follow the policy can.

    Args:
        args: Training arguments.
        needed: Whether the loss compares with a reference.

    Raises:
        ConfigError: If it cannot, or a setting is out of range or without effect.
    """
    alpha, every = args.ref_model_mixup_alpha, args.ref_model_sync_steps
    if not args.sync_ref_model:
        ConfigError.unless(
            (alpha, every) == (0.6, 512),
            saw=f"ref_model_mixup_alpha={alpha}, ref_model_sync_steps={every} without "
            "sync_ref_model",
            expected="all of them, or none",
            cure="set sync_ref_model: true, or remove them",
        )
        return
    ConfigError.unless(
        0 < alpha <= 1 and every >= 1,
        saw=f"ref_model_mixup_alpha={alpha}, ref_model_sync_steps={every}",
        expected="a share above 0, at most 1, and at least one step",
        cure="use 0.6 and 512, as the paper does",
    )
    ConfigError.unless(
        needed and args.reference == START,
        saw=f"sync_ref_model with reference={args.reference!r}"
        + ("" if needed else " and a loss without reference"),
        expected="a loss with a reference, which is the start",
        cure="set reference: start and such a loss, or remove sync_ref_model",
    )
    ConfigError.unless(
        not (args.fsdp or args.deepspeed),
        saw="sync_ref_model under FSDP or DeepSpeed",
        expected="weights that are whole on every process",
        cure="train by one process, or several with whole weights (accelerate's MULTI_GPU)",
    )
