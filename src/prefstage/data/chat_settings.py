"""How conversations become text: the settings that every command and recipe share."""

import datetime
from typing import Any, Literal

from pydantic import Field

from prefstage.core.config import Config

ControlTokens = Literal["split", "keep"]
"""What becomes of control tokens that a text spells: ordinary text, or the tokens."""


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
        neutral = {name: field.default for name, field in ChatSettings.model_fields.items()}
        values = {name: getattr(self, name) for name in neutral}
        return {name: value for name, value in values.items() if value != neutral[name]}


CHAT_SETTINGS = tuple(ChatSettings.model_fields)
"""Names of the settings, for commands."""
