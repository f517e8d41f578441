"""What the measures of rankings ask of their tensors."""

from collections.abc import Mapping

import torch
from torch import Tensor

from prefstage.core.errors import InputError


def exact(**tensors: Tensor) -> list[Tensor]:
    """Bring tensors of equal shape to float64, where sums of token log-probs are compared.

    Args:
        **tensors: The tensors by their names. All of one shape.

    Returns:
        The tensors in the order given, in float64, on their device, without gradient.

    Raises:
        InputError: If shapes differ, or a value is not finite.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if len(set(shapes.values())) > 1:
        raise InputError.of(
            saw=", ".join(f"{name} of shape {shape}" for name, shape in shapes.items()),
            expected="one value a pair in each",
            cure="give both sides of the same pairs",
        )
    for name, tensor in tensors.items():
        _check_finite(name, tensor)
    return [tensor.detach().double() for tensor in tensors.values()]


def check_positive(**settings: float) -> None:
    """Check settings that must be positive.

    Args:
        **settings: The values by their names.

    Raises:
        InputError: If one is not a positive number.
    """
    for name, value in settings.items():
        if not 0.0 < value < float("inf"):
            raise InputError.of(
                saw=f"{name}={value}", expected="a positive number", cure=f"set {name} > 0"
            )


def check_some(values: Mapping[str, Tensor]) -> None:
    """Check that there is at least one pair.

    Args:
        values: Tensors by their names.

    Raises:
        InputError: If one is empty.
    """
    for name, tensor in values.items():
        if tensor.numel() == 0:
            raise InputError.of(
                saw=f"{name} without a pair", expected="at least one pair", cure="score pairs first"
            )


def _check_finite(name: str, tensor: Tensor) -> None:
    bad = ~torch.isfinite(tensor)
    if bad.any():
        place = int(bad.reshape(-1).nonzero()[0])
        raise InputError.of(
            saw=f"{name}[{place}] = {float(tensor.reshape(-1)[place])}",
            expected="finite numbers",
            cure="look at that pair: its log-probs overflowed, or the model has diverged",
        )
