"""Loading what a model judge needs, with errors that name the cure."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from prefstage.core.errors import InputError, ModelError, PrefstageError
from prefstage.core.foreign import reason_of


@contextmanager
def told_errors(path: str, *, wanted: str) -> Iterator[None]:
    """Turn a failure to load a checkpoint into one line that says what to do.

    Args:
        path: The folder or Hub id being loaded.
        wanted: What it should have been.

    Raises:
        ModelError: If the block raises what no error of ours is.
    """
    try:
        yield
    except PrefstageError:
        raise
    except Exception as error:  # what a foreign file makes transformers and torch raise is anything
        raise ModelError.of(
            saw=f"cannot load {path}: {reason_of(error)}",
            expected=wanted,
            cure="check the path, or that the Hub id exists and can be reached",
        ) from error


def loading_settings(device: str, dtype: str) -> tuple[Any, Any]:
    """Where a judge runs and in which precision, as `from_pretrained` takes them.

    Args:
        device: A torch device, or "auto" for all GPUs if there is one (a model that does
            not fit on one is spread over them).
        dtype: A torch dtype's name, or "auto": float32 on a CPU, where half precision is
            slow, and the checkpoint's own elsewhere.

    Returns:
        (device_map, torch.dtype or "auto").

    Raises:
        InputError: If torch knows no such device, or it is not there.
    """
    import torch

    with_gpu = torch.cuda.is_available()
    chosen = ("cuda" if with_gpu else "cpu") if device == "auto" else device
    try:
        place = torch.device(chosen)
    except RuntimeError:
        raise _bad_device(device) from None
    if place.type == "cuda" and not with_gpu:
        raise _bad_device(device)
    device_map = "auto" if device == "auto" and with_gpu else {"": place}
    if dtype != "auto":
        return device_map, getattr(torch, dtype)
    return device_map, torch.float32 if place.type == "cpu" else "auto"


def _bad_device(device: str) -> InputError:
    return InputError.of(
        saw=f"device {device!r}",
        expected="a device of this machine, such as cpu, cuda or cuda:1",
        cure="leave device out to take the GPU if there is one",
    )
