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


@contextmanager
def own_forward(model: Any) -> Iterator[None]:
    """Take Accelerate's mixed-precision wrapper off a model's forward pass for the block.

    The engine calls the model's parts, which have no wrapper; trying its layout against a
    wrapped forward would compare two precisions.

    Args:
        model: The model, prepared by Accelerate or not.

    Yields:
        Nothing.
    """
    wrapped, original = vars(model).get("forward"), vars(model).get("_original_forward")
    if wrapped is None or original is None:
        yield
        return
    model.forward = original
    try:
        yield
    finally:
        model.forward = wrapped
