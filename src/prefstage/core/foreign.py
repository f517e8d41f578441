"""What others' files make libraries raise, as one line; and which file it was."""

import json
from pathlib import Path

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
