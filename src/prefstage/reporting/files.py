"""Small files of run folders."""

import json
from pathlib import Path
from typing import Any


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def read_if_there(path: Path) -> str:
    """A text file, "" if it is not there."""
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def read_manifest(folder: Path) -> dict[str, Any]:
    """What `RunFolder` wrote, nothing if it is not there."""
    path = folder / "manifest.json"
    return read_json(path) if path.is_file() else {}
