"""The fingerprint of a judge's tokenizer."""

import json
from typing import Any

from prefstage.core.hashing import digest


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
