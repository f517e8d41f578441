"""How every command behaves: summary for people, JSON for machines, errors in one line."""

import errno
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import pairwise
from types import FrameType
from typing import Any

import typer
from typer.core import TyperGroup

from prefstage.core import InputError, Outcome, PrefstageError, json_text

EXIT_FAILED_IN_PART = 1
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141

# What the operating system refuses because of the user's paths, rights or disk. Any other
# OSError is a fault of ours and keeps its traceback.
_USERS_ERRNOS = {
    errno.EACCES,
    errno.EDQUOT,
    errno.EEXIST,
    errno.EISDIR,
    errno.ENAMETOOLONG,
    errno.ENOSPC,
    errno.ENOTDIR,
    errno.EPERM,
    errno.EROFS,
}


def say(outcome: Outcome, *, as_json: bool) -> None:
    """Print an outcome: the summary and what was written, or the JSON alone.

    Args:
        outcome: What to say.
        as_json: Print JSON and nothing else on standard output.

    Raises:
        typer.Exit: With the status that the command ends with, if that is not 0.
    """
    # In one write, so that a pipe that closes leaves no half of a JSON document behind.
    lines = (outcome.summary, *(f"wrote {path}" for path in outcome.written), "")
    text = json_text(outcome.result) if as_json else "\n".join(lines)
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes once more at exit; let that flush go nowhere instead of complaining.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(EXIT_BROKEN_PIPE) from None
    if outcome.failed:
        raise typer.Exit(EXIT_FAILED_IN_PART)


@contextmanager
def mannered(*, kept: bool) -> Iterator[None]:
    """Let every command end in the same way, while the block runs it.

    A user's error ends in one line and exit code 2, Ctrl-C and SIGTERM in exit code 130; a
    fault of ours keeps its traceback.

    Args:
        kept: Whether what was done before a stop is on disk.

    Yields:
        Nothing.
    """
    # Before anything imports transformers or datasets, which read these variables once.
    _quiet_libraries()
    try:
        with _sigterm_as_interrupt():
            yield
    except PrefstageError as error:
        _refuse(error)
    except OSError as error:
        # A full disk or a path without rights is the user's to change; a reset connection that
        # reached this far is a fault of ours, whose traceback says where.
        if error.errno not in _USERS_ERRNOS:
            raise
        name = f"{error.filename}: " if error.filename else ""
        _refuse(
            InputError.of(
                saw=f"{name}{error.strerror}",
                expected="files and folders that may be read and written, on a disk with room",
                cure="name another path, or change its rights or the room there; the same "
                "command goes on",
            )
        )
    except KeyboardInterrupt:
        rest = (
            "everything so far is kept. The same command goes on from there."
            if kept
            else "nothing is kept without --out."
        )
        typer.echo(f"prefstage: interrupted; {rest}", err=True)
        raise typer.Exit(EXIT_INTERRUPTED) from None


class OneLineErrors(TyperGroup):
    """A command group whose usage errors (unknown option, missing value) are one line."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Parse and run as Typer does, but for how usage errors are told.

        Args:
            args: The words after the program's name; None takes them from `sys.argv`.
            prog_name: The program's name in help texts.
            complete_var: As for Typer.
            standalone_mode: Whether to exit the process at the end.
            windows_expand_args: As for Typer.
            extra: As for Typer.

        Returns:
            The command's return value, if not `standalone_mode`.

        Raises:
            typer.TyperException: On a usage error, if not `standalone_mode`.
        """
        settings = (args, prog_name, complete_var, False, windows_expand_args)
        if not standalone_mode:
            return super().main(*settings, **extra)
        try:
            status = super().main(*settings, **extra)
        except typer.TyperException as error:
            words = sys.argv[1:] if args is None else args
            typer.echo(f"prefstage: error: {_usage_error(error, words)}", err=True)
            status = EXIT_USER_ERROR
        sys.exit(status if isinstance(status, int) else 0)


def _usage_error(error: typer.TyperException, words: Sequence[str]) -> InputError:
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "prefstage"
    describe = getattr(error, "format_message", lambda: str(error))
    # The value that the faulty option was given, which Typer's messages leave out.
    names = getattr(getattr(error, "param", None), "opts", ())
    parted = (word.split("=", 1) for word in words if "=" in word)
    values = [value for name, value in (*pairwise(words), *parted) if name in names]
    return InputError.of(
        saw=describe().rstrip(".") + (f" (typed: {values[-1]!r})" if values else ""),
        expected=f"the options and values that `{command}` takes",
        cure=f"see `{command} --help`",
    )


def _refuse(error: PrefstageError) -> None:
    typer.echo(f"prefstage: error: {' '.join(str(error).split())}", err=True)
    raise typer.Exit(EXIT_USER_ERROR) from None


# Let a polite kill end a command as Ctrl-C does, while the block runs.
@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:

    def interrupt(number: int, frame: FrameType | None) -> None:
        # Whatever Ctrl-C does now: asyncio cancels its tasks, others raise KeyboardInterrupt.
        as_ctrl_c = signal.getsignal(signal.SIGINT)  # asyncio puts its own there
        (as_ctrl_c if callable(as_ctrl_c) else signal.default_int_handler)(number, frame)

    with ExitStack() as stack:
        with suppress(ValueError):  # signals belong to the main thread
            stack.callback(signal.signal, signal.SIGTERM, signal.signal(signal.SIGTERM, interrupt))
        yield


# Keep the libraries' own progress bars and notices out of our output.
def _quiet_libraries() -> None:
    for name, value in (
        ("HF_HUB_DISABLE_PROGRESS_BARS", "1"),
        ("HF_HUB_VERBOSITY", "error"),
        ("TRANSFORMERS_VERBOSITY", "error"),
        ("TOKENIZERS_PARALLELISM", "false"),
        ("HF_DATASETS_DISABLE_PROGRESS_BARS", "1"),
    ):
        os.environ.setdefault(name, value)
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")  # bars of lm-evaluation-harness, of datasets
