"""How every command behaves: summary for people, JSON for machines, errors in one line."""

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec

import typer

from prefstage.core.errors import PrefstageError
from prefstage.core.files import write_json

P = ParamSpec("P")

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130


@dataclass(frozen=True)
class Outcome:
    """What a command has to say.

    Attributes:
        summary: A short text for people, printed to standard output.
        result: The same for machines: JSON-serialisable.
        written: Files that now hold results, named under the summary.
    """

    summary: str
    result: dict[str, Any]
    written: list[Path] = field(default_factory=list)


def say(outcome: Outcome, *, as_json: bool, out: Path | None = None) -> None:
    """Print an outcome: the summary, or with `as_json` the JSON alone.

    Args:
        outcome: What to say.
        as_json: Print JSON and nothing else on standard output.
        out: Also write the JSON to this file, atomically.
    """
    if out is not None:
        write_json(out, outcome.result)
    if as_json:
        sys.stdout.write(json.dumps(outcome.result, ensure_ascii=False, indent=2) + "\n")
        return
    lines = [outcome.summary, *(f"wrote {path}" for path in [*outcome.written, out] if path)]
    sys.stdout.write("\n".join(lines) + "\n")


def mannered(command: Callable[P, None]) -> Callable[P, None]:
    """Wrap a command: user errors end in one line and exit 2, Ctrl-C in exit 130."""

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        _quiet_libraries()
        try:
            command(*args, **kwargs)
        except PrefstageError as error:
            typer.echo(f"prefstage: error: {error}", err=True)
            raise typer.Exit(EXIT_USER_ERROR) from None
        except KeyboardInterrupt:
            typer.echo(
                "prefstage: interrupted; everything so far is kept. "
                "The same command goes on from there.",
                err=True,
            )
            raise typer.Exit(EXIT_INTERRUPTED) from None

    return run


def _quiet_libraries() -> None:
    """Keep the libraries' own progress bars and notices out of our output."""
    for name, value in (
        ("HF_HUB_DISABLE_PROGRESS_BARS", "1"),
        ("TRANSFORMERS_VERBOSITY", "error"),
        ("TOKENIZERS_PARALLELISM", "false"),
        ("HF_DATASETS_DISABLE_PROGRESS_BARS", "1"),
    ):
        os.environ.setdefault(name, value)
