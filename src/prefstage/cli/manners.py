"""How every command behaves: summary for people, JSON for machines, errors in one line."""

import errno
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from types import FrameType
from typing import NoReturn

import typer

from prefstage.core import (
    InputError,
    Outcome,
    PrefstageError,
    full_disk_error,
    json_text,
    printable,
    redacted_values,
)

EXIT_FAILED_IN_PART = 1
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141

# What the operating system refuses because of the user's paths, rights or disk. Any other
# OSError is a fault of ours and keeps its traceback.
_USERS_ERRNOS = {
    errno.EACCES,
    errno.EIO,
    errno.ELOOP,
    errno.ENOENT,
    errno.EEXIST,
    errno.EISDIR,
    errno.ENAMETOOLONG,
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
    text = (
        json_text(redacted_values(outcome.result))
        if as_json
        else printable(
            "\n".join((outcome.summary, *(f"wrote {path}" for path in outcome.written), ""))
        )
    )
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
    # Keep the libraries' own progress bars and notices out of our output: transformers, too, goes
    # by the Hub's variable, else bars of loading and saving weights would tear apart what a command
    # shows. Before anything imports transformers or datasets, which read these variables once.
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
    try:
        with _sigterm_as_interrupt():
            yield
    except Exception as error:
        refuse(error)
    except KeyboardInterrupt:
        typer.echo(
            "prefstage: interrupted; "
            + (
                "everything so far is kept. The same command goes on from there."
                if kept
                else "nothing is kept without --out."
            ),
            err=True,
        )
        raise typer.Exit(EXIT_INTERRUPTED) from None


def refuse(error: Exception) -> NoReturn:
    """End the command with an error of the user's, in one line.

    Args:
        error: The error.

    Raises:
        Exception: The error, if it is a fault of ours: what the system refuses because of paths,
            rights or the disk is the user's to change; a reset connection that reached this far
            is not, and its traceback says where.
        typer.Exit: Otherwise.
    """
    if not isinstance(error, PrefstageError):
        full = full_disk_error(error)
        if full is None and getattr(error, "errno", None) not in _USERS_ERRNOS:
            raise error
        cause = full or error
        name, text = getattr(cause, "filename", None), getattr(cause, "strerror", None)
        error = InputError.of(
            saw=(f"{name}: " if name else "") + (text or str(cause)),
            expected="room on the disk"
            if full
            else "files and folders that may be read and written",
            cure=("make room there" if full else "name another path, or change its rights")
            + "; the same command goes on",
        )
    with suppress(OSError):  # nobody hears it, but the exit code still says it
        typer.echo(f"prefstage: error: {printable(' '.join(str(error).split()))}", err=True)
    raise typer.Exit(EXIT_USER_ERROR) from None


def check_surroundings() -> None:
    """Check what a command needs of its process before it loads anything.

    Raises:
        InputError: If the working folder is gone, or nothing could be printed.
    """
    with InputError.instead_of(
        OSError,
        saw="a working folder that is not there any more",
        expected="a folder that is there",
        cure="go to another one (cd), and repeat the command",
    ):
        os.getcwd()
    InputError.unless(
        sys.stdout is not None,
        saw="a standard output that is closed",
        expected="one that can be written to",
        cure="send it to a file, or to /dev/null",
    )


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
