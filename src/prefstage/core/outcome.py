"""What a command has to say, whoever called it: a shell, or Python."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """The end of a command; the base of every function's result that a command prints.

    Attributes:
        summary: A short text for people, its headline first.
        result: The same for machines: JSON-serialisable.
        written: Files and folders that now hold results.
        failed: What failed, or whether anything did, although the command went through.
    """

    summary: str
    result: dict[str, Any]
    written: Sequence[Path] = ()
    failed: bool | Sequence[Any] = False


def markdown_table(head: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """A table as Markdown.

    Args:
        head: Of the columns.
        rows: A cell a column; bars in cells are escaped.

    Returns:
        Its lines, without a line end behind the last.
    """
    lines = [" | ".join(str(cell).replace("|", "\\|") for cell in cells) for cells in (head, *rows)]
    return "\n".join(
        [f"| {lines[0]} |", "|" + "---|" * len(head), *(f"| {x} |" for x in lines[1:])]
    )


def shown(value: Any) -> str:
    """A figure as summaries print it: floats with four digits, lists with commas."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return ", ".join(map(shown, value)) if isinstance(value, list) else str(value)
