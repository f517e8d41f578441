"""Weights in half precision, where small updates are rounded away."""

import warnings
from typing import Any

import torch
from torch import Tensor

_HALF = (torch.bfloat16, torch.float16)
_LOOKED_AT = 1_000_000
"""Weights of a tensor that are looked at, evenly spread."""
_MANY = 0.5


class PrecisionWarning(UserWarning):
    """Most weights cannot move by an update of the size of the learning rate."""


def vanishing_share(weights: list[Tensor], learning_rate: float) -> float:
    """The share of weights that an update of the size of the learning rate does not move.

    Adding u to w in a format with unit roundoff ε (2⁻⁸ in bfloat16, 2⁻¹¹ in float16) gives w
    again if |u| is less than half the spacing of numbers there, ``ε · 2^⌊log₂|w|⌋``. Adam's
    updates are about as large as the learning rate.

    Args:
        weights: In half precision.
        learning_rate: > 0.

    Returns:
        In [0, 1]; 0 without weights.
    """
    stuck, total = 0.0, 0
    for weight in weights:
        flat = weight.detach().reshape(-1)
        some = flat[:: max(1, flat.numel() // _LOOKED_AT)].float().abs()
        half_spacing = torch.exp2(torch.floor(torch.log2(some))) * torch.finfo(weight.dtype).eps / 2
        share = float((half_spacing > learning_rate).float().mean())
        stuck, total = stuck + share * flat.numel(), total + flat.numel()
    return stuck / total if total else 0.0


def warn_of_precision(trainer: Any) -> None:
    """Warn, and note for the model card, where updates of a training would vanish.

    Args:
        trainer: The `PreferenceTrainer`, before it trains.
    """
    if trainer.is_deepspeed_enabled:  # it keeps weights in float32 besides
        return
    note = precision_note(trainer.model, float(trainer.args.learning_rate))
    if note is not None and note not in trainer.notes:
        trainer.notes.append(note)
        warnings.warn(note, PrecisionWarning, stacklevel=3)


def precision_note(model: Any, learning_rate: float) -> str | None:
    """Say that updates vanish, where most trained weights are too coarse for the learning rate.

    Args:
        model: The policy, as its optimiser will update it.
        learning_rate: The highest.

    Returns:
        A sentence with the remedy; None where most weights can move.
    """
    weights = [each for each in model.parameters() if each.requires_grad and each.dtype in _HALF]
    share = vanishing_share(weights, learning_rate)
    if share <= _MANY:
        return None
    dtype = str(weights[0].dtype).removeprefix("torch.")
    return (
        f"weights in {dtype} without float32 master weights: an update as large as the learning "
        f"rate {learning_rate:g} does not move {share:.1%} of the trained weights (it is rounded "
        "away); set dtype: float32 and training.bf16: true, or train an adapter in float32"
    )
