"""Fingerprints of models: equal weights and equal tokenizers give equal hashes."""

import hashlib
import json
from typing import Any

from prefstage.core.hashing import digest


def model_fingerprint(model: Any) -> str:
    """Hash a loaded model's architecture and every weight, in the precision it runs in.

    Args:
        model: A transformers model on any device.

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


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Hash a tokenizer: its vocabulary, merges, special tokens and chat template.

    Args:
        tokenizer: A transformers tokenizer.

    Returns:
        16 hex digits.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = tokenizer.get_vocab() if backend is None else json.loads(backend.to_str())
    for state in ("padding", "truncation"):  # left there by the last call, no part of the rules
        rules.pop(state, None)
    return digest({"rules": rules, "chat_template": tokenizer.chat_template})
