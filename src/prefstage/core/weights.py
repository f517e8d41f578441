"""The fingerprint of a loaded model's weights."""

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


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
