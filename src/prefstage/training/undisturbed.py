"""Looking at a model in training without leaving a trace."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


@contextmanager
def undisturbed(model: Any) -> Iterator[None]:
    """Restore modes and random states after the block, so that training goes on as if not.

    Restored: every module's train or eval flag, and the generators of torch (CPU and CUDA),
    numpy and Python. What the block allocated on a GPU is given back.

    Args:
        model: The model in training.

    Yields:
        Nothing.
    """
    modes = [(module, module.training) for module in model.modules()]
    python, array = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        random.setstate(python)
        np.random.set_state(array)
        if devices:
            torch.cuda.empty_cache()
