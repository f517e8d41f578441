"""What a training left behind, for comparing two of them bit for bit."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from prefstage.training.checkpoints import newest_whole

CLOCKS = ("runtime", "per_second")


def log_of(entries: list[dict[str, float]]) -> list[dict[str, float]]:
    """Log entries without what the clock decides."""
    return [
        {name: value for name, value in entry.items() if not name.endswith(CLOCKS)}
        for entry in entries
    ]


def results_of(folder: Path) -> dict[str, Any]:
    """Everything in the newest checkpoint, tensors as hashes of their bits."""
    checkpoint = newest_whole(folder)
    assert checkpoint is not None
    found: dict[str, Any] = {"step": checkpoint.name}
    for file in sorted(checkpoint.rglob("*")):
        name = file.relative_to(checkpoint).as_posix()
        if file.suffix == ".safetensors":
            found[name] = hashes_of(load_file(file))
        elif file.suffix in (".pt", ".pth"):
            found[name] = hashes_of(torch.load(file, weights_only=False))
        elif name.startswith("prefstage_state"):
            found[name] = json.loads(file.read_text())
    for place in (checkpoint, folder):
        if (place / "trainer_state.json").exists():
            state = json.loads((place / "trainer_state.json").read_text())
            found[f"log of {place.name if place != folder else 'the run'}"] = (
                log_of(state["log_history"]),
                state["best_metric"],
            )
    return found


def hashes_of(value: Any) -> Any:
    """The same structure with a hash of the bits of every tensor and array."""
    if isinstance(value, torch.Tensor):
        bits = value.detach().contiguous().reshape(-1).view(torch.uint8)
        return [str(value.dtype), hashlib.sha256(bits.numpy().tobytes()).hexdigest()]
    if hasattr(value, "tobytes"):
        return hashlib.sha256(value.tobytes()).hexdigest()
    if isinstance(value, dict):
        return {str(name): hashes_of(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [hashes_of(inner) for inner in value]
    return value if isinstance(value, int | float | str | bool | None) else type(value).__name__
