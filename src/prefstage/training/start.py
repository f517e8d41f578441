"""The check of the very first step: where the policy is the reference, no log-ratio differs."""

import logging
from typing import Any

import torch

from prefstage.core.errors import ModelError
from prefstage.training.policy import drops
from prefstage.training.step import StepOutcome

_log = logging.getLogger(__name__)

FULL_PRECISION_TOLERANCE = 1e-3
HALF_PRECISION_TOLERANCE = 0.05
"""Nats a token, averaged over a response: rounding differs between forward passes."""


def check_start(outcome: StepOutcome, *, tolerance: float) -> float:
    """Check that policy and reference agree before the first update.

    The log-ratio of each response, a token, must be 0 within `tolerance`; the sigmoid loss
    is then ln 2.

    Args:
        outcome: Of the first step.
        tolerance: Largest |log-ratio| a token, nats.

    Returns:
        The largest one found.

    Raises:
        ModelError: If it is larger: then the loss compares things that are not comparable.
    """
    items, reference = outcome.items, outcome.items.reference
    if reference is None:
        return 0.0
    ratios = (outcome.scored.log_probs - reference.to(outcome.scored.log_probs.device)).cpu()
    worst, place = 0.0, 0
    for position, spans in enumerate(items.spans):
        for span in spans:
            ratio = float(ratios[span].mean().abs())
            if not ratio <= worst:
                worst, place = ratio, position
    if worst <= tolerance:
        return worst
    tree = items.items[place].trees[0]
    raise ModelError.of(
        saw=f"before the first update the policy's log-probs differ from its reference's by "
        f"{worst:.3g} nats a token in item {items.items[place].index} (prompt "
        f"{tree.prompt_id})",
        expected=f"at most {tolerance:g}, since the policy is its own reference (the sigmoid "
        "loss starts at ln 2)",
        cure="look at dropout and other randomness in the forward pass, at layout='flat', at "
        "weights that changed after the reference was computed, or at a precision too low "
        "(raise initial_loss_tolerance)",
    )


def start_tolerance(trainer: Any) -> float | None:
    """The tolerance of the check; None, with the reason in the log, where it says nothing.

    Args:
        trainer: The trainer, at any step.

    Returns:
        Nats a token, or None.
    """
    if trainer.state.global_step > 0 or not trainer.references.needed:
        return None
    reference = trainer.references.reference
    if reference != "start" and not (reference == "adapter-off" and trainer.fresh_adapter):
        _log.info("initial-loss check left out: the reference is another model than the start")
        return None
    if drops(trainer.model):
        _log.info("initial-loss check left out: dropout makes log-probs differ")
        return None
    given = trainer.args.initial_loss_tolerance
    if given is not None:
        return float(given)
    dtypes = {each.dtype for each in trainer.model.parameters()}
    half = trainer.accelerator.mixed_precision != "no" or dtypes & {torch.float16, torch.bfloat16}
    return HALF_PRECISION_TOLERANCE if half else FULL_PRECISION_TOLERANCE
