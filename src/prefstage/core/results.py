"""`result.json`: what a run folder holds, in one form for every command."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from prefstage.core.errors import InputError
from prefstage.core.files import write_json
from prefstage.core.runs import MANIFEST

RESULT = "result.json"


def write_result(
    folder: Path,
    command: str,
    *,
    headline: str,
    facts: Mapping[str, Any] | None = None,
    parts: Iterable[Mapping[str, Any]] | None = None,
) -> Path:
    """Write ``result.json``, which lists what a run holds; the last file that a command writes.

    The figures stay in the files that the command has always written (stage.json, train.json
    and so on): a part names the folder where they stand, so that nothing is kept twice and one
    reader serves every command.

    Args:
        folder: The run folder.
        command: Its name, such as "measure".
        headline: What came of it, in one sentence.
        facts: Short statements by what they are about, such as "policy"; empty ones are left out.
        parts: "kind" (the command that writes such a folder), "iteration" from 1, "folder"
            relative to the run's; "seconds" and "costs" of a step. None: the run folder itself
            is the only part.

    Returns:
        The file.
    """
    itself = [{"kind": command, "iteration": 1, "folder": "."}]
    result = {
        "command": command,
        "headline": headline,
        "facts": {name: str(fact) for name, fact in (facts or {}).items() if fact},
        "parts": itself if parts is None else [dict(part) for part in parts],
    }
    write_json(folder / RESULT, result)
    return folder / RESULT


def read_result(folder: Path) -> dict[str, Any]:
    """Read the ``result.json`` of a run that is done.

    Args:
        folder: The run folder.

    Returns:
        "command", "headline", "facts" and "parts", as for `write_result`.

    Raises:
        InputError: If the folder does not exist, or holds no result, as that of a run that was
            stopped, or a damaged one.
    """
    if not folder.is_dir():
        raise InputError.of(
            saw=f"no folder or file {folder}",
            expected="a run folder, such as of align, train, measure, build, evaluate or diagnose",
            cure="name the folder that was given with --out",
        )
    try:
        result: dict[str, Any] = json.loads((folder / RESULT).read_text(encoding="utf-8"))
        return {name: result[name] for name in ("command", "headline", "facts", "parts")}
    except FileNotFoundError:
        raise InputError.of(
            saw=f"{folder} holds no results: {_begun(folder)}no {RESULT} yet",
            expected="the folder of a run that is done",
            cure="let the run end (the same command goes on), or name another folder",
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError.of(
            saw=f"{folder / RESULT} is not as it was written ({error!r})",
            expected="the results of a prefstage command",
            cure="repeat the command with the same --out, which makes damaged results anew",
        ) from None


def _begun(folder: Path) -> str:
    try:
        command = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["command"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return f"its {command} has not ended, "
