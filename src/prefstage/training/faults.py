"""What can go wrong in training: noticed where it begins, explained in one line with its cure."""

import logging
import math
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import Tensor

from prefstage.core import ModelError, TrainingError, full_disk_error
from prefstage.losses import LossState
from prefstage.scoring.memory import (
    MemoryWatch,
    bytes_to_come,
    free_bytes,
    held_bytes,
    is_out_of_memory,
    peak_bytes,
)
from prefstage.training.batches import Flat, StepItems
from prefstage.training.checkpoints import newest_whole
from prefstage.training.policy import ADAPTER_OFF, START, drops
from prefstage.training.step import StepOutcome, StepRunner

_log = logging.getLogger(__name__)

# What writing a checkpoint raises when the disk refuses: Python, torch and safetensors.
SAVING_ERRORS = (OSError, RuntimeError, SafetensorError)

_SHOWN_ROWS = 5
_MB = 1_000_000


# Nats a token, averaged over a response: rounding differs between forward passes.
FULL_PRECISION_TOLERANCE, HALF_PRECISION_TOLERANCE = 1e-3, 0.05


def going_on(last: Path | None) -> str:
    """Say what a stopped run can go on from.

    Args:
        last: The last whole checkpoint.

    Returns:
        A clause for an error's cure.
    """
    if last is None:
        return "then begin again, as no checkpoint was saved yet"
    return f"then go on with resume_from_checkpoint=True; {last.name} is untouched"


# --- Numbers -----------------------------------------------------------------------------------


def bad_losses(
    values: Tensor,
    rows: Sequence[int],
    *,
    step: int,
    log_probs: Mapping[str, Tensor],
    learning_rate: float | None = None,
    last: Path | None = None,
) -> TrainingError:
    """Say of which items the loss is no number, and where that began.

    Args:
        values: Loss of each item, of which some are NaN or infinite. [items].
        rows: Row of each item in its data set. [items].
        step: Optimiser steps done before this one.
        log_probs: Log-probs by what they are ("the policy's log-probs", ...). [tokens], nats.
        learning_rate: The present one.
        last: The last whole checkpoint.

    Returns:
        The error to raise: which step, which rows, what to look at.
    """
    bad = [
        row for row, value in zip(rows, values.tolist(), strict=True) if not math.isfinite(value)
    ]
    more = len(bad) - _SHOWN_ROWS
    broken = [name for name, flat in log_probs.items() if not bool(torch.isfinite(flat).all())]
    if any("policy" in name for name in broken):
        rate = "" if learning_rate is None else f" (now {learning_rate:g})"
        cure = f"lower learning_rate{rate} or max_grad_norm, or use bf16 instead of fp16"
    elif broken:
        cure = "delete the reference cache, and check the reference model in float32"
    else:
        cure = "look at these rows' lengths and scores, and at the loss's settings"
    return TrainingError.of(
        saw=f"step {step + 1}: the loss of {len(bad)} of {len(values)} items is not a number "
        f"(rows {', '.join(map(str, bad[:_SHOWN_ROWS]))}"
        + (f" and {more} more)" if more > 0 else ")")
        + (f"; not a number either: {', '.join(broken)}" if broken else ""),
        expected="finite losses",
        cure=f"{cure}, {going_on(last)}",
    )


def bad_weights(
    model: torch.nn.Module, *, step: int, last: Path | None = None
) -> TrainingError | None:
    """Look for trained weights that are NaN or infinite, before they are saved.

    Args:
        model: The model; of a sharded model, this process's part.
        step: Optimiser steps done.
        last: The last whole checkpoint.

    Returns:
        The error to raise, or None if all are numbers.
    """
    for name, weight in model.named_parameters():
        # Of a sharded weight only the local part: whole ones would be gathered, one process after
        # another would wait, and a process with a fault must not leave the others waiting.
        local = (weight.to_local() if hasattr(weight, "to_local") else weight).detach()
        count = int((~torch.isfinite(local)).sum()) if weight.requires_grad else 0
        if count:
            return TrainingError.of(
                saw=f"step {step}: {count:,} of {local.numel():,} weights of {name} are NaN or "
                "infinite; nothing was saved",
                expected="finite weights",
                cure="lower learning_rate or max_grad_norm, " + going_on(last),
            )
    return None


def check_start(outcome: StepOutcome, *, tolerance: float) -> None:
    """Check that policy and reference agree before the first update.

    The log-ratio of each response, a token, must be 0 within `tolerance`; the sigmoid loss
    is then ln 2.

    Args:
        outcome: Of the first step, with a reference.
        tolerance: Largest |log-ratio| a token, nats.

    Raises:
        ModelError: If it is larger: then the loss compares things that are not comparable.
    """
    items = outcome.items
    ratios = (outcome.scored.log_probs - cast("Flat", items.reference)).cpu()
    means = [
        (float(ratios[span].mean().abs()), item)
        for item, spans in zip(items.items, items.spans, strict=True)
        for span in spans
    ]
    # NaN is not smaller than anything: sorted as the worst, it is reported too.
    worst, item = max(means, key=lambda mean: math.inf if math.isnan(mean[0]) else mean[0])
    ModelError.unless(
        worst <= tolerance,
        saw=f"before the first update the policy's log-probs differ from its reference's by "
        f"{worst:.3g} nats a token in item {item.index} (prompt {item.trees[0].prompt_id})",
        expected=f"at most {tolerance:g}, since the policy is its own reference (the sigmoid "
        "loss starts at ln 2)",
        cure="look at dropout and other randomness in the forward pass, at layout='flat', at "
        "weights that changed after the reference was computed, or at a precision too low "
        "(raise initial_loss_tolerance)",
    )


def start_tolerance(trainer: Any) -> float | None:
    """The tolerance of the check; None, with the reason in the log, where it says nothing.

    Args:
        trainer: The trainer, before its first step.

    Returns:
        Nats a token, or None.
    """
    references, known = trainer.references, trainer.args.initial_loss_tolerance
    if not references.needed:
        return None
    if references.reference not in ((START, ADAPTER_OFF) if trainer.fresh_adapter else (START,)):
        _log.info("initial-loss check left out: the reference is another model than the start")
        return None
    if drops(trainer.model):
        _log.info("initial-loss check left out: dropout makes log-probs differ")
        return None
    dtypes = {weight.dtype for weight in trainer.model.parameters()}
    half = trainer.accelerator.mixed_precision != "no" or dtypes & {torch.float16, torch.bfloat16}
    usual = HALF_PRECISION_TOLERANCE if half else FULL_PRECISION_TOLERANCE
    return usual if known is None else float(known)


# --- The disk ----------------------------------------------------------------------------------


def saving_failed(error: Exception, folder: Path, step: int, last: Path | None) -> TrainingError:
    """Say why a checkpoint could not be written.

    Args:
        error: What the writer raised.
        folder: The run's output folder.
        step: Optimiser steps done.
        last: The last whole checkpoint.

    Returns:
        The error to raise.
    """
    text = next(iter(str(error).splitlines()), type(error).__name__)
    reason = (getattr(error, "strerror", None) or text).strip()
    expected, cure = "a folder that can be written to", "mend it"
    if full_disk_error(error):
        reason = f"the disk is full ({reason})"  # torch speaks of an unexpected position
        files = () if last is None else last.rglob("*")
        needed = sum(file.stat().st_size for file in files if file.is_file())
        expected = (
            "room for a checkpoint"
            + (f" of about {needed / _MB:,.1f} MB" if needed else "")
            + f" ({shutil.disk_usage(folder).free / _MB:,.1f} MB are free)"
        )
        cure = "make room, or set a lower save_total_limit"
    return TrainingError.of(
        saw=f"step {step}: checkpoint-{step} cannot be written to {folder}: {reason}",
        expected=expected,
        cure=f"{cure}, {going_on(last)}",
    )


# --- Memory ------------------------------------------------------------------------------------


def out_of_memory(
    error: BaseException, *, step: int, tokens: int, longest: int, budget: int, last: Path | None
) -> TrainingError:
    """Say what would fit.

    Args:
        error: What the device raised.
        step: Optimiser steps done before this one.
        tokens: Tokens of the micro-batch that did not fit.
        longest: Tokens of the longest item, which no budget can split.
        budget: Tokens that would fit; see `MemoryWatch.budget`.
        last: The last whole checkpoint.

    Returns:
        The error to raise.
    """
    asked = re.search(r"[Tt]ried to allocate ([\d.]+ ?\w+)", str(error))
    cure = f"set token_budget={budget}, "
    if longest > budget:
        cure = (
            f"the longest item alone has {longest:,} tokens: lower max_prompt_tokens or "
            "max_response_tokens, or set gradient_checkpointing=True, or train with LoRA, "
        )
    return TrainingError.of(
        saw=f"step {step + 1}: out of memory in a micro-batch of {tokens:,} tokens"
        + (f" (asked for {asked[1]})" if asked else ""),
        expected=f"micro-batches of at most about {budget:,} tokens, by what was measured",
        cure=cure + going_on(last),
    )


class StepGuard:
    """Turns what goes wrong in an optimiser step into one line that names the cure.

    Args:
        runner: Computes the steps.
        folder: The run's output folder, where the last whole checkpoint lies.
        device: Where the steps are computed.
        tolerance: Of `check_start`; None to leave it out.
    """

    def __init__(
        self, runner: StepRunner, folder: Path, device: torch.device, *, tolerance: float | None
    ) -> None:
        self._runner, self._folder, self._device = runner, folder, device
        self._tolerance = tolerance
        self._watch = MemoryWatch()

    def train(
        self, model: Any, items: StepItems, state: LossState, *, step: int, optimizer: Any
    ) -> StepOutcome:
        """As `StepRunner.train`, with errors that say what to change.

        Args:
            model: The policy with its wrappers.
            items: The items of the step.
            state: The loss's.
            step: Optimiser steps done before it.
            optimizer: Whose state may still have to be made, and whose learning rate may be
                too high.

        Returns:
            The step's result.

        Raises:
            TrainingError: If the device, or the machine, has no memory left; or if a loss is NaN
                or infinite.
            ModelError: As `check_start`, before the first step.
        """
        held = held_bytes(self._device) + bytes_to_come(optimizer)
        try:
            outcome = self._runner.train(model, items, state)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            tokens = self._largest(items)
            budget = self._watch.budget(
                held=held,
                capacity=held_bytes(self._device) + free_bytes(self._device),
                tokens=tokens,
                reached=max(peak_bytes(self._device), held),
            )
            longest, last = max(self._runner.sizes(items)), newest_whole(self._folder)
            raise out_of_memory(
                error, step=step, tokens=tokens, longest=longest, budget=budget, last=last
            ) from error
        peak = peak_bytes(self._device)
        # The peak is the process's since it began, so only a new one is this step's; the plan,
        # which costs time, is made anew only then.
        if peak - held > self._watch.bytes_taken:
            self._watch.note(self._largest(items), held=held, peak=peak)
        values = outcome.values.values
        if not bool(torch.isfinite(values).all()):
            known = {"the policy's log-probs": outcome.scored.log_probs}
            if items.reference is not None:
                known["the reference's log-probs"] = items.reference
            raise bad_losses(
                values,
                [item.index for item in items.items],
                step=step,
                log_probs=known,
                learning_rate=float(optimizer.param_groups[0]["lr"]),
                last=newest_whole(self._folder),
            )
        if step == 0 and self._tolerance is not None:
            check_start(outcome, tolerance=self._tolerance)
        return outcome

    # Tokens of the largest micro-batch, items taken one by one.
    def _largest(self, items: StepItems) -> int:
        sizes, budget = self._runner.sizes(items), self._runner.token_budget
        totals = [
            (sum(sizes[item] for item in batch), len(batch))
            for share in self._runner.plan(items)
            for batch in share
            if batch
        ]
        # Several items share prompts, so that their sum may exceed what the budget let through.
        return max(min(total, budget) if count > 1 else total for total, count in totals)
