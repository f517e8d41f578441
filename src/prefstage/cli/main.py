"""The `prefstage` command: a group of commands, and how its process gets memory."""

import ctypes
import logging
import os
import platform
import re
import signal
import sys
import traceback
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from itertools import pairwise
from types import TracebackType
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup
from typing_extensions import override

from prefstage.cli.commands import (
    advise,
    align,
    build,
    demo,
    diagnose,
    doctor,
    evaluate,
    experiment,
    judge,
    measure,
    report,
    sample,
    theory,
    train,
)
from prefstage.cli.manners import check_surroundings, refuse
from prefstage.cli.options import HELP_OPTIONS, make_command
from prefstage.core import InputError, printable, redacted, remember_secrets

_UNENCODABLE = re.compile("[\ud800-\udfff]")
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of malloc.h
_MALLOC_VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")

COMMANDS = {
    command.name: command
    for command in (
        *(measure, advise, sample, judge, diagnose, build, train, evaluate, align),
        *(experiment, report, demo, theory, doctor),
    )
}


class Commands(TyperGroup):
    """The group of all commands; usage errors (unknown option, missing value) are one line."""

    def __init__(self, **settings: Any) -> None:
        # Stand-ins that know their help alone: the options of a command come from its package,
        # which takes seconds to import and is needed by nobody who lists the commands.
        super().__init__(
            **{
                **settings,
                "commands": {name: TyperCommand(name, help=c.help) for name, c in COMMANDS.items()},
            }
        )

    @override
    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """As Typer does, but with the options of the one command that is asked for."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, None if command is None else make_command(COMMANDS[str(name)]), rest

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
        words = sys.argv[1:] if args is None else args
        remember_secrets(" ".join(words))
        settings = (args, prog_name, complete_var, False, windows_expand_args)
        if not standalone_mode:
            return super().main(*settings, **extra)
        try:
            for word in words:  # such as bytes that are no UTF-8: no file of ours could hold them
                InputError.unless(
                    word.isascii() or not _UNENCODABLE.search(word),
                    saw=f"the argument {word!r}",
                    expected="text that UTF-8 can hold",
                    cure="rename the file, or write the argument in UTF-8",
                )
            status = super().main(*settings, **extra)
        except typer.TyperException as error:
            status = _exit_code(_usage_error(error, words))
        except (InputError, OSError) as error:
            status = _exit_code(error)
        sys.exit(status if isinstance(status, int) else 0)


def _exit_code(error: InputError | OSError) -> int:
    try:
        refuse(error)
    except typer.Exit as end:
        return end.exit_code


def _usage_error(error: typer.TyperException, words: Sequence[str]) -> InputError:
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "prefstage"
    describe = getattr(error, "format_message", lambda: str(error))
    # The value that the faulty option was given, which Typer's messages leave out.
    names = getattr(getattr(error, "param", None), "opts", ())
    values = [
        value
        for name, value in (
            *pairwise(words),
            *(word.split("=", 1) for word in words if "=" in word),
        )
        if name in names
    ]
    return InputError.of(
        saw=describe().rstrip(".") + (f" (typed: {values[-1]!r})" if values else ""),
        expected=f"the options and values that `{command}` takes",
        cure=f"see `{command} --help`",
    )


app = typer.Typer(
    name="prefstage",
    help="Which preference data does your language model need next?",
    cls=Commands,
    invoke_without_command=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings=HELP_OPTIONS,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"prefstage {version('prefstage')}")
        raise typer.Exit


@app.callback()
def prefstage(
    context: typer.Context,
    *,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Which preference data does your language model need next?"""
    check_surroundings()
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def tune_allocator() -> None:
    """Ask PyTorch for huge pages, and glibc to keep freed memory, unless the environment says else.

    This concerns the whole process, and so is for commands alone: a library that is imported
    leaves such choices to the program.
    """
    # PyTorch reads this at its first allocation. A training step allocates hundreds of MiB again
    # and again, and the kernel hands out and clears every page: 512 times fewer of 2 MiB.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in _MALLOC_VARIABLES):
        return
    # By itself glibc maps every large block anew and gives it back when it is freed, so that each
    # layer faults its pages in: up to a tenth of the time. mallopt(3): blocks up to 32 MiB come
    # from the heap, and its free end stays, up to 2 GiB.
    libc = ctypes.CDLL(None)
    libc.mallopt(_MMAP_THRESHOLD, 32 << 20)
    libc.mallopt(_TRIM_THRESHOLD, (1 << 31) - 1)


class _PlainFormatter(logging.Formatter):
    """Log lines in which what others wrote can do nothing to the terminal."""

    @override
    def format(self, record: logging.LogRecord) -> str:
        """As the base class, then for a terminal."""
        return printable(super().format(record))


class _Redacting:
    """Standard error in which no key stands, whoever writes to it."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write a text, `redacted`."""
        self._stream.write(redacted(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write texts, `redacted`."""
        self.write("".join(lines))


def show_fault(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Print the traceback of a fault of ours, without keys and control characters.

    Args:
        kind: As `sys.excepthook` gets it.
        error: Likewise.
        trace: Likewise.
    """
    sys.stderr.write(printable("".join(traceback.format_exception(kind, error, trace))))


def main() -> None:
    """Entry point of the console script."""
    sys.excepthook = show_fault
    # What is opened next must not become the standard error, to which libraries write.
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - for the whole process
    sys.stderr = _Redacting(sys.stderr)
    # Warnings reach standard error through this handler alone, unless a program sets others.
    handler = logging.lastResort
    assert handler is not None
    handler.setFormatter(_PlainFormatter())
    tune_allocator()
    try:
        # Named, since `python -m prefstage` would show the path of __main__.py in help texts.
        app(prog_name="prefstage")
    finally:
        # All is done and said: a late Ctrl-C must not end the libraries' last second as a failure.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
