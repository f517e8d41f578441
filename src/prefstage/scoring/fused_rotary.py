"""Rotary embedding as a single step: one new tensor each for queries and keys, nothing kept."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

NAME = "apply_rotary_pos_emb"
"""What transformers' model files call the function."""

OwnFunction = Callable[..., tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Rotation:
    """Stands in for a model file's function: rotates by `rotate` where that is the same.

    Attributes:
        replaced: The function.
    """

    replaced: OwnFunction

    def __call__(
        self, query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, *others: Any, **named: Any
    ) -> tuple[Tensor, Tensor]:
        """Queries and keys, rotated."""
        known = (
            not others
            and named.keys() <= {"unsqueeze_dim"}
            and query.device.type == "cpu"
            and query.dtype in (torch.float32, torch.float64)
            and query.dtype == key.dtype == cos.dtype == sin.dtype
            and query.shape[-1] == key.shape[-1] == cos.shape[-1] == sin.shape[-1]
            and not (cos.requires_grad or sin.requires_grad)
        )
        if not known:
            return self.replaced(query, key, cos, sin, *others, **named)
        place = named.get("unsqueeze_dim", 1)
        return rotate(query, key, cos.unsqueeze(place), sin.unsqueeze(place))


def rotate(
    query: Float[Tensor, "... head_dim"],
    key: Float[Tensor, "... head_dim"],
    cos: Float[Tensor, "... head_dim"],
    sin: Float[Tensor, "... head_dim"],
) -> tuple[Tensor, Tensor]:
    """Rotary embedding: ``x · cos + (-x₂, x₁) · sin``, where x = (x₁, x₂) is cut in the middle.

    Args:
        query: [..., head_dim].
        key: Likewise.
        cos: Of each place's angles, or what broadcasts to it. No gradient.
        sin: Likewise.

    Returns:
        Queries and keys.

    Source:
        Su et al. 2021, arXiv:2104.09864, equation 34, with halves in place of even and odd.
    """
    query, key = _Rotate.apply(query, key, cos, sin)  # type: ignore[no-untyped-call]  # untyped in torch
    return query, key


def rotation_of(file: str) -> tuple[dict[str, Any], Rotation] | None:
    """The function by which a model's layers rotate, if `rotate` gives the same.

    Args:
        file: Name of the Python module that holds their classes.

    Returns:
        The namespace in which it stands as `NAME`, and a function to stand in for it; None
        if there is none, or if it rotates otherwise.
    """
    namespace = vars(sys.modules[file])
    own = namespace.get(NAME)
    own = getattr(own, "replaced", own)  # a pass may be under way in another thread
    if not callable(own):
        return None
    numbers = torch.arange(1.0, 1 + 3 * 2 * 2 * 4).sin().view(3, 1, 2, 2, 4)
    query, key, angles = numbers[0], numbers[1], numbers[2, :, 0]
    try:
        expected = own(query, key, angles.cos(), angles.sin())
    except Exception:  # of a form unknown to us
        return None
    found = rotate(query, key, angles.cos()[:, None], angles.sin()[:, None])
    same = len(expected) == len(found) and all(map(_same, expected, found))
    return (namespace, Rotation(own)) if same else None


def _same(one: Any, other: Tensor) -> bool:
    return isinstance(one, Tensor) and one.shape == other.shape and torch.allclose(one, other)


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(cos, sin)
        first, second = sin.chunk(2, -1)
        return _rotated(query, cos, -first, second), _rotated(key, cos, -first, second)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_query: Tensor, grad_key: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        first, second = sin.chunk(2, -1)
        # Transposed: what the first half gave the second comes back to the first.
        grads = (_rotated(grad, cos, second, -first) for grad in (grad_query, grad_key))
        return (*grads, None, None)


def _rotated(x: Tensor, cos: Tensor, to_first: Tensor, to_second: Tensor) -> Tensor:
    """``x · cos``, and each half's share of the other."""
    half = x.shape[-1] // 2
    result = x * cos
    result[..., :half].addcmul_(x[..., half:], to_first)
    result[..., half:].addcmul_(x[..., :half], to_second)
    return result
