"""A loaded model's weights: their fingerprint, and whether they are whole."""

import hashlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from prefstage.core.errors import ModelError

if TYPE_CHECKING:
    import torch

_SHOWN_NAMES = 3


def weights_fingerprint(model: "torch.nn.Module") -> str:
    """Hash a loaded model's class and every weight, in the precision it runs in.

    Args:
        model: Any torch module, on any device.

    Returns:
        16 hex digits; the same for the same weights, however the checkpoint's files are
        laid out and wherever they came from.
    """
    import torch

    hasher = hashlib.sha256(type(model).__name__.encode())
    for name, tensor in sorted(model.state_dict().items()):
        hasher.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        hasher.update(flat.view(torch.uint8).numpy().data)
    return hasher.hexdigest()[:16]


def check_weights(
    source: str,
    *,
    missing: Iterable[str] = (),
    unexpected: Iterable[str] = (),
    reshaped: Mapping[str, str] | None = None,
    not_finite: Iterable[str] = (),
    expected: str,
    cure: str,
) -> None:
    """Check that a checkpoint's tensors are those of its model, and numbers.

    Args:
        source: Folder or Hub id, for the message.
        missing: Names that the model has and the checkpoint lacks.
        unexpected: Names that the checkpoint has and the model lacks.
        reshaped: Both shapes, in words, by name, where they differ.
        not_finite: Names of tensors that hold NaN or an infinity.
        expected: What the weights should have been.
        cure: What to do.

    Raises:
        ModelError: If any name is given: one line with the first few of every fault.
    """
    shapes = [f"{name}: {shapes}" for name, shapes in sorted((reshaped or {}).items())]
    faults = {
        "missing": sorted(missing),
        "unexpected": sorted(unexpected),
        "of another shape": shapes,
        "with NaN or inf": sorted(not_finite),
    }
    seen = [f"{len(names)} {fault} ({_some(names)})" for fault, names in faults.items() if names]
    if seen:
        raise ModelError.of(
            saw=f"weights of {source}: {', '.join(seen)}", expected=expected, cure=cure
        )


def not_finite_names(tensors: Mapping[str, "torch.Tensor"]) -> list[str]:
    """Names of the tensors that hold NaN or an infinity.

    One pass over each tensor, on its own device; tensors that are shared are read once,
    and those that are not in memory (offloaded to disk) are left out.

    Args:
        tensors: By name, such as a `state_dict`.

    Returns:
        The names.
    """
    import torch

    # 8-bit floats are only a quantised layer's storage, and torch has no isfinite for them.
    numbers = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
    verdicts: dict[tuple[object, ...], bool] = {}
    names = []
    for name, tensor in tensors.items():
        if tensor.dtype not in numbers or tensor.device.type == "meta" or not tensor.numel():
            continue
        key = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride())
        if key not in verdicts:
            verdicts[key] = bool(torch.isfinite(tensor.detach()).all())
        if not verdicts[key]:
            names.append(name)
    return names


def _some(names: list[str]) -> str:
    more = len(names) - _SHOWN_NAMES
    return ", ".join(names[:_SHOWN_NAMES]) + (f" and {more} more" if more > 0 else "")
