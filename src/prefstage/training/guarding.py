"""Checks around an optimiser step: memory before, numbers after."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch

from prefstage.scoring.budget import free_memory_bytes
from prefstage.training.batches import StepItems
from prefstage.training.checkpoints import newest_whole
from prefstage.training.faults import MemoryWatch, check_losses, is_out_of_memory, out_of_memory
from prefstage.training.memory import STATES_A_PARAMETER
from prefstage.training.step import StepOutcome, StepRunner

_PEAK_UNIT = 1 if sys.platform == "darwin" else 1024


class StepGuard:
    """Turns what goes wrong in an optimiser step into one line that names the cure.

    Args:
        runner: Computes the steps.
        folder: The run's output folder, where the last whole checkpoint lies.
        device: Where the steps are computed.
    """

    def __init__(self, runner: StepRunner, folder: Path, device: torch.device) -> None:
        self._runner = runner
        self._folder = folder
        self._device = device
        self._watch = MemoryWatch()

    @contextmanager
    def memory(self, items: StepItems, *, step: int, optimizer: Any) -> Iterator[None]:
        """Watch a step's memory, and say what would fit if it does not.

        Args:
            items: The items of the step.
            step: Optimiser steps done before it.
            optimizer: Whose state may still have to be made.

        Yields:
            Nothing; the step is computed inside.

        Raises:
            TrainingError: If the device, or the machine, has no memory left.
        """
        held = _held_bytes(self._device) + _bytes_to_come(optimizer)
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            tokens = self._largest(items)
            reached = max(_peak_bytes(self._device), held)
            capacity = _held_bytes(self._device) + free_memory_bytes(self._device)
            budget = self._watch.budget(
                held=held, capacity=capacity, tokens=tokens, reached=reached
            )
            longest = max(self._runner.sizes(items))
            last = newest_whole(self._folder)
            raise out_of_memory(
                error, step=step, tokens=tokens, longest=longest, budget=budget, last=last
            ) from error
        peak = _peak_bytes(self._device)
        if peak - held > self._watch.bytes_taken:
            self._watch.note(self._largest(items), held=held, peak=peak)

    def check(self, outcome: StepOutcome, *, step: int, learning_rate: float) -> None:
        """Check that every loss of a step is a number.

        Args:
            outcome: What the step found.
            step: Optimiser steps done before it.
            learning_rate: The present one.

        Raises:
            TrainingError: If one is NaN or infinite.
        """
        items = outcome.items
        known = {"the policy's log-probs": outcome.scored.log_probs}
        if items.reference is not None:
            known["the reference's log-probs"] = items.reference
        check_losses(
            outcome.values.values,
            [item.index for item in items.items],
            step=step,
            log_probs=known,
            learning_rate=learning_rate,
            last=newest_whole(self._folder),
        )

    def _largest(self, items: StepItems) -> int:
        """Tokens of the largest micro-batch, items taken one by one."""
        sizes = self._runner.sizes(items)
        batches = [batch for own in self._runner.plan(items) for batch in own if batch]
        together = [sum(sizes[place] for place in batch) for batch in batches if len(batch) > 1]
        alone = [sizes[batch[0]] for batch in batches if len(batch) == 1]
        return max([min(each, self._runner.token_budget) for each in together] + alone)


def _held_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    return int(psutil.Process().memory_info().rss)


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _PEAK_UNIT


def _bytes_to_come(optimizer: Any) -> int:
    """Gradients, made anew at every step, and the optimiser's state before its first step."""
    weights = [each for group in optimizer.param_groups for each in group["params"]]
    gradients = int(sum(each.numel() * each.element_size() for each in weights))
    if optimizer.state:
        return gradients
    return gradients + int(sum(each.numel() for each in weights)) * 4 * STATES_A_PARAMETER
