"""How many tokens a forward pass may hold."""

from typing import Any

import psutil
import torch

from prefstage.scoring.model_parts import ModelParts

CPU_TOKENS = 1024
"""More gains nothing on a CPU: products are large enough, and activations leave the cache."""

GPU_TOKENS = 1 << 14
"""Likewise on a GPU."""

MIN_TOKENS = 128
SHARE_OF_FREE_MEMORY = 0.5


def automatic_budget(parts: ModelParts) -> int:
    """Choose the tokens of a forward pass from the free memory.

    Args:
        parts: The model, already loaded.

    Returns:
        Tokens a pass, in [128, 1024] on a CPU, up to 16,384 elsewhere.
    """
    on_cpu = parts.device.type == "cpu"
    affordable = SHARE_OF_FREE_MEMORY * free_memory_bytes(parts.device) / bytes_per_token(parts)
    return int(max(MIN_TOKENS, min(affordable, CPU_TOKENS if on_cpu else GPU_TOKENS)))


def free_memory_bytes(device: torch.device) -> int:
    """Memory that can still be taken on a device."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + kept)
    return int(psutil.virtual_memory().available)


def bytes_per_token(parts: ModelParts) -> int:
    """Upper estimate of what one token of a pass takes, no gradient wanted.

    One layer's tensors live at a time: residual, queries, keys, values and output (about
    8 widths), the two inner tensors of the gated MLP with their product and activation
    (4 inner widths), and for a response token two float32 copies of its final state.
    """
    config: Any = parts.body.config
    hidden = int(config.hidden_size)
    inner = getattr(config, "intermediate_size", None) or 4 * hidden
    widest = max(inner) if isinstance(inner, list | tuple) else int(inner)
    size = int(parts.projection.weight.element_size())
    return (8 * hidden + 4 * widest) * size + 2 * 4 * hidden
