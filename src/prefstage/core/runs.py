"""Run folders: what a command did, from which inputs, so that it can go on or be checked."""

import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Self

from prefstage.core.errors import RunFolderError
from prefstage.core.files import write_json
from prefstage.core.hashing import digest

MANIFEST = "manifest.json"
_PACKAGES = ("prefstage", "torch", "transformers", "datasets", "peft")


@dataclass(frozen=True)
class RunFolder:
    """A folder that belongs to one run: one command, one configuration, one set of inputs."""

    path: Path
    key: str

    @classmethod
    def open(cls, path: Path, *, command: str, inputs: Mapping[str, Any]) -> Self:
        """Make the folder, or go on in it if it belongs to the same run.

        Args:
            path: The folder; made with its parents if missing.
            command: The command's name.
            inputs: JSON-serialisable: everything the result depends on (configuration,
                fingerprints of data, model and judge).

        Returns:
            The open folder, with its manifest on disk.

        Raises:
            RunFolderError: If the folder holds another run, or files and no manifest.
        """
        key = digest({"command": command, "inputs": dict(inputs)})
        manifest = path / MANIFEST
        if manifest.exists():
            _check_same_run(manifest, key, command, inputs)
            return cls(path=path, key=key)
        if path.exists() and not _is_vacant(path):
            raise RunFolderError.of(
                saw=f"{path} exists and is not a run folder of prefstage",
                expected="a new or empty folder, or the folder of the same run",
                cure="name another folder with --out",
            )
        record = {"command": command, "key": key, "inputs": dict(inputs), **_circumstances()}
        write_json(manifest, record)
        return cls(path=path, key=key)

    def file(self, name: str) -> Path:
        """Name a file of this run.

        Args:
            name: Its name inside the folder.

        Returns:
            Its path; the file may not exist yet.
        """
        return self.path / name


def run_date(folder: Path | None) -> date:
    """The day on which a run began: what its chat templates read as today.

    Args:
        folder: The run's folder; None for a run that keeps nothing.

    Returns:
        The day that the folder's manifest names; today for a run that begins now.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8")) if folder else {}
        return date.fromisoformat(manifest["date"])
    except (OSError, ValueError, KeyError, TypeError):
        return date.today()


def _is_vacant(path: Path) -> bool:
    """Whether `path` is a folder without content, but for what a killed start left there."""
    leftover = f".{Path(MANIFEST).stem}-"
    return path.is_dir() and all(child.name.startswith(leftover) for child in path.iterdir())


def _circumstances() -> dict[str, Any]:
    return {
        "date": date.today().isoformat(),  # of this place, as chat templates read it
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in _PACKAGES},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _check_same_run(manifest: Path, key: str, command: str, inputs: Mapping[str, Any]) -> None:
    try:
        found = json.loads(manifest.read_text(encoding="utf-8"))
        found_key, found_inputs = found["key"], {"command": found["command"], **found["inputs"]}
    except (ValueError, KeyError, TypeError):
        raise RunFolderError.of(
            saw=f"{manifest} is not a manifest of prefstage",
            expected="the manifest of the same run",
            cure="name another folder with --out",
        ) from None
    if found_key == key:
        return
    wanted = {"command": command, **inputs}
    names = sorted(
        name
        for name in {*found_inputs, *wanted}
        if found_inputs.get(name) != json.loads(json.dumps(wanted.get(name)))
    )
    raise RunFolderError.of(
        saw=f"{manifest.parent} holds another run (different: {', '.join(names)})",
        expected="a new folder, or the same command with the same settings and inputs",
        cure="name another folder with --out, or repeat the first run's settings to go on with it",
    )
