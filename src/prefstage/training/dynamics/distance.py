"""How far the weights have moved: ‖θ_t - θ_0‖ without a second model in memory."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from prefstage.core import DataError, atomic_path, write_text
from prefstage.training.compat import lora_factors

# Start weights are written in files of about this size: what is copied into memory at once.
SHARD_BYTES = 1 << 30
_ELEMENTS_AT_ONCE = 1 << 24

_COMPLETE = "complete"


@dataclass(frozen=True)
class StartWeights:
    """The trainable weights at the start of training, on disk.

    The distance is ``‖θ_t - θ_0‖₂`` over all trainable weights. Where weights are trained
    through LoRA, θ is the weight that the model computes with: W + sBA, so that full
    fine-tuning and LoRA are on one scale; ``‖s(BA - B₀A₀)‖`` is computed from the factors'
    Gram matrices and no such product is formed. Adapters of other kinds (DoRA, convolutions)
    are measured by their own parameters; `kind_of` says which it is.

    Args:
        folder: Where the start weights lie.
    """

    folder: Path

    def exist(self) -> bool:
        """Whether the start has been kept."""
        return (self.folder / _COMPLETE).exists()

    def save(self, model: Any) -> None:
        """Keep the trainable weights of a model as they are now.

        Args:
            model: The model, bare or with PEFT adapters, whole on this process.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        # The mark goes first and comes last: a kill in between leaves weights that do not count.
        for old in [self.folder / _COMPLETE, *self.folder.glob("*.safetensors")]:
            old.unlink(missing_ok=True)
        for number, shard in enumerate(_shards(model)):
            with atomic_path(self.folder / f"{number:05d}.safetensors") as temporary:
                save_file(shard, temporary)
        write_text(self.folder / _COMPLETE, kind_of(model) + "\n")

    def load_into(self, model: Any) -> None:
        """Give a model the kept weights, in place and to the bit.

        Args:
            model: The model that they were kept of.
        """
        with ExitStack() as stack, torch.no_grad():
            start = self._open(stack)
            for name, weight in _trainable(model):
                weight.copy_(start[name].get_tensor(name))

    def distance(self, model: Any) -> float:
        """‖θ_t - θ_0‖₂ of a model.

        Args:
            model: The same model later.

        Returns:
            The distance, in the unit of the weights.

        Raises:
            DataError: If the start was kept of a model with other trainable weights.
        """
        now = dict(_trainable(model))
        with ExitStack() as stack, torch.no_grad():
            start = self._open(stack)
            odd = sorted(set(start) ^ set(now))
            DataError.unless(
                not odd,
                saw=f"{len(odd)} trainable weights that only start or present have, such as "
                f"{next(iter(odd), None)}",
                expected="the trainable weights of the start",
                cure="name another folder with out=",
            )
            factors = lora_factors(model)
            in_factors = {name for left, right, _ in factors for name in (left, right)}
            # Weights one after another, from disk: only one parameter of the start is in memory.
            squares = [
                _squared_change(weight, start[name].get_tensor(name))
                for name, weight in now.items()
                if name not in in_factors
            ]
            squares += [
                scale**2
                * _squared_product_change(
                    *(now[left], now[right]),
                    *(start[name].get_tensor(name) for name in (left, right)),
                )
                for left, right, scale in factors
            ]
        return float(sum(squares) ** 0.5)

    # Open files rather than tensors: safetensors then reads one weight at a time.
    def _open(self, stack: ExitStack) -> dict[str, Any]:
        files = (
            stack.enter_context(safe_open(path, framework="pt"))
            for path in sorted(self.folder.glob("*.safetensors"))
        )
        return {name: file for file in files for name in file.keys()}  # noqa: SIM118 - no mapping


def kind_of(model: Any) -> str:
    """What the distance of a model is taken of.

    Args:
        model: Bare or with PEFT adapters.

    Returns:
        "weights", "effective weights" (LoRA) or "adapter parameters".
    """
    if not hasattr(model, "peft_config"):
        return "weights"
    return "effective weights" if lora_factors(model) else "adapter parameters"


def _trainable(model: Any) -> Iterator[tuple[str, Tensor]]:
    return ((name, weight) for name, weight in model.named_parameters() if weight.requires_grad)


def _shards(model: Any) -> Iterator[dict[str, Tensor]]:
    shard: dict[str, Tensor] = {}
    for name, weight in _trainable(model):
        shard[name] = weight.detach().cpu().contiguous()
        if sum(tensor.nbytes for tensor in shard.values()) >= SHARD_BYTES:
            yield shard
            shard = {}
    if shard:
        yield shard


def _squared_change(weight: Tensor, start: Tensor) -> float:
    now, then = weight.detach().reshape(-1), start.reshape(-1)
    # A stretch at a time: float32 copies of a whole embedding in bfloat16 would take four times
    # its own memory.
    return sum(
        float(torch.linalg.vector_norm(part.float() - start_part.to(now.device).float())) ** 2
        for part, start_part in zip(
            *(torch.split(weights, _ELEMENTS_AT_ONCE) for weights in (now, then)), strict=True
        )
    )


def _squared_product_change(b: Tensor, a: Tensor, start_b: Tensor, start_a: Tensor) -> float:
    # ‖BA - B₀A₀‖² = Σ (B̂ᵀB̂) ∘ (ÂÂᵀ) with B̂ = [B, -B₀] and Â = [A; A₀]: two matrices of
    # 2·rank squared instead of one of the weight's size. In float64, as equal terms cancel.
    left = torch.cat([b.detach().cpu().double(), -start_b.double()], dim=1)
    right = torch.cat([a.detach().cpu().double(), start_a.double()], dim=0)
    return max(0.0, float(((left.T @ left) * (right @ right.T)).sum()))
