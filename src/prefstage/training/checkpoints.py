"""Checkpoints that are whole or absent: staged, listed in a manifest, renamed, verified.

A checkpoint is written into ``_saving/`` of the run's folder, every file is flushed to disk
and listed with its size and hash, and only then does one rename give it its name
``checkpoint-STEP``. What bears that name is therefore complete; what a kill left behind lies
in ``_saving/``, which uploads to the Hub leave out.
"""

import json
import logging
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefstage.core.errors import CheckpointError
from prefstage.core.files import sync_folder, write_json
from prefstage.core.hashing import digest, digest_file

MANIFEST = "prefstage_checkpoint.json"
STAGING = "_saving"

_NAME = re.compile(r"checkpoint-(\d+)")
_HASH_DIGITS = 64
_EXPECTED = "a checkpoint as it was written"

_log = logging.getLogger(__name__)


def checkpoint_name(step: int) -> str:
    """Name of the checkpoint of an optimiser step, as transformers names it."""
    return f"checkpoint-{step}"


def step_of(checkpoint: Path) -> int:
    """Optimiser step of a checkpoint by its name; -1 if it has another name."""
    match = _NAME.fullmatch(checkpoint.name)
    return int(match[1]) if match else -1


def checkpoints_in(folder: Path) -> list[Path]:
    """List the checkpoints of a run.

    Args:
        folder: The run's output folder; a missing one holds none.

    Returns:
        Folders named ``checkpoint-STEP``, by step.
    """
    found = [child for child in folder.glob("checkpoint-*") if child.is_dir()]
    return sorted((child for child in found if step_of(child) >= 0), key=step_of)


def newest_whole(folder: Path) -> Path | None:
    """Find the checkpoint to go on from: the one of the latest step that has a manifest.

    Args:
        folder: The run's output folder.

    Returns:
        The checkpoint, its files not yet verified; None if there is none.
    """
    whole = [each for each in checkpoints_in(folder) if (each / MANIFEST).is_file()]
    return whole[-1] if whole else None


def staged_folder(folder: Path, step: int) -> Path:
    """Where a checkpoint is written before it is whole.

    Args:
        folder: The run's output folder.
        step: Optimiser steps done.

    Returns:
        The staging folder; it may not exist yet.
    """
    return folder / STAGING / checkpoint_name(step)


def finish_checkpoint(
    folder: Path,
    step: int,
    *,
    settings: Mapping[str, Any],
    processes: int = 1,
    versions: Mapping[str, str | None] | None = None,
) -> Path:
    """Turn a staged folder into a checkpoint: flush, list, rename.

    One process calls this, after every process has written its files. A checkpoint of the
    same step is replaced; at no moment is there neither the old one nor the new one.

    Args:
        folder: The run's output folder; the files lie in its `staged_folder`.
        step: Optimiser steps done.
        settings: What a run that goes on from here must agree on, JSON-serialisable.
        processes: How many processes wrote it.
        versions: Version of each package that matters, by name.

    Returns:
        The checkpoint.
    """
    staged, final = staged_folder(folder, step), folder / checkpoint_name(step)
    record = {
        "step": step,
        "written": datetime.now(UTC).isoformat(timespec="microseconds"),
        "processes": processes,
        "settings": json.loads(json.dumps(settings)),
        "versions": dict(versions or {}),
        "files": _list_files(staged, flush=True),
    }
    write_json(staged / MANIFEST, record | {"key": digest(record)})
    _put_in_place(staged, final)
    return final


def recover(folder: Path) -> list[str]:
    """Clear what a kill in the middle of saving or deleting left behind.

    A staged checkpoint that is whole but not yet renamed gets its name, unless that name is
    taken; everything else in staging is deleted.

    Args:
        folder: The run's output folder.

    Returns:
        Names of half-written checkpoints that were deleted.
    """
    staging = folder / STAGING
    if not staging.is_dir():
        return []
    dropped = []
    for staged in sorted(staging.iterdir()):
        final = folder / staged.name
        if step_of(staged) >= 0 and not final.exists() and _is_intact(staged):
            _put_in_place(staged, final)
            _log.info("%s was whole but not yet in its place: kept", final)
        elif step_of(staged) >= 0:
            dropped.append(staged.name)
    shutil.rmtree(staging, ignore_errors=True)
    for name in dropped:
        _log.warning("%s: half-written when the run was killed: deleted", staging / name)
    return dropped


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
    record = read_manifest(checkpoint)
    listed: dict[str, dict[str, Any]] = record["files"]
    for name, file in listed.items():
        path = checkpoint / name
        if not path.is_file():
            raise _corrupt(checkpoint, f"{name} is missing")
        size = path.stat().st_size
        if size != file["bytes"]:
            raise _corrupt(checkpoint, f"{name} has {size:,} bytes instead of {file['bytes']:,}")
    found = _hashes(checkpoint, listed)
    for name, file in listed.items():
        if found[name] != file["sha256"]:
            raise _corrupt(checkpoint, f"the content of {name} has changed since it was written")
    return record


def read_manifest(checkpoint: Path) -> dict[str, Any]:
    """Read a checkpoint's manifest, and check that it is as it was written.

    Args:
        checkpoint: A folder written by `finish_checkpoint`.

    Returns:
        The manifest.

    Raises:
        CheckpointError: If it is missing, or has changed.
    """
    if not checkpoint.is_dir():
        raise CheckpointError.of(
            saw=f"no checkpoint {checkpoint}",
            expected="a folder named checkpoint-STEP",
            cure="check the path, or use resume_from_checkpoint=True for the newest",
        )
    path = checkpoint / MANIFEST
    if not path.is_file():
        raise CheckpointError.of(
            saw=f"{checkpoint} has no {MANIFEST}: it was written by another trainer, or in part",
            expected="a checkpoint of PreferenceTrainer",
            cure="go on from another checkpoint, or start a new run with this folder as the model",
        )
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        intact = digest({k: v for k, v in record.items() if k != "key"}) == record["key"]
    except (ValueError, KeyError, AttributeError):
        intact = False
    if not intact:
        raise _corrupt(checkpoint, f"{MANIFEST} has changed since it was written")
    return record


def nothing_whole(folder: Path) -> CheckpointError:
    """The error of a run that has nothing to go on from.

    Args:
        folder: The run's output folder, without any whole checkpoint.

    Returns:
        The error to raise.
    """
    others = checkpoints_in(folder)
    if others:
        return CheckpointError.of(
            saw=f"none of the {len(others)} checkpoints in {folder} has a {MANIFEST}: they were "
            "written by another trainer",
            expected="checkpoints of PreferenceTrainer",
            cure="begin a new run in another output_dir, with one of them as the model",
        )
    return CheckpointError.of(
        saw=f"no whole checkpoint in {folder}",
        expected="a folder named checkpoint-STEP, written by PreferenceTrainer",
        cure="leave resume_from_checkpoint out to begin, or check output_dir",
    )


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
    ours = [each for each in checkpoints_in(folder) if (each / MANIFEST).is_file()]
    present = sorted(ours, key=_written)
    if not limit or limit < 0:
        return []
    kept = {each.resolve() for each in keep}
    deletable = [each for each in present if each.resolve() not in kept]
    deleted = deletable[: max(0, len(present) - limit)]
    for checkpoint in deleted:
        _discard(checkpoint, folder / STAGING)
    return deleted


def discard_staged(folder: Path, step: int) -> None:
    """Delete what was written of a checkpoint that cannot be finished.

    Args:
        folder: The run's output folder.
        step: Its optimiser step.
    """
    shutil.rmtree(staged_folder(folder, step), ignore_errors=True)
    _leave(folder / STAGING)


def _put_in_place(staged: Path, final: Path) -> None:
    """Rename; an older checkpoint of that name goes only when the new one is on disk."""
    replaced = staged.with_name(f"replaced-{final.name}")
    if final.exists():
        shutil.rmtree(replaced, ignore_errors=True)
        final.rename(replaced)
    staged.rename(final)
    sync_folder(final.parent)
    shutil.rmtree(replaced, ignore_errors=True)
    _leave(staged.parent)


def _discard(checkpoint: Path, staging: Path) -> None:
    """Delete a checkpoint so that a kill in the middle leaves no part of it under its name."""
    staging.mkdir(exist_ok=True)
    doomed = staging / f"removed-{checkpoint.name}"
    shutil.rmtree(doomed, ignore_errors=True)
    checkpoint.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)
    _leave(staging)


def _leave(staging: Path) -> None:
    """Remove the staging folder when nothing is left in it."""
    if staging.is_dir() and not any(staging.iterdir()):
        staging.rmdir()


def _list_files(folder: Path, *, flush: bool) -> dict[str, dict[str, Any]]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    names = [path.relative_to(folder).as_posix() for path in paths]
    if flush:
        for path in paths:
            with path.open("rb+") as stream:
                os.fsync(stream.fileno())
        for inner in {path.parent for path in paths}:
            sync_folder(inner)
    hashes = _hashes(folder, names)
    sizes = {name: path.stat().st_size for name, path in zip(names, paths, strict=True)}
    return {name: {"bytes": sizes[name], "sha256": hashes[name]} for name in names}


def _hashes(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Hash of each file; several at a time, since hashing leaves the interpreter's lock."""
    ordered = list(names)
    with ThreadPoolExecutor() as pool:
        found = pool.map(lambda name: digest_file(folder / name, length=_HASH_DIGITS), ordered)
        return dict(zip(ordered, found, strict=True))


def _is_intact(checkpoint: Path) -> bool:
    try:
        verify_checkpoint(checkpoint)
    except CheckpointError:
        return False
    return True


def _written(checkpoint: Path) -> tuple[str, int]:
    """When a checkpoint was written; one whose manifest is damaged counts as older than all."""
    try:
        return str(read_manifest(checkpoint)["written"]), step_of(checkpoint)
    except CheckpointError:
        return "", step_of(checkpoint)


def _corrupt(checkpoint: Path, what: str) -> CheckpointError:
    others = [
        each.name
        for each in checkpoints_in(checkpoint.parent)
        if each != checkpoint and (each / MANIFEST).is_file()
    ]
    cure = (
        f"delete the folder and go on from {others[-1]}"
        if others
        else "delete the folder and start again, as no other checkpoint is left"
    )
    return CheckpointError.of(saw=f"{checkpoint}: {what}", expected=_EXPECTED, cure=cure)
