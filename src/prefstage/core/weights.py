"""Weights and vocabulary of a model: whole or refused by name, and what foreign files raise."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefstage.core.errors import InputError, ModelError

if TYPE_CHECKING:
    import torch

_LONGEST = 240


def reason_of(error: BaseException) -> str:
    """The first line of an error that says something, or its kind.

    Args:
        error: Of any library.

    Returns:
        One line of at most 240 characters.
    """
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    text = " ".join(lines[: 2 if lines[0].endswith(":") else 1])
    text = text.removeprefix("Error while deserializing header: ")
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def is_path(name: str) -> bool:
    """Whether a name can only be a path on this machine, and no id of the Hub."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name


def unreadable_file(folder: Path) -> tuple[Path, str] | None:
    """The first file of weights in a folder that is cut off or damaged.

    Headers and tables of contents are read, not the weights.

    Args:
        folder: Of a model or an adapter; one that is not there has no such file.

    Returns:
        The file and why it cannot be read; None if all can be.
    """
    import torch
    from safetensors import safe_open

    for file in sorted(folder.glob("*.safetensors")) if folder.is_dir() else ():
        try:
            with safe_open(file, framework="pt"):
                pass
        except Exception as error:  # safetensors' own, which derives from nothing else
            return file, reason_of(error)
    for file in sorted(folder.glob("*.bin")) if folder.is_dir() else ():
        try:
            torch.load(file, map_location="meta", weights_only=True)
        except Exception as error:  # by the kind of damage
            return file, reason_of(error)
    for file in sorted(folder.glob("*.index.json")) if folder.is_dir() else ():
        try:
            shards = set(json.loads(file.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            return file, reason_of(error)
        lost = sorted(str(name) for name in shards if not (folder / str(name)).is_file())
        if lost:
            return file, f"it names {', '.join(lost[:3])}, not there"
    return None


_SHOWN_NAMES = 3


def weights_fingerprint(model: "torch.nn.Module") -> str:
    """Hash a loaded model's class and every weight, in the precision it runs in.

    Args:
        model: Any torch module, on any device.

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


def check_weights(
    source: str,
    *,
    missing: Iterable[str] = (),
    unexpected: Iterable[str] = (),
    reshaped: Mapping[str, str] | None = None,
    not_finite: Iterable[str] = (),
    expected: str,
    cure: str,
) -> None:
    """Check that a checkpoint's tensors are those of its model, and numbers.

    Args:
        source: Folder or Hub id, for the message.
        missing: Names that the model has and the checkpoint lacks.
        unexpected: Names that the checkpoint has and the model lacks.
        reshaped: Both shapes, in words, by name, where they differ.
        not_finite: Names of tensors that hold NaN or an infinity.
        expected: What the weights should have been.
        cure: What to do.

    Raises:
        ModelError: If any name is given: one line with the first few of every fault.
    """
    shapes = [f"{name}: {shapes}" for name, shapes in sorted((reshaped or {}).items())]
    faults = {
        "missing": sorted(missing),
        "unexpected": sorted(unexpected),
        "of another shape": shapes,
        "with NaN or inf": sorted(not_finite),
    }
    seen = [f"{len(names)} {fault} ({_some(names)})" for fault, names in faults.items() if names]
    if seen:
        raise ModelError.of(
            saw=f"weights of {source}: {', '.join(seen)}", expected=expected, cure=cure
        )


def not_finite_names(tensors: Mapping[str, "torch.Tensor"]) -> list[str]:
    """Names of the tensors that hold NaN or an infinity.

    One pass over each tensor, on its own device; tensors that are shared are read once,
    and those that are not in memory (offloaded to disk) are left out.

    Args:
        tensors: By name, such as a `state_dict`.

    Returns:
        The names.
    """
    import torch

    # 8-bit floats are only a quantised layer's storage, and torch has no isfinite for them.
    numbers = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
    verdicts: dict[tuple[object, ...], bool] = {}
    names = []
    for name, tensor in tensors.items():
        if tensor.dtype not in numbers or tensor.device.type == "meta" or not tensor.numel():
            continue
        # Tied weights stand under several names and need to be read only once.
        key = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride())
        if key not in verdicts:
            verdicts[key] = bool(torch.isfinite(tensor.detach()).all())
        if not verdicts[key]:
            names.append(name)
    return names


def _some(names: list[str]) -> str:
    more = len(names) - _SHOWN_NAMES
    return ", ".join(names[:_SHOWN_NAMES]) + (f" and {more} more" if more > 0 else "")


def check_token_ids(ids: Iterable[int], rows: int, *, where: str, tokenizer: Any = None) -> None:
    """Check that a model has an embedding for every token of a text.

    A tokenizer may know more tokens than the model, as long as no text uses them.

    Args:
        ids: Of one text.
        rows: Embeddings of the model.
        where: Which text, for the message.
        tokenizer: That made the ids, to name the token.

    Raises:
        InputError: If an id is negative or beyond the embeddings.
    """
    unknown = next((token for token in ids if not 0 <= token < rows), None)
    if unknown is None:
        return
    text = None
    if tokenizer is not None and unknown >= 0:
        text = tokenizer.convert_ids_to_tokens(int(unknown))
    raise InputError.of(
        saw=f"{where}: token {unknown}" + (f" ({text!r})" if text else ""),
        expected=f"ids from 0 to {rows - 1}, the model's vocabulary",
        cure="use the model's own tokenizer, or give the model embeddings for the new tokens "
        "(model.resize_token_embeddings)",
    )


def ids_without_token(tokenizer: Any, rows: int) -> list[int]:
    """Ids of a model's embeddings that no token of its tokenizer has.

    Embeddings are often padded to a round number; a text never holds such an id.

    Args:
        tokenizer: Of transformers.
        rows: Embeddings of the model.

    Returns:
        The ids, ascending.
    """
    known = set(tokenizer.get_vocab().values())
    return [token for token in range(rows) if token not in known]


def embedding_rows(model: Any) -> int:
    """How many token ids a model has embeddings for.

    Args:
        model: Of transformers.

    Returns:
        The number.
    """
    embeddings = model.get_input_embeddings()
    return int(getattr(embeddings, "num_embeddings", None) or len(embeddings.weight))
