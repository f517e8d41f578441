"""What can go wrong in training, each found where it begins and told in one line."""

import errno
import math
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from prefstage.core.errors import TrainingError

SAVING_ERRORS = (OSError, RuntimeError, SafetensorError)
"""What writing a checkpoint raises when the disk refuses: Python, torch and safetensors."""

_SHOWN_ROWS = 5
_MB = 1_000_000
_NO_ROOM = re.compile(r"no space left|quota|file too large|unexpected pos", re.IGNORECASE)
_NO_ROOM_CODES = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

_OUT_OF_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory", re.IGNORECASE)
_SAFE_SHARE = 0.9
_ROUND_TOKENS = 64


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


# --- Numbers that are none ---------------------------------------------------------------------


def check_losses(
    values: Tensor,
    rows: Sequence[int],
    *,
    step: int,
    log_probs: Mapping[str, Tensor],
    learning_rate: float | None = None,
    last: Path | None = None,
) -> None:
    """Check that the loss of every item of an optimiser step is a number.

    Args:
        values: Loss of each item. [items].
        rows: Row of each item in its data set. [items].
        step: Optimiser steps done before this one.
        log_probs: Sums of log-probs by what they are ("policy's log-prob of chosen", ...),
            to say where it began. Each [items], nats.
        learning_rate: The present one.
        last: The last whole checkpoint.

    Raises:
        TrainingError: If a loss is NaN or infinite: which step, which rows, what to look at.
    """
    bad = ~torch.isfinite(values.detach())
    if not bool(bad.any()):
        return
    places = bad.nonzero().flatten().tolist()
    named = ", ".join(str(rows[place]) for place in places[:_SHOWN_ROWS])
    more = len(places) - _SHOWN_ROWS
    broken = [what for what, each in log_probs.items() if not bool(torch.isfinite(each).all())]
    if any("policy" in what for what in broken):
        rate = "" if learning_rate is None else f" (now {learning_rate:g})"
        cure = f"lower learning_rate{rate} or max_grad_norm, or use bf16 instead of fp16"
    elif broken:
        cure = "delete the reference cache, and check the reference model in float32"
    else:
        cure = "look at these rows' lengths and scores, and at the loss's settings"
    raise TrainingError.of(
        saw=f"step {step + 1}: the loss of {len(places)} of {len(values)} items is not a number "
        f"(rows {named}{f' and {more} more' if more > 0 else ''})"
        + (f"; not a number either: {', '.join(broken)}" if broken else ""),
        expected="finite losses",
        cure=f"{cure}, {going_on(last)}",
    )


def check_gradient(norm: float | Tensor | None, *, step: int, last: Path | None = None) -> None:
    """Check that the gradient's norm is a number, before the optimiser takes it in.

    Args:
        norm: Norm of the whole gradient, before clipping; None if it was not computed.
        step: Optimiser steps done before this one.
        last: The last whole checkpoint.

    Raises:
        TrainingError: If it is NaN or infinite.
    """
    if norm is None or math.isfinite(float(norm)):
        return
    raise TrainingError.of(
        saw=f"step {step + 1}: the gradient's norm is {float(norm)}, though the loss is finite",
        expected="a finite gradient",
        cure="lower learning_rate, or train in float32 or bf16, " + going_on(last),
    )


def bad_weights(
    model: torch.nn.Module, *, step: int, last: Path | None = None
) -> TrainingError | None:
    """Look for trained weights that are NaN or infinite, before they are saved.

    Args:
        model: The model; of a sharded one this process's part is looked at.
        step: Optimiser steps done.
        last: The last whole checkpoint.

    Returns:
        The error to raise, or None if all are numbers.
    """
    for name, weight in model.named_parameters():
        if not weight.requires_grad:
            continue
        local = getattr(weight, "_local_tensor", weight).detach()
        if not bool(torch.isfinite(local).all()):
            count = int((~torch.isfinite(local)).sum())
            return TrainingError.of(
                saw=f"step {step}: {count:,} of {local.numel():,} weights of {name} are NaN or "
                "infinite; nothing was saved",
                expected="finite weights",
                cure="lower learning_rate or max_grad_norm, " + going_on(last),
            )
    return None


def bad_weights_elsewhere(step: int) -> TrainingError:
    """The error of a process whose own weights are numbers, while another's are not."""
    return TrainingError.of(
        saw=f"step {step}: another process holds weights that are NaN or infinite",
        expected="finite weights on every process",
        cure="see the other processes' error",
    )


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
    full = getattr(error, "errno", None) in _NO_ROOM_CODES or _NO_ROOM.search(str(error))
    if not full:
        expected, cure = "a folder that can be written to", f"mend it, {going_on(last)}"
    else:
        needed, free = _size_of(last), shutil.disk_usage(folder).free
        room = f" of about {needed / _MB:,.1f} MB" if needed else ""
        expected = f"room for a checkpoint{room} ({free / _MB:,.1f} MB are free)"
        cure = f"make room, or set a lower save_total_limit, {going_on(last)}"
    return TrainingError.of(
        saw=f"step {step}: checkpoint-{step} cannot be written to {folder}: {reason}",
        expected=expected,
        cure=cure,
    )


def _size_of(checkpoint: Path | None) -> int:
    if checkpoint is None:
        return 0
    return sum(each.stat().st_size for each in checkpoint.rglob("*") if each.is_file())


# --- Memory ------------------------------------------------------------------------------------


@dataclass
class MemoryWatch:
    """Remembers what micro-batches took, so that a failure can say what would fit.

    Attributes:
        tokens: Tokens of the largest micro-batch that succeeded.
        bytes_taken: What it took beyond what was held before it, at its peak.
    """

    tokens: int = 0
    bytes_taken: int = 0

    def note(self, tokens: int, *, held: int, peak: int) -> None:
        """Take down a micro-batch that succeeded.

        Args:
            tokens: Its tokens, prompts and responses.
            held: Bytes held before it: weights, gradients, optimiser.
            peak: Bytes at its peak.
        """
        if tokens > self.tokens and peak > held:
            self.tokens, self.bytes_taken = tokens, peak - held

    def budget(self, *, held: int, capacity: int, tokens: int, reached: int) -> int:
        """Tokens of a micro-batch that would fit.

        Memory grows with the tokens, so ``budget = share · (capacity - held) / per_token``,
        where per_token is what the largest micro-batch that succeeded took a token; if none
        did, what the failing one had taken when it failed, a lower bound.

        Args:
            held: Bytes held before the failing micro-batch.
            capacity: Bytes that the device gives.
            tokens: Tokens of the failing micro-batch.
            reached: Bytes held and asked for when it failed.

        Returns:
            A multiple of 64, fewer than the failing micro-batch's tokens, at least 64.
        """
        measured = self.bytes_taken / self.tokens if self.tokens else 0.0
        per_token = max(measured, (reached - held) / tokens, 1.0)
        fitting = _SAFE_SHARE * max(0, capacity - held) / per_token
        fitting = min(fitting, _SAFE_SHARE * tokens)
        return max(_ROUND_TOKENS, int(fitting) // _ROUND_TOKENS * _ROUND_TOKENS)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device, or the machine, has no memory left."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and bool(_OUT_OF_MEMORY.search(str(error)))


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
    if longest > budget:
        cure = (
            f"the longest item alone has {longest:,} tokens: lower max_prompt_tokens or "
            "max_response_tokens, or set gradient_checkpointing=True, or train with LoRA, "
        )
    else:
        cure = f"set token_budget={budget}, "
    return TrainingError.of(
        saw=f"step {step + 1}: out of memory in a micro-batch of {tokens:,} tokens"
        + (f" (asked for {asked[1]})" if asked else ""),
        expected=f"micro-batches of at most about {budget:,} tokens, by what was measured",
        cure=cure + going_on(last),
    )
