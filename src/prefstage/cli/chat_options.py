"""Options of every command that turns conversations into text."""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prefstage.core.errors import InputError

if TYPE_CHECKING:
    from prefstage.data.settings import ChatSettings

ChatFormat = Annotated[str | None, typer.Option(help="Plain format of a base model.")]
TemplateOptions = Annotated[
    list[str] | None,
    typer.Option(help="Variable of the chat template: enable_thinking=false. Repeat for more."),
]
TemplateDate = Annotated[
    str | None, typer.Option(help="What chat templates read as today [the first run's day].")
]
ControlTokensOption = Annotated[
    str | None, typer.Option(help="Control tokens that texts spell: split or keep [split].")
]


def template_options(texts: list[str] | None) -> dict[str, Any] | None:
    """The variables that options name; values are JSON where they are, else text.

    Args:
        texts: ``NAME=VALUE``, or one JSON object.

    Returns:
        The variables; None if there are none.

    Raises:
        InputError: If a text is neither.
    """
    if not texts:
        return None
    values: dict[str, Any] = {}
    for text in texts:
        if text.lstrip().startswith("{"):
            values |= _object(text)
            continue
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise InputError.of(
                saw=f"--template-options {text}",
                expected="NAME=VALUE, such as enable_thinking=false, or a JSON object",
                cure="write it so",
            )
        try:
            values[name.strip()] = json.loads(value)
        except ValueError:
            values[name.strip()] = value
    return values


def chat_settings(given: Mapping[str, Any]) -> "ChatSettings":
    """The settings that a command's options give.

    Args:
        given: The options by name.

    Returns:
        The settings.

    Raises:
        ConfigError: If one is wrong.
    """
    from prefstage.core.config import load_config
    from prefstage.data.settings import CHAT_SETTINGS, ChatSettings

    values = {name: given[name] for name in CHAT_SETTINGS}
    values["template_options"] = template_options(values["template_options"])
    return load_config(ChatSettings, None, values)


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise InputError.of(
            saw=f"--template-options {text} ({error})", expected="a JSON object", cure="mend it"
        ) from None
    return dict(value)
