"""Weights, adapters and vocabularies: whole or refused by name, and what foreign files raise."""

import hashlib
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefstage.core.errors import (
    InputError,
    MissingDependencyError,
    ModelError,
    PrefstageError,
)
from prefstage.core.foreign import check_model_files, parse_json, read_bytes, read_json
from prefstage.core.secrets import TRUST_CURE

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
    if "instantiate the backend tokenizer" in text:
        return "no tokenizer files"
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def is_path(name: str) -> bool:
    """Whether a name can only be a path on this machine, and no id of the Hub."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name


def unreadable_file(folder: Path) -> tuple[Path, str] | None:
    """The first file of weights or of JSON in a folder that is cut off or damaged.

    Headers and tables of contents are read, not the weights.

    Args:
        folder: Of a model or an adapter; one that is not there has no such file.

    Returns:
        The file and why it cannot be read; None if all can be.
    """
    import torch
    from safetensors import safe_open

    kinds = ("*.safetensors", "*.bin", "*.json")
    for file in (file for kind in kinds for file in sorted(folder.glob(kind))):
        if file.name == "training_args.bin":  # a pickle of transformers', which nobody reads
            continue
        try:
            if file.suffix == ".safetensors":
                safe_open(file, framework="pt")
            elif file.suffix == ".bin":
                torch.load(file, map_location="meta", weights_only=True)
            else:
                content = parse_json(read_bytes(file))
                is_index = file.name.endswith(".index.json")
                shards = set(content["weight_map"].values()) if is_index else ()
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
        folder: Where the files lie, or a Hub id. A file of weights or of JSON in the folder that
            is cut off or damaged is named in place of the library's reason.
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
        if "custom code" in str(error):
            saw, cure = f"{folder} holds code of its own, which does not run unasked", TRUST_CURE
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
        hasher.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
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
        "missing": sorted(missing),
        "unexpected": sorted(unexpected),
        "of another shape": sorted(f"{name}: {text}" for name, text in (reshaped or {}).items()),
        "with NaN or inf": sorted(not_finite),
    }
    seen = [
        f"{len(names)} {fault} ({', '.join(names[:_SHOWN_NAMES])}"
        + (f" and {len(names) - _SHOWN_NAMES} more)" if len(names) > _SHOWN_NAMES else ")")
        for fault, names in faults.items()
        if names
    ]
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
            text = (
                tokenizer.convert_ids_to_tokens(int(token))
                if tokenizer is not None and token >= 0
                else None
            )
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


# --- PEFT adapters in folders and on the Hub: their base, their weights, and putting them on -----

CONFIG = "adapter_config.json"
START_MARK = "prefstage_start.json"  # beside a merged model that a training's adapter lies on
_WANTED = "a PEFT adapter that was trained on this model"
_CURE = "check the path and the adapter's base model"
_RESHAPED = re.compile(r"size mismatch for (\S+):.*?\[([\d, ]*)\].*?\[([\d, ]*)\]")
# Kept once and used by many layers, whose own entries no file holds.
_SHARED = ("vblora_vector_bank", "prompt_encoder", ".tinylora_v.", ".unilora_theta_d.")


def is_adapter(folder: str | Path) -> bool:
    """Whether a folder on this machine is an adapter's."""
    return (Path(folder) / CONFIG).is_file()


def adapter_config(name_or_path: str) -> Mapping[str, Any] | None:
    """The configuration of an adapter; None where no adapter is.

    Args:
        name_or_path: Folder or Hub id.

    Returns:
        The content of its ``adapter_config.json``.

    Raises:
        ModelError: If that file cannot be read.
    """
    file = _config_file(name_or_path)
    if file is None:
        return None
    content: dict[str, Any] = read_json(
        file,
        error=ModelError,
        expected="the configuration of a PEFT adapter",
        cure="copy or download it again",
    )
    return content


def adapters_of(name_or_path: str) -> tuple[str, list[str]]:
    """The whole model at the bottom of a name, and the adapters on it.

    Args:
        name_or_path: Folder or Hub id of a model, or of an adapter.

    Returns:
        The model's folder or Hub id; the adapters, the lowest first.

    Raises:
        ModelError: If an adapter's configuration cannot be read, or its base is not there.
    """
    adapters: list[str] = []
    check_model_files(Path(name_or_path))
    while (config := adapter_config(name_or_path)) is not None:
        _check_base(name_or_path not in adapters, name_or_path, "itself, in the end")
        adapters.insert(0, name_or_path)
        name_or_path = _base_of(name_or_path, config)
        check_model_files(Path(name_or_path))
    return name_or_path, adapters


def adapter_tensors(name_or_path: str) -> dict[str, Any]:
    """The weights in an adapter's file, on the CPU.

    Args:
        name_or_path: Folder or Hub id of the adapter.

    Returns:
        Tensors by the names that they have in the file.

    Raises:
        ModelError: If it cannot be read.
        MissingDependencyError: If peft is not installed.
    """
    with MissingDependencyError.instead_of(
        ImportError,
        saw=f"adapter {name_or_path}, and no package peft",
        expected="peft, which reads adapters",
        cure="pip install 'prefstage[train]'",
    ):
        from peft.utils import load_peft_weights
    ModelError.unless(
        adapter_config(name_or_path) is not None,
        saw=f"no {CONFIG} at {name_or_path!r}",
        expected="a folder or Hub id of a PEFT adapter",
        cure="check the name",
    )
    with _loading(name_or_path):
        return dict(load_peft_weights(name_or_path, device="cpu"))


def put_adapter(model: Any, name_or_path: str, *, merge: bool) -> Any:
    """Put an adapter on a model, every weight of it.

    Args:
        model: Of transformers.
        name_or_path: Folder or Hub id of the adapter.
        merge: Whether it is merged into the model's weights.

    Returns:
        A PeftModel; the model itself, changed, where it is merged.

    Raises:
        ModelError: If the adapter does not fit the model, or weights of it are missing,
            unexpected or of another shape.
    """
    from peft import PeftModel

    with _loading(name_or_path), without_alias_warning():
        warnings.filterwarnings("ignore", "Found missing adapter keys")  # refused below
        try:
            adapted = PeftModel.from_pretrained(model, name_or_path)
            # A second reading, since the first keeps to itself what it did not use.
            result = (
                None  # offloaded
                if any(weight.is_meta for weight in adapted.parameters())
                else adapted.load_adapter(name_or_path, adapted.active_adapter)
            )
        except Exception as error:  # by what is wrong with it
            # peft names a weight of another shape only in the text of its error.
            check_weights(
                name_or_path,
                reshaped={
                    saved_name(name): f"[{saved}] in the file, [{wanted}] on this model"
                    for name, saved, wanted in _RESHAPED.findall(str(error))
                },
                expected=_WANTED,
                cure=_CURE,
            )
            raise
    if result is not None:
        check_weights(
            name_or_path,
            missing=[
                saved_name(key)
                for key in result.missing_keys
                if not any(part in key for part in _SHARED)
            ],
            unexpected=[
                saved_name(key) for key in result.unexpected_keys if key != "prompt_embeddings"
            ],
            expected=_WANTED,
            cure=_CURE,
        )
    if not merge:
        return adapted
    with foreign_files(  # virtual tokens have no merging
        name_or_path,
        saw=f"adapter {name_or_path} cannot be merged",
        expected="an adapter inside the layers, such as LoRA",
        cure="merge it by its own tool, and name the merged model",
    ):
        return adapted.merge_and_unload()


@contextmanager
def without_alias_warning() -> Iterator[None]:
    """Keep quiet that peft reads a name which transformers has renamed: users cannot mend it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*", FutureWarning)
        yield


def saved_name(key: str) -> str:
    """The name of a weight without what peft puts around it: as in the bare model's file.

    Args:
        key: Of an adapter's file or of a PeftModel.

    Returns:
        Such as ``score.weight`` or ``model.layers.0.self_attn.q_proj.lora_A.weight``.
    """
    return re.sub(r"^base_model\.model\.|\.modules_to_save\.default|\.default", "", key)


def _config_file(name_or_path: str) -> Path | None:
    if Path(name_or_path).exists():
        return Path(name_or_path, CONFIG) if is_adapter(name_or_path) else None
    if is_path(name_or_path) or not name_or_path.strip():
        return None
    from transformers.utils.peft_utils import find_adapter_config_file

    try:
        file = find_adapter_config_file(name_or_path)
        return None if file is None else Path(file)
    except Exception:  # whatever the Hub says: the model itself is asked for next, and tells
        return None


def _base_of(adapter: str, config: Mapping[str, Any]) -> str:
    """Where an adapter's base lies: as it is named, from here or from the adapter's folder."""
    value = config.get("base_model_name_or_path")
    named = value if isinstance(value, str) else ""
    _check_base(named, adapter, "no base model")
    moved = Path(adapter).resolve().parent / Path(named).name  # with the run folder of both
    if not Path(named).exists():
        if Path(adapter, named).is_dir():
            return str(Path(adapter, named))
        if (moved / START_MARK).is_file():
            return str(moved)
        _check_base(not is_path(named), adapter, f"base model {named!r}, which is not there")
    return named


def _loading(name_or_path: str) -> AbstractContextManager[None]:
    return foreign_files(
        name_or_path,
        saw=f"cannot load adapter {name_or_path}",
        expected=_WANTED,
        cure=_CURE,
        whole="a whole file of an adapter's weights",
    )


def _check_base(holds: object, adapter: str, named: str) -> None:
    ModelError.unless(
        holds,
        saw=f"adapter {adapter} names {named}",
        expected="base_model_name_or_path, the model that the adapter was made for",
        cure=f"set it in {Path(adapter) / CONFIG} to the model's folder or Hub id",
    )
