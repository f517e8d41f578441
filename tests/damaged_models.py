"""Checkpoints with one fault each: what is done to a folder's weights, and what must be said."""

import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

Weights = dict[str, Tensor]


def edited(folder: Path, copy: Path, change: Callable[[Weights], object]) -> Path:
    """A copy of a folder whose tensors were changed in place by `change`."""
    shutil.copytree(folder, copy)
    file = weight_file(copy)
    weights = load_file(file)
    change(weights)
    save_file({k: v.contiguous() for k, v in weights.items()}, file, metadata={"format": "pt"})
    return copy


def weight_file(folder: Path) -> Path:
    """The one file of weights of a model or an adapter."""
    (file,) = folder.glob("*.safetensors")
    return file


def truncated(folder: Path, copy: Path, share: float = 0.5) -> Path:
    """A copy of a folder whose file of weights was cut off."""
    shutil.copytree(folder, copy)
    content = weight_file(copy).read_bytes()
    weight_file(copy).write_bytes(content[: int(len(content) * share)])
    return copy


def _rename(weights: Weights, name: str) -> None:
    weights[f"{name}_old"] = weights.pop(name)


def _set_first(weights: Weights, name: str, value: float) -> None:
    weights[name] = weights[name].clone()
    weights[name].view(-1)[0] = value


def _grow(weights: Weights, name: str) -> None:
    weights[name] = torch.zeros(3, *weights[name].shape[1:])


def faults(name: str) -> dict[str, tuple[Callable[[Weights], object], list[str]]]:
    """By fault: what is done to the weight of this name, and what the line must hold."""
    return {
        "missing": (lambda w: w.pop(name), ["1 missing (", name]),
        "renamed": (
            lambda w: _rename(w, name),
            ["1 missing (", name, "1 unexpected (", f"{name}_old"],
        ),
        "NaN": (lambda w: _set_first(w, name, torch.nan), ["1 with NaN or inf (", name]),
        "infinite": (lambda w: _set_first(w, name, -torch.inf), ["1 with NaN or inf (", name]),
        "extra": (
            lambda w: w.update(**{f"extra.{i}.weight": torch.zeros(2) for i in range(5)}),
            ["5 unexpected (extra.0.weight, extra.1.weight, extra.2.weight and 2 more)"],
        ),
        "mis-shaped": (lambda w: _grow(w, name), ["1 of another shape (", name, "[3, "]),
    }
