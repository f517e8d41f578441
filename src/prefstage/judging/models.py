"""What judges with a model of their own share: loading, fingerprints, batches of like length."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from prefstage.core import (
    Config,
    InputError,
    check_token_ids,
    digest,
    embedding_rows,
    weights_fingerprint,
)
from prefstage.judging.base import Judge


class ModelOptions(Config):
    """Where a judge's model runs."""

    device: str = Field(
        default="auto", description="auto (all GPUs, or the CPU), cpu, cuda:1, mps."
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="auto: float32 on a CPU, the checkpoint's own elsewhere."
    )


class ModelJudge(Judge):
    """A judge that reads token ids with a classifier of one logit.

    Args:
        model: The classifier, as of transformers.
        tokenizer: Its tokenizer.
        name: Short name for people.
        reading: What judgments depend on besides weights and tokenizer; JSON-serialisable.
    """

    def __init__(self, model: Any, tokenizer: Any, name: str, reading: Mapping[str, Any]) -> None:
        self._model, self._tokenizer, self._reading = model.eval(), tokenizer, reading
        self.name = name
        self._counts: Counter[str] = Counter(calls=0, truncated=0)

    @cached_property
    def fingerprint(self) -> str:  # type: ignore[override]  # computed when first read
        """Hash of weights, precision, tokenizer, and how texts are shown to the model."""
        weights, tokens = weights_fingerprint(self._model), tokenizer_fingerprint(self._tokenizer)
        return digest({"weights": weights, "tokenizer": tokens, **self._reading})

    def _logits(
        self, rows: Sequence[Mapping[str, Sequence[int]]], batch_size: int
    ) -> Iterator[tuple[list[int], list[float]]]:
        """The logits of rows of token ids, with the positions of each batch."""
        known = embedding_rows(self._model)
        for row in rows:
            check_token_ids(
                row["input_ids"], known, where=f"judge {self.name}", tokenizer=self._tokenizer
            )
        pad_id = self._model.config.get_text_config().pad_token_id
        # Without a pad token the model itself refuses batches: it could not find the end.
        size = batch_size if pad_id is not None else 1
        # Padding costs what tokens cost: neighbours of like length waste the least. The longest
        # first, so that a batch that does not fit into memory fails at the start.
        order = sorted(range(len(rows)), key=lambda row: (-len(rows[row]["input_ids"]), row))
        for batch in (order[start : start + size] for start in range(0, len(order), size)):
            inputs = padded([rows[i] for i in batch], pad_id=pad_id or 0, device=self._model.device)
            with torch.inference_mode():
                logits = self._model(**inputs).logits[:, 0]
            self._counts["calls"] += len(batch)
            yield batch, logits.float().tolist()


def loading_settings(device: str, dtype: str) -> tuple[Any, Any]:
    """Where a judge runs and in which precision, as `from_pretrained` takes them.

    Args:
        device: A torch device, or "auto" for all GPUs if there is one (a model that does
            not fit on one is spread over them).
        dtype: A torch dtype's name, or "auto": float32 on a CPU, where half precision is
            slow, and the checkpoint's own elsewhere.

    Returns:
        (device_map, torch.dtype or "auto").

    Raises:
        InputError: If torch knows no such device, or it is not there.
    """
    with_gpu = torch.cuda.is_available()
    chosen = ("cuda" if with_gpu else "cpu") if device == "auto" else device
    target: torch.device | None = None
    with suppress(RuntimeError):
        target = torch.device(chosen)
    if target is None or (target.type == "cuda" and not with_gpu):
        raise InputError.of(
            saw=f"device {device!r}",
            expected="a device of this machine, such as cpu, cuda or cuda:1",
            cure="leave device out to take the GPU if there is one",
        )
    device_map = "auto" if device == "auto" and with_gpu else {"": target}
    if dtype != "auto":
        return device_map, getattr(torch, dtype)
    return device_map, torch.float32 if target.type == "cpu" else "auto"


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


def padded(
    encodings: Sequence[Mapping[str, Sequence[int]]], *, pad_id: int, device: Any
) -> dict[str, Tensor]:
    """Stack encodings into tensors, padded on the right to the longest of them.

    Args:
        encodings: Each has `input_ids` and may have `token_type_ids`. [batch].
        pad_id: Token id of the padding.
        device: Where the tensors shall be.

    Returns:
        `input_ids`, `attention_mask` (1 on real tokens), and `token_type_ids` if the
        encodings have them. [batch, longest], int64.
    """
    rows = [{**e, "attention_mask": [1] * len(e["input_ids"])} for e in encodings]
    fill = {"input_ids": pad_id, "attention_mask": 0, "token_type_ids": 0}
    return {
        name: pad_sequence(
            [torch.tensor(row[name]) for row in rows], batch_first=True, padding_value=fill[name]
        ).to(device)
        for name in rows[0]
    }
