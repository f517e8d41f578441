"""How data is read and how conversations become text: the settings that commands share."""

import datetime
import os
from collections.abc import Mapping
from typing import Any, Literal, TypedDict

from pydantic import Field, field_validator

from prefstage.core import Config

OnBadRow = Literal["error", "quarantine"]
# What becomes of control tokens that a text spells: ordinary text, or the tokens.
ControlTokens = Literal["split", "keep"]

# Jinja templates by name; a response ends with the tokenizer's end-of-sequence token.
CHAT_FORMATS = {
    # Blank-line separated texts: what a base model continues most naturally.
    "plain": (
        "{% for message in messages %}{{ message['content'] }}"
        "{% if message['role'] == 'assistant' and loop.last %}{{ eos_token }}"
        "{% else %}{{ '\n\n' }}{% endif %}{% endfor %}"
    ),
    # The transcripts of Anthropic's HH data; the space after the colon is generated.
    "human-assistant": (
        "{% for message in messages %}"
        "{% if message['role'] == 'assistant' %}{{ '\n\nAssistant: ' + message['content'] }}"
        "{% if loop.last %}{{ eos_token }}{% endif %}"
        "{% elif message['role'] == 'system' %}{{ message['content'] }}"
        "{% else %}{{ '\n\nHuman: ' + message['content'] }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '\n\nAssistant:' }}{% endif %}"
    ),
}


class BadRowSettings(Config):
    """What becomes of rows that cannot be read."""

    on_bad_row: OnBadRow = Field(
        default="error", description="What happens to rows that cannot be used."
    )
    quarantine_file: str | None = Field(default=None, description="Where bad rows go.")

    @field_validator("quarantine_file", mode="before")
    @classmethod
    def _as_text(cls, value: object) -> object:
        return os.fspath(value) if isinstance(value, os.PathLike) else value


class ReadOptions(BadRowSettings):
    """How a dataset is read; the keyword arguments of every loader."""

    format: str | None = Field(default=None, description="Name of its format; None to recognise.")
    columns: dict[str, str] = Field(default={}, description="Role to column name.")
    labels: dict[bool | str | int | float, str] | None = Field(
        default=None, description="What labels mean."
    )
    split: str | None = Field(default=None, description="Split of a folder or Hub data set.")

    @field_validator("columns", mode="before")
    @classmethod
    def _none_renamed(cls, value: object) -> object:
        return {} if value is None else value


class ReadArguments(TypedDict, total=False):
    """The fields of `ReadOptions`, as type checkers see the loaders' keyword arguments."""

    format: str | None
    columns: Mapping[str, str] | None
    labels: Mapping[Any, str] | None
    split: str | None
    on_bad_row: OnBadRow
    quarantine_file: str | os.PathLike[str] | None


class ChatSettings(Config):
    """How conversations become text; the arguments of `ResponseEncoder` of these names."""

    chat_format: str | None = Field(default=None, description="Plain format of a base model.")
    template_options: dict[str, Any] = Field(
        default={}, description="Variables of the chat template: {enable_thinking: false}."
    )
    template_date: datetime.date | None = Field(
        default=None, description="What templates read as today; None: the day of the first run."
    )
    control_tokens: ControlTokens = Field(
        default="split", description="Control tokens that texts spell: split into text, or keep."
    )

    @property
    def encoding(self) -> dict[str, Any]:
        """What is set, as arguments of `ResponseEncoder` and of the samplers."""
        return self.model_dump(include=set(ChatSettings.model_fields), exclude_defaults=True)


# Names of the settings, for commands.
CHAT_SETTINGS = tuple(ChatSettings.model_fields)
