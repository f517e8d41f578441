"""What log-probs depend on, as hashes: the weights and the tokens."""

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from prefstage.core.hashing import digest
from prefstage.scoring.model_parts import ModelParts

_IRRELEVANT = {
    "_name_or_path",
    "architectures",
    "attention_dropout",
    "dtype",  # the weights' own is hashed with them
    "transformers_version",
    "use_cache",
}
_ELEMENTS_AT_ONCE = 1 << 26


def model_fingerprint(model: Any, *, with_adapter: bool = True) -> str:
    """Hash of everything in a model that its log-probs depend on.

    The configuration (without names and versions) and every weight, with its dtype. A
    model with adapters switched off has the fingerprint of the bare model, so that both
    share one reference.

    Args:
        model: A causal LM, bare or with PEFT adapters.
        with_adapter: Whether the adapters are on.

    Returns:
        32 hex digits.
    """
    bare = ModelParts.of(model).model
    adapters = getattr(model, "peft_config", {})
    used = {
        name: config.to_dict()
        for name, config in adapters.items()
        if with_adapter and name in model.active_adapters
    }
    config = {k: v for k, v in bare.config.to_dict().items() if k not in _IRRELEVANT}
    hasher = hashlib.sha256()
    for name, tensor in _weights(bare, tuple(adapters), with_adapter=with_adapter):
        hasher.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        for part in torch.split(tensor.detach().reshape(-1), _ELEMENTS_AT_ONCE):
            hasher.update(part.cpu().contiguous().view(torch.uint8).numpy().data)
    parts = [str(config), str(sorted(used.items())), hasher.hexdigest()]
    return digest(parts, length=32)


def response_key(prompt_ids: tuple[int, ...], response_ids: tuple[int, ...]) -> str:
    """Hash of a prompt and a response as tokens: 32 hex digits."""
    return digest([prompt_ids, response_ids], length=32)


def _weights(
    bare: Any, adapters: tuple[str, ...], *, with_adapter: bool
) -> Iterator[tuple[str, Tensor]]:
    """Weights by the names that they have in the bare model, adapters by their own."""
    for name, tensor in sorted(bare.state_dict().items()):
        pieces = name.split(".")
        if any(adapter in pieces for adapter in adapters):
            if with_adapter:
                yield name, tensor
        else:
            yield ".".join(piece for piece in pieces if piece != "base_layer"), tensor
