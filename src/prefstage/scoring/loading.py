"""Loading a causal LM, with errors that name the cure."""

from typing import Any

import torch

from prefstage.core.errors import InputError, MissingDependencyError, ModelError


def load_model(
    name_or_path: str, *, dtype: str = "auto", device_map: Any = None, adapter: str | None = None
) -> Any:
    """Load a causal LM in evaluation mode, with an adapter if one is named.

    Args:
        name_or_path: Folder or Hub id.
        dtype: A torch dtype's name; "auto" takes float32 on a CPU and the checkpoint's own
            elsewhere.
        device_map: As transformers takes it; None for the GPU if there is one.
        adapter: Folder or Hub id of a PEFT adapter.

    Returns:
        The model.

    Raises:
        InputError: If torch knows no such dtype.
        ModelError: If the model or the adapter cannot be loaded.
        MissingDependencyError: If an adapter is named and peft is not installed.
    """
    from transformers import AutoModelForCausalLM

    place = device_map or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        model = AutoModelForCausalLM.from_pretrained(
            name_or_path, dtype=_dtype(dtype, on_cpu=place == "cpu"), device_map=place
        )
    except (OSError, ValueError, KeyError) as error:
        raise ModelError.of(
            saw=f"cannot load {name_or_path}: {_first_line(error)}",
            expected="a checkpoint of a causal language model",
            cure="check the path, or that the Hub id exists and can be reached",
        ) from error
    return (model if adapter is None else _with_adapter(model, adapter)).eval()


def _with_adapter(model: Any, adapter: str) -> Any:
    try:
        from peft import PeftModel
    except ImportError as error:
        raise MissingDependencyError.of(
            saw=f"adapter {adapter}, and no package peft",
            expected="peft, which reads adapters",
            cure="pip install 'prefstage[train]'",
        ) from error
    try:
        return PeftModel.from_pretrained(model, adapter)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError.of(
            saw=f"cannot load adapter {adapter}: {_first_line(error)}",
            expected="a PEFT adapter that was trained on this model",
            cure="check the path and the adapter's base model",
        ) from error


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


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1])
