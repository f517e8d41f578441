"""The `prefstage` command."""

from importlib.metadata import version
from typing import Annotated

import typer

from prefstage.cli.align import align
from prefstage.cli.build import build
from prefstage.cli.demo import demo
from prefstage.cli.diagnose import diagnose
from prefstage.cli.doctor import doctor
from prefstage.cli.evaluate import evaluate
from prefstage.cli.experiment import experiment
from prefstage.cli.judge import judge
from prefstage.cli.manners import OneLineErrors
from prefstage.cli.measure import measure
from prefstage.cli.report import report
from prefstage.cli.sample import sample
from prefstage.cli.theory import theory
from prefstage.cli.train import train

app = typer.Typer(
    name="prefstage",
    help="Which preference data does your language model need next?",
    cls=OneLineErrors,
    invoke_without_command=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

app.command()(measure)
app.command()(sample)
app.command()(judge)
app.command()(diagnose)
app.command()(build)
app.command()(train)
app.command()(evaluate)
app.command()(align)
app.command()(experiment)
app.command()(report)
app.command()(demo)
app.command()(theory)
app.command()(doctor)


def _tell_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"prefstage {version('prefstage')}")
        raise typer.Exit


@app.callback()
def prefstage(
    context: typer.Context,
    *,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_tell_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Which preference data does your language model need next?"""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main() -> None:
    """Entry point of the console script."""
    app()
