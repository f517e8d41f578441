"""What model judges share: loading, fingerprints, batches of similar length."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from prefstage.core.errors import InputError, ModelError, PrefstageError
from prefstage.core.hashing import digest
from prefstage.core.weights import reason_of


@contextmanager
def loading_errors(path: str, *, wanted: str) -> Iterator[None]:
    """Turn a failure to load a checkpoint into one line that says what to do.

    Args:
        path: The folder or Hub id being loaded.
        wanted: What it should have been.

    Raises:
        ModelError: If the block raises what no error of ours is.
    """
    try:
        yield
    except PrefstageError:
        raise
    except Exception as error:  # what a foreign file makes transformers and torch raise is anything
        raise ModelError.of(
            saw=f"cannot load {path}: {reason_of(error)}",
            expected=wanted,
            cure="check the path, or that the Hub id exists and can be reached",
        ) from error


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
    import torch

    with_gpu = torch.cuda.is_available()
    chosen = ("cuda" if with_gpu else "cpu") if device == "auto" else device
    try:
        target = torch.device(chosen)
    except RuntimeError:
        raise _bad_device(device) from None
    if target.type == "cuda" and not with_gpu:
        raise _bad_device(device)
    device_map = "auto" if device == "auto" and with_gpu else {"": target}
    if dtype != "auto":
        return device_map, getattr(torch, dtype)
    return device_map, torch.float32 if target.type == "cpu" else "auto"


def _bad_device(device: str) -> InputError:
    return InputError.of(
        saw=f"device {device!r}",
        expected="a device of this machine, such as cpu, cuda or cuda:1",
        cure="leave device out to take the GPU if there is one",
    )


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


def batches_by_length(lengths: Sequence[int], *, batch_size: int) -> Iterator[list[int]]:
    """Group positions into batches of similar length, longest first.

    The longest first, so that a batch that does not fit into memory fails at the start.

    Args:
        lengths: Tokens of each sequence. [sequences].
        batch_size: Sequences a batch at most, >= 1.

    Yields:
        Positions into `lengths`; each position occurs once over all batches.
    """
    # Padding costs what tokens cost: neighbours of like length waste the least.
    order = sorted(range(len(lengths)), key=lambda position: (-lengths[position], position))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


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
    longest = max(len(encoding["input_ids"]) for encoding in encodings)

    def stack(rows: Sequence[Sequence[int]], fill: int) -> Tensor:
        filled = [[*row, *[fill] * (longest - len(row))] for row in rows]
        return torch.tensor(filled, dtype=torch.long, device=device)

    tensors = {
        "input_ids": stack([encoding["input_ids"] for encoding in encodings], pad_id),
        "attention_mask": stack([[1] * len(encoding["input_ids"]) for encoding in encodings], 0),
    }
    if "token_type_ids" in encodings[0]:
        types = [encoding["token_type_ids"] for encoding in encodings]
        tensors["token_type_ids"] = stack(types, 0)
    return tensors
