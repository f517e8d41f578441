"""Weights and vocabulary of a model: whole or refused by name, and what foreign files raise."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefstage.core.errors import InputError, ModelError, PrefstageError

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

    kinds = ("*.safetensors", "*.bin", "*.index.json")
    for file in (file for kind in kinds for file in sorted(folder.glob(kind))):
        try:
            if file.suffix == ".safetensors":
                safe_open(file, framework="pt")
            elif file.suffix == ".bin":
                torch.load(file, map_location="meta", weights_only=True)
            else:
                shards = set(json.loads(file.read_text(encoding="utf-8"))["weight_map"].values())
                lost = sorted(str(name) for name in shards if not (folder / str(name)).is_file())
                if lost:
                    return file, f"it names {', '.join(lost[:3])}, not there"
        except Exception as error:  # by the kind of damage; safetensors' derives from nothing else
            return file, reason_of(error)
    return None


@contextmanager
def foreign_files(
    folder: str | Path,
    *,
    saw: str,
    expected: str,
    cure: str,
    whole: str = "a whole file of weights",
) -> Iterator[None]:
    """Turn whatever a library raises over files of others into one error that names the cause.

    Args:
        folder: Where the files lie, or a Hub id. A file of weights in the folder that is cut off
            or damaged is named in place of the library's reason.
        saw: What failed; the reason is added.
        expected: What the files should have been.
        cure: What to do.
        whole: What a damaged file should have been.

    Yields:
        Nothing.

    Raises:
        ModelError: If the block raises what no error of ours is.
    """
    try:
        yield
    except PrefstageError:
        raise
    except Exception as error:  # what a foreign file makes transformers and torch raise is anything
        saw, broken = f"{saw}: {reason_of(error)}", unreadable_file(Path(folder))
        if broken is not None:
            saw, expected = f"{broken[0]} cannot be read ({broken[1]})", whole
            cure = "copy or download it again"
        raise ModelError.of(saw=saw, expected=expected, cure=cure) from error


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
    faults = {
        "missing": missing,
        "unexpected": unexpected,
        "of another shape": (f"{name}: {shapes}" for name, shapes in (reshaped or {}).items()),
        "with NaN or inf": not_finite,
    }
    seen = []
    for fault, names in ((fault, sorted(names)) for fault, names in faults.items()):
        more = f" and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else ""
        if names:
            seen.append(f"{len(names)} {fault} ({', '.join(names[:_SHOWN_NAMES])}{more})")
    ModelError.unless(
        not seen, saw=f"weights of {source}: {', '.join(seen)}", expected=expected, cure=cure
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
    for token in ids:
        if not 0 <= token < rows:
            known = tokenizer is not None and token >= 0
            text = tokenizer.convert_ids_to_tokens(int(token)) if known else None
            raise InputError.of(
                saw=f"{where}: token {token}" + (f" ({text!r})" if text else ""),
                expected=f"ids from 0 to {rows - 1}, the model's vocabulary",
                cure="use the model's own tokenizer, or give the model embeddings for the new "
                "tokens (model.resize_token_embeddings)",
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
    return sorted(set(range(rows)) - set(tokenizer.get_vocab().values()))


def embedding_rows(model: Any) -> int:
    """How many token ids a model has embeddings for.

    Args:
        model: Of transformers.

    Returns:
        The number.
    """
    embeddings = model.get_input_embeddings()
    return int(getattr(embeddings, "num_embeddings", None) or len(embeddings.weight))
