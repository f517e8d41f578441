"""PEFT adapters in folders and on the Hub: their base, their weights, and putting them on."""

import json
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from prefstage.core.errors import MissingDependencyError, ModelError
from prefstage.core.weights import (
    check_weights,
    foreign_files,
    is_path,
    reason_of,
)

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
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(content, dict):
            return content
        fault = "no JSON object"
    except (ValueError, OSError) as error:
        fault = reason_of(error)
    raise ModelError.of(
        saw=f"{file} cannot be read ({fault})",
        expected="the configuration of a PEFT adapter",
        cure="copy or download it again",
    )


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
    while (config := adapter_config(name_or_path)) is not None:
        _check_base(name_or_path not in adapters, name_or_path, "itself, in the end")
        adapters.insert(0, name_or_path)
        name_or_path = _base_of(name_or_path, config)
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
            offloaded = any(weight.is_meta for weight in adapted.parameters())
            result = (
                None if offloaded else adapted.load_adapter(name_or_path, adapted.active_adapter)
            )
        except Exception as error:  # by what is wrong with it
            # peft names a weight of another shape only in the text of its error.
            reshaped = {
                saved_name(name): f"[{saved}] in the file, [{wanted}] on this model"
                for name, saved, wanted in _RESHAPED.findall(str(error))
            }
            check_weights(name_or_path, reshaped=reshaped, expected=_WANTED, cure=_CURE)
            raise
    if result is not None:
        missing = (key for key in result.missing_keys if not any(part in key for part in _SHARED))
        unexpected = (key for key in result.unexpected_keys if key != "prompt_embeddings")
        check_weights(
            name_or_path,
            missing=map(saved_name, missing),
            unexpected=map(saved_name, unexpected),
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
