"""What a run that goes on must agree on with the checkpoint it goes on from."""

import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefstage.core.errors import CheckpointError

if TYPE_CHECKING:
    import torch
    from transformers import TrainingArguments

# Arguments that steer the weights. What only says when to log, evaluate or save may change.
_STEERING = (
    "learning_rate",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "warmup_steps",
    "optim",
    "optim_args",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
    "label_smoothing_factor",
    "neftune_noise_alpha",
    "bf16",
    "fp16",
    "seed",
    "data_seed",
    "train_sampling_strategy",
)
_LENGTH = ("num_train_epochs", "max_steps")
_CONSTANT_SCHEDULES = ("constant", "constant_with_warmup")

# Of a model's and an adapter's configuration: names, versions, and what only generation uses.
_IRRELEVANT = {
    "_name_or_path",
    "architectures",
    "transformers_version",
    "use_cache",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "base_model_name_or_path",
    "inference_mode",
    "peft_version",
    "revision",
}

_BATCH = "per_device_train_batch_size · gradient_accumulation_steps · processes"
_PACKAGES = ("prefstage", "torch", "transformers", "accelerate", "peft")

_SHOWN_DIFFERENCES = 3
_SHOWN_LETTERS = 60


def run_settings(args: "TrainingArguments", model: "torch.nn.Module") -> dict[str, Any]:
    """Collect the settings that the weights of a run depend on.

    The length of a run counts only where the learning rate depends on it, so that a run at
    a constant rate may be prolonged. How a step's items are split over processes and
    accumulation does not count, only how many there are.

    Args:
        args: The training arguments.
        model: The model as training begins, bare or with PEFT adapters.

    Returns:
        JSON-serialisable values by name; ``model`` and ``adapter`` hold configurations. A
        subclass may add ``weights``, ``data``, ``encoding``, and ``loss`` (settings by name).
    """
    given = args.to_dict()
    names = [*_STEERING]
    if given["lr_scheduler_type"] not in _CONSTANT_SCHEDULES:
        names += _LENGTH
    settings = {name: _plain(given[name]) for name in names if name in given}
    items = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    settings["items_per_step"] = items
    config: Any = getattr(model, "config", None)
    settings["model"] = {
        **(_configuration(config.to_dict()) if hasattr(config, "to_dict") else {}),
        "class": type(_bare(model)).__name__,
        "dtype": str(next(model.parameters()).dtype),
    }
    adapters = getattr(model, "peft_config", {})
    settings["adapter"] = {
        name: _configuration(each.to_dict()) for name, each in sorted(adapters.items())
    }
    return settings


def check_same_run(saved: Mapping[str, Any], present: Mapping[str, Any], checkpoint: Path) -> None:
    """Check that a checkpoint belongs to the run that would go on from it.

    Args:
        saved: The settings in the checkpoint's manifest.
        present: Those of the present run.
        checkpoint: Where it lies, for the message.

    Raises:
        CheckpointError: If they differ; the line names what differs, with both values.
    """
    before, now = _flat(_told_apart(saved)), _flat(_told_apart(_plain(present)))
    names = [
        name
        for name in sorted({*before, *now}, key=lambda each: (_is_hash(each), each))
        if before.get(name) != now.get(name)
    ]
    if not names:
        return
    for whole in ("loss", "adapter"):  # another one altogether: its settings say no more
        if whole in names:
            names = [name for name in names if not name.startswith(f"{whole}.")]
    told = [
        f"{name} was {_shown(before, name)} and is now {_shown(now, name)}"
        for name in names[:_SHOWN_DIFFERENCES]
    ]
    more = len(names) - len(told)
    what, cure = _kind_of(names, before)
    raise CheckpointError.of(
        saw=f"{checkpoint} is of another {what}: {', '.join(told)}"
        + (f", and {more} more" if more > 0 else ""),
        expected="the settings that the run began with",
        cure=f"{cure}, or begin a new run in another output_dir with this folder as the model",
    )


def package_versions() -> dict[str, str | None]:
    """Version of each package that a run's numbers may depend on; None if not installed."""
    return {"python": platform.python_version()} | {name: _version(name) for name in _PACKAGES}


def _kind_of(names: list[str], before: Mapping[str, Any]) -> tuple[str, str]:
    """What kind of thing differs, most telling first, and the cure."""
    kinds = {name.split(".")[0] for name in names}
    if kinds & {"model", "weights"}:
        return "model", "give the model that the run began with"
    if "adapter" in kinds:
        return "adapter", "give the peft_config that the run began with"
    if "encoding" in kinds:
        return "encoding", "give the tokenizer, template and limits that the run began with"
    if "data" in kinds:
        return "data set", "give the data that the run began with"
    first = names[0]
    what = _BATCH if first == "items_per_step" else first
    return "configuration", f"set {what} back to {_shown(before, first)}"


def _is_hash(name: str) -> bool:
    """Whether a setting is a hash, which says less than any other."""
    return name == "weights" or name.endswith("fingerprint")


def _bare(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "peft_config") else model


def _configuration(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _plain(each) for name, each in values.items() if name not in _IRRELEVANT}


def _plain(value: Any) -> Any:
    """JSON's own types: a set sorted, a tuple as a list, anything else as its text."""
    if isinstance(value, Mapping):
        return {str(getattr(k, "value", k)): _plain(inner) for k, inner in value.items()}
    if isinstance(value, set | frozenset):
        return sorted((_plain(inner) for inner in value), key=str)
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    return str(getattr(value, "value", value))


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted names."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            found |= _flat(value, f"{prefix}{name}.")
        elif not isinstance(value, Mapping):
            found[f"{prefix}{name}"] = value
    return found


def _told_apart(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings, with the names of adapters and losses as settings of their own."""
    found = dict(settings)
    for kind in ("adapter", "loss"):
        each = settings.get(kind) or {}
        found[kind] = " + ".join(each) or None
        found |= {f"{kind}.{name}": inner for name, inner in each.items()}
    return found


def _shown(values: Mapping[str, Any], name: str) -> str:
    if values.get(name) is None:
        return "none" if name in values else "absent"
    text = repr(values[name])
    return text if len(text) <= _SHOWN_LETTERS else f"{text[:_SHOWN_LETTERS]}…"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
