"""How far the weights have moved: ‖θ_t - θ_0‖ without a second model in memory."""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from prefstage.core.errors import DataError
from prefstage.core.files import atomic_path

SHARD_BYTES = 1 << 30
"""Start weights are written in files of about this size: what one holds in memory."""
_ELEMENTS_AT_ONCE = 1 << 24

Factors = tuple[Tensor, Tensor]
"""B [out, rank], already times its scale, and A [rank, in]."""


class StartWeights:
    """The trainable weights at the start of training, on disk.

    The distance is ``‖θ_t - θ_0‖₂`` over all trainable weights. Where weights are trained
    through LoRA, θ is the weight that the model computes with: W + sBA, so that full
    fine-tuning and LoRA are on one scale; ``‖s(BA - B₀A₀)‖`` is computed from the factors'
    Gram matrices and no such product is formed. Adapters of other kinds (DoRA, convolutions)
    are measured by their own parameters; `kind` says which it is.

    Args:
        folder: Where the start weights lie.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = Path(folder)

    def exist(self) -> bool:
        """Whether the start has been kept."""
        return (self._folder / "complete").exists()

    def save(self, model: Any) -> None:
        """Keep the trainable weights of a model as they are now.

        Args:
            model: The model, bare or with PEFT adapters, whole on this process.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        for old in [self._folder / "complete", *self._folder.glob("*.safetensors")]:
            old.unlink(missing_ok=True)
        for number, shard in enumerate(_shards(_trainable(model))):
            with atomic_path(self._folder / f"{number:05d}.safetensors") as temporary:
                save_file(shard, temporary)
        with atomic_path(self._folder / "complete") as temporary:
            temporary.write_text(kind_of(model) + "\n", encoding="utf-8")

    def load_into(self, model: Any) -> None:
        """Give a model the kept weights, in place and to the bit.

        Args:
            model: The model that they were kept of.
        """
        with ExitStack() as stack, torch.no_grad():
            start = self._open(stack)
            for name, weight in _trainable(model):
                weight.copy_(start[name].get_tensor(name))

    def remove(self) -> None:
        """Delete what was kept."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def distance(self, model: Any) -> float:
        """‖θ_t - θ_0‖₂ of a model.

        The start is read from disk as it is needed, a stretch of one parameter at a time.

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
            if set(start) != set(now):
                odd = sorted(set(start) ^ set(now))
                raise DataError.of(
                    saw=f"{len(odd)} trainable weights that only start or present have, such as "
                    f"{odd[0]}",
                    expected="the trainable weights of the start",
                    cure="name another folder with out=",
                )
            factored = _factored(model)
            of_factors = {name for names in factored.values() for name in names[:2]}
            squares = [
                _squared_change(weight, start[name], name)
                for name, weight in now.items()
                if name not in of_factors
            ]
            for name_b, name_a, scale in factored.values():
                one = (scale * now[name_b], now[name_a])
                other = tuple(start[name].get_tensor(name) for name in (name_b, name_a))
                squares.append(_squared_product_change(one, (scale * other[0], other[1])))
        return float(sum(squares) ** 0.5)

    def _open(self, stack: ExitStack) -> dict[str, Any]:
        """Which open file holds each weight."""
        files = [
            stack.enter_context(safe_open(path, framework="pt"))
            for path in sorted(self._folder.glob("*.safetensors"))
        ]
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
    return "effective weights" if _factored(model) else "adapter parameters"


def _trainable(model: Any) -> Iterator[tuple[str, Tensor]]:
    return ((name, each) for name, each in model.named_parameters() if each.requires_grad)


def _shards(weights: Iterator[tuple[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    shard: dict[str, Tensor] = {}
    for name, weight in weights:
        shard[name] = weight.detach().cpu().contiguous()
        if sum(each.nbytes for each in shard.values()) >= SHARD_BYTES:
            yield shard
            shard = {}
    if shard:
        yield shard


def _factored(model: Any) -> dict[str, tuple[str, str, float]]:
    """Names of B and A, and the scale, of every LoRA pair; none if one is not a plain one."""
    if not hasattr(model, "peft_config"):
        return {}
    from peft.tuners.lora import LoraLayer

    trainable = {name for name, _ in _trainable(model)}
    found = {}
    for place, module in model.named_modules():
        if not isinstance(module, LoraLayer):
            continue
        for adapter in module.active_adapters:
            names = [
                (f"{place}.lora_B.{adapter}.weight", f"{place}.lora_A.{adapter}.weight"),
                (f"{place}.lora_embedding_B.{adapter}", f"{place}.lora_embedding_A.{adapter}"),
            ]
            both = next((pair for pair in names if trainable.issuperset(pair)), None)
            if both is None:
                continue
            plain = all(model.get_parameter(name).ndim == 2 for name in both)  # noqa: PLR2004 - a matrix
            if not plain or module.lora_variant.get(adapter) is not None:
                return {}
            found[f"{place}.{adapter}"] = (*both, float(module.scaling[adapter]))
    return found


def _squared_change(weight: Tensor, start: Any, name: str) -> float:
    """‖w - w₀‖² of one parameter, a stretch at a time."""
    now, then = weight.detach().reshape(-1), start.get_tensor(name).reshape(-1)
    total = 0.0
    for begin in range(0, now.numel(), _ELEMENTS_AT_ONCE):
        stretch = slice(begin, begin + _ELEMENTS_AT_ONCE)
        apart = now[stretch].float() - then[stretch].to(now.device).float()
        total += float(torch.linalg.vector_norm(apart)) ** 2
    return total


def _squared_product_change(now: Factors, start: Factors) -> float:
    """‖BA - B₀A₀‖² = Σ (B̂ᵀB̂) ∘ (ÂÂᵀ) with B̂ = [B, -B₀] and Â = [A; A₀]."""
    left = torch.cat([now[0].detach().cpu().double(), -start[0].double()], dim=1)
    right = torch.cat([now[1].detach().cpu().double(), start[1].double()], dim=0)
    return max(0.0, float(((left.T @ left) * (right @ right.T)).sum()))
