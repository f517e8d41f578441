"""The precision in which sums are taken."""

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """A tensor in float32, or in float64 if it is that already."""
    return x if x.dtype == torch.float64 else x.float()
