"""What a command has to say, whoever called it: a shell, or Python."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """The end of a command.

    Attributes:
        summary: A short text for people, its headline first.
        result: The same for machines: JSON-serialisable.
        written: Files that now hold results.
        failed: Whether a part of the work failed although the command went through.
    """

    summary: str
    result: dict[str, Any]
    written: list[Path] = field(default_factory=list)
    failed: bool = False
