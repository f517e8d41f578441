"""Loading a causal LM, with errors that name the cure."""

from typing import Any

import torch

from prefstage.core.checkpoints import CAUSAL_LM, load_checkpoint
from prefstage.core.errors import InputError


def load_model(
    name_or_path: str, *, dtype: str = "auto", device_map: Any = None, adapter: str | None = None
) -> Any:
    """Load a causal LM in evaluation mode, with its adapter on if it is one's folder.

    Args:
        name_or_path: Folder or Hub id of a model, or of a PEFT adapter, whose base it names.
        dtype: A torch dtype's name; "auto" takes float32 on a CPU and the checkpoint's own
            elsewhere.
        device_map: As transformers takes it; None for the GPU if there is one.
        adapter: Folder or Hub id of a PEFT adapter to put on the model.

    Returns:
        The model.

    Raises:
        InputError: If torch knows no such dtype.
        ModelError: If the model or the adapter cannot be loaded, or a weight of them is missing,
            unexpected, of another shape or not finite.
        MissingDependencyError: If an adapter is named and peft is not installed.
    """
    place = device_map or ("cuda" if torch.cuda.is_available() else "cpu")
    return load_checkpoint(
        str(name_or_path),
        CAUSAL_LM,
        dtype=_dtype(dtype, on_cpu=place == "cpu"),
        device_map=place,
        adapter=adapter,
    )


def _dtype(name: str, *, on_cpu: bool) -> Any:
    if name == "auto":
        return torch.float32 if on_cpu else "auto"
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise InputError.of(
            saw=f"dtype={name!r}",
            expected="auto, float32, bfloat16 or float16",
            cure="use auto",
        )
    return found
