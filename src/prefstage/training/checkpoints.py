"""Checkpoints that are whole or absent, and of which run they are.

A checkpoint is written into ``_saving/`` of the run's folder, every file is flushed to disk
and listed with its size and hash, and only then does one rename give it its name
``checkpoint-STEP``. What bears that name is therefore complete; what a kill left behind lies
in ``_saving/``, which uploads to the Hub leave out.
"""

import json
import logging
import platform
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from prefstage.core import (
    CheckpointError,
    PrefstageError,
    digest,
    fault_in,
    installed_versions,
    list_files,
    put_in_place,
    read_json,
    reason_of,
    write_json,
)

MANIFEST = "prefstage_checkpoint.json"
STAGING = "_saving"

_NAME = re.compile(r"checkpoint-(\d+)")

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

# What a difference is a difference of, most telling first: the kinds of names, and the cure.
_KINDS = {
    "model": ({"model", "weights"}, "give the model that the run began with"),
    "adapter": ({"adapter"}, "give the peft_config that the run began with"),
    "encoding": ({"encoding"}, "give the tokenizer, template and limits that the run began with"),
    "data set": ({"data"}, "give the data that the run began with"),
}
_BATCH = "per_device_train_batch_size · gradient_accumulation_steps · processes"
_PACKAGES = ("prefstage", "torch", "transformers", "accelerate", "peft")

_SHOWN_DIFFERENCES = 3
_SHOWN_LETTERS = 60

_log = logging.getLogger(__name__)


# --- Names ---------------------------------------------------------------------------------------


def step_of(checkpoint: Path) -> int:
    """Optimiser step of a checkpoint by its name; -1 if it has another name."""
    match = _NAME.fullmatch(checkpoint.name)
    return int(match[1]) if match else -1


def checkpoints_in(folder: Path, *, whole: bool = False) -> list[Path]:
    """List the checkpoints of a run.

    Args:
        folder: The run's output folder; a missing one holds none.
        whole: Only those that have a manifest: half-written ones and other trainers' have not.

    Returns:
        Folders named ``checkpoint-STEP``, by step.
    """
    return sorted(
        [
            child
            for child in folder.glob("checkpoint-*")
            if child.is_dir()
            and step_of(child) >= 0
            and (not whole or (child / MANIFEST).is_file())
        ],
        key=step_of,
    )


def newest_whole(folder: Path) -> Path | None:
    """The checkpoint to go on from: that of the latest step that has a manifest.

    Args:
        folder: The run's output folder.

    Returns:
        The checkpoint, its files not yet verified; None if there is none.
    """
    return next(reversed(checkpoints_in(folder, whole=True)), None)


# --- Writing, verifying, deleting ----------------------------------------------------------------


def finish_checkpoint(
    staged: Path,
    *,
    settings: Mapping[str, Any],
    processes: int = 1,
    versions: Mapping[str, str | None] | None = None,
) -> Path:
    """Turn a staged folder into a checkpoint: flush, list, rename.

    One process calls this, after every process has written its files. A checkpoint of the
    same step is replaced; at no moment is there neither the old one nor the new one.

    Args:
        staged: Its files, in the folder `STAGING` of the run's output folder.
        settings: What a run that goes on from here must agree on, JSON-serialisable.
        processes: How many processes wrote it.
        versions: Version of each package that matters, by name.

    Returns:
        The checkpoint.
    """
    record = {
        "step": step_of(staged),
        "written": datetime.now(UTC).isoformat(timespec="microseconds"),
        "processes": processes,
        "settings": json.loads(json.dumps(settings)),
        "versions": dict(versions or {}),
        "files": list_files(staged),
    }
    write_json(staged / MANIFEST, record | {"key": digest(record)})
    put_in_place(staged, final := staged.parents[1] / staged.name)
    discard(staged)
    return final


def recover(folder: Path) -> None:
    """Clear what a kill in the middle of saving or deleting left behind.

    A staged checkpoint that is whole but not yet renamed gets its name, unless that name is
    taken; everything else in staging is deleted.

    Args:
        folder: The run's output folder.
    """
    staging = folder / STAGING
    for staged in sorted(child for child in staging.glob("*") if step_of(child) >= 0):
        final = folder / staged.name
        with suppress(CheckpointError):
            verify_checkpoint(staged)
            if not final.exists():
                put_in_place(staged, final)
                _log.info("%s was whole but not yet renamed: kept", final)
                continue
        _log.warning("%s: half-written when the run was killed: deleted", staged)
    shutil.rmtree(staging, ignore_errors=True)


def verify_checkpoint(checkpoint: Path) -> dict[str, Any]:
    """Check every file of a checkpoint against its manifest.

    Args:
        checkpoint: A folder written by `finish_checkpoint`.

    Returns:
        The manifest: step, settings, processes, versions, files.

    Raises:
        CheckpointError: If the folder or its manifest is missing, or a file is missing, of
            another size, or of another content.
    """
    record = _read_manifest(checkpoint)
    fault = fault_in(checkpoint, record["files"])
    if fault is not None:
        raise _corrupt(checkpoint, fault)
    return record


# Its own key comes first: a manifest that has changed says nothing about other files.
def _read_manifest(checkpoint: Path) -> dict[str, Any]:
    CheckpointError.unless(
        checkpoint.is_dir(),
        saw=f"no checkpoint {checkpoint}",
        expected="a folder named checkpoint-STEP",
        cure="check the path, or use resume_from_checkpoint=True for the newest",
    )
    path = checkpoint / MANIFEST
    CheckpointError.unless(
        path.is_file(),
        saw=f"{checkpoint} has no {MANIFEST}: it was written by another trainer, or in part",
        expected="a checkpoint of PreferenceTrainer",
        cure="go on from another checkpoint, or start a new run with this folder as the model",
    )
    try:
        record: dict[str, Any] = read_json(path)
        intact = digest({k: v for k, v in record.items() if k != "key"}) == record["key"]
    except (ValueError, KeyError, AttributeError):
        intact = False
    if not intact:
        raise _corrupt(checkpoint, f"{MANIFEST} has changed since it was written")
    return record


@contextmanager
def reading_checkpoint(checkpoint: Path) -> Iterator[None]:
    """Turn whatever reading a checkpoint raises into one error, which names it.

    Args:
        checkpoint: Its folder: of others perhaps, and then anything may stand in its files.

    Yields:
        Nothing.

    Raises:
        CheckpointError: If the block raises what neither an error of ours is nor one of memory.
    """
    import torch

    try:
        yield
    except (PrefstageError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # by what stands there instead
        raise _corrupt(checkpoint, f"it cannot be read ({reason_of(error)})") from error


def rotate_checkpoints(folder: Path, *, limit: int | None, keep: Iterable[Path] = ()) -> list[Path]:
    """Delete the oldest checkpoints beyond a limit; call it when the newest one is whole.

    Checkpoints of other trainers are neither counted nor deleted.

    Args:
        folder: The run's output folder.
        limit: Checkpoints to leave, >= 1; None or 0 deletes nothing.
        keep: Never deleted: the one just written, and the best one. They count.

    Returns:
        The deleted checkpoints.
    """
    if not limit or limit < 0:
        return []
    # By when they were written, not by step: a run begun anew in the same folder counts from 0.
    present = sorted(checkpoints_in(folder, whole=True), key=_written)
    kept, staging = {checkpoint.resolve() for checkpoint in keep}, folder / STAGING
    old = [checkpoint for checkpoint in present if checkpoint.resolve() not in kept]
    deleted = old[: max(0, len(present) - limit)]
    for checkpoint in deleted:
        # Renamed first, so that a kill in the middle leaves no part of it under its name.
        staging.mkdir(exist_ok=True)
        removed = staging / f"removed-{checkpoint.name}"
        shutil.rmtree(removed, ignore_errors=True)
        checkpoint.rename(removed)
        discard(removed)
    return deleted


def discard(path: Path) -> None:
    """Delete a folder in staging: what cannot be finished, or has gone elsewhere.

    Args:
        path: The folder; it may be missing.
    """
    shutil.rmtree(path, ignore_errors=True)
    # An empty staging folder would look like a saving that was cut short.
    if path.parent.is_dir() and not any(path.parent.iterdir()):
        path.parent.rmdir()


# When a checkpoint was written; one whose manifest is damaged counts as older than all.
def _written(checkpoint: Path) -> tuple[str, int]:
    try:
        return str(_read_manifest(checkpoint)["written"]), step_of(checkpoint)
    except CheckpointError:
        return "", step_of(checkpoint)


def _corrupt(checkpoint: Path, what: str) -> CheckpointError:
    others = [c.name for c in checkpoints_in(checkpoint.parent, whole=True) if c != checkpoint]
    on = f"go on from {others[-1]}" if others else "start again, as no other checkpoint is left"
    return CheckpointError.of(
        saw=f"{checkpoint}: {what}",
        expected="a checkpoint as it was written",
        cure=f"delete the folder and {on}",
    )


# --- Of which run --------------------------------------------------------------------------------


def run_settings(args: Any, model: Any) -> dict[str, Any]:
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
    values = args.to_dict()
    length = () if values["lr_scheduler_type"] in _CONSTANT_SCHEDULES else _LENGTH
    adapters: Mapping[str, Any] = getattr(model, "peft_config", {})
    bare, config = model.get_base_model() if adapters else model, getattr(model, "config", None)

    def configuration(config: Any) -> dict[str, Any]:
        # A module that is no transformers model may have a configuration of its own, or none.
        return {
            name: value
            for name, value in getattr(config, "to_dict", dict)().items()
            if name not in _IRRELEVANT
        }

    return _plain(
        {
            **{name: values[name] for name in (*_STEERING, *length) if name in values},
            "items_per_step": args.train_batch_size
            * args.gradient_accumulation_steps
            * args.world_size,
            "model": {
                **configuration(config),
                "class": type(bare).__name__,
                "dtype": str(next(model.parameters()).dtype),
            },
            "adapter": {name: configuration(adapters[name]) for name in sorted(adapters)},
        }
    )


def check_same_run(saved: Mapping[str, Any], present: Mapping[str, Any], checkpoint: Path) -> None:
    """Check that a checkpoint belongs to the run that would go on from it.

    Args:
        saved: The settings in the checkpoint's manifest.
        present: Those of the present run.
        checkpoint: Where it lies, for the message.

    Raises:
        CheckpointError: If they differ; the line names what differs, with both values.
    """
    before, now = _dotted(saved), _dotted(_plain(present))
    for flat, settings in ((before, saved), (now, present)):  # names are settings themselves
        flat |= {kind: " + ".join(settings.get(kind) or {}) or None for kind in ("adapter", "loss")}
    # Hashes last, as they say less than any other difference.
    names = [
        name
        for name in sorted(
            {*before, *now},
            key=lambda name: (name == "weights" or name.endswith("fingerprint"), name),
        )
        if before.get(name) != now.get(name)
    ]
    if not names:
        return
    for whole in ("loss", "adapter"):  # another one altogether: its settings say no more
        if whole in names:
            names = [name for name in names if not name.startswith(f"{whole}.")]
    shown = [
        f"{name} was {_shown(before, name)} and is now {_shown(now, name)}"
        for name in names[:_SHOWN_DIFFERENCES]
    ]
    more, roots = len(names) - len(shown), {name.split(".")[0] for name in names}
    setting = _BATCH if names[0] == "items_per_step" else names[0]
    what, cure = next(
        ((kind, cure) for kind, (members, cure) in _KINDS.items() if roots & members),
        ("configuration", f"set {setting} back to {_shown(before, names[0])}"),
    )
    raise CheckpointError.of(
        saw=f"{checkpoint} is of another {what}: {', '.join(shown)}"
        + (f", and {more} more" if more > 0 else ""),
        expected="the settings that the run began with",
        cure=f"{cure}, or begin a new run in another output_dir with this folder as the model",
    )


def package_versions() -> dict[str, str | None]:
    """Version of each package that a run's numbers may depend on; None if not installed."""
    return {"python": platform.python_version(), **installed_versions(_PACKAGES)}


# Settings are compared with a manifest's, which are what JSON makes of them; the order of a set
# must not tell two runs apart.
def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    def other(value: Any) -> Any:
        is_set = isinstance(value, set | frozenset)
        return sorted(value, key=str) if is_set else str(getattr(value, "value", value))

    return cast("dict[str, Any]", json.loads(json.dumps(settings, default=other)))


# By dotted names, so that an error can name the very setting that differs.
def _dotted(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = dict[str, Any]()
    for name, value in settings.items():
        key = f"{prefix}{name}"
        flat |= _dotted(value, f"{key}.") if isinstance(value, Mapping) else {key: value}
    return flat


def _shown(values: Mapping[str, Any], name: str) -> str:
    if values.get(name) is None:
        return "none" if name in values else "absent"
    text = repr(values[name])
    return text if len(text) <= _SHOWN_LETTERS else f"{text[:_SHOWN_LETTERS]}…"
