"""The `prefstage` command."""

from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperCommand
from typing_extensions import override

from prefstage.cli.allocator import tune_allocator
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
from prefstage.cli.manners import OneLineErrors
from prefstage.cli.options import HELP_OPTIONS, make_command

COMMANDS = {
    command.name: command
    for command in (
        *(measure, advise, sample, judge, diagnose, build, train, evaluate, align),
        *(experiment, report, demo, theory, doctor),
    )
}


class Commands(OneLineErrors):
    """The group of all commands."""

    def __init__(self, **settings: Any) -> None:
        # Stand-ins that know their help alone: the options of a command come from its package,
        # which takes seconds to import and is needed by nobody who lists the commands.
        stand_ins = {name: TyperCommand(name, help=c.help) for name, c in COMMANDS.items()}
        super().__init__(**{**settings, "commands": stand_ins})

    @override
    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """As Typer does, but with the options of the one command that is asked for."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, None if command is None else make_command(COMMANDS[str(name)]), rest


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
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main() -> None:
    """Entry point of the console script."""
    tune_allocator()
    # Named, since `python -m prefstage` would show the path of __main__.py in help texts.
    app(prog_name="prefstage")
