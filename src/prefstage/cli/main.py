"""The `prefstage` command."""

import typer

from prefstage.cli.judge import judge

app = typer.Typer(
    name="prefstage",
    help="Which preference data does your language model need next?",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

app.command()(judge)


@app.callback()
def prefstage() -> None:
    """Which preference data does your language model need next?"""


def main() -> None:
    """Entry point of the console script."""
    app()
