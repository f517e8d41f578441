"""Messages as plain text, for judges whose model knows no chat template."""

from collections.abc import Mapping
from typing import Any

from prefstage.core.errors import InputError
from prefstage.data.records import Message, Prompt

_SPEAKERS = {"user": "User", "assistant": "Assistant", "system": "System", "tool": "Tool"}


def content_of(message: Message) -> str:
    """The text of one message.

    Args:
        message: A chat message whose `content` is a string, empty, or a list of text parts
            (``[{"type": "text", "text": ...}]``).

    Returns:
        Its text; parts are joined by newlines, and no content is the empty string.

    Raises:
        InputError: If the content holds something else than text, such as an image.
    """
    content = message.get("content")
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "\n".join(_part_text(part) for part in content)
    raise _not_text(content)


def plain_prompt(prompt: Prompt) -> str:
    """A prompt as plain text: a lone user message as it is, a conversation with speakers.

    Args:
        prompt: Messages up to and with the last user turn.

    Returns:
        The user's text if there is no other message; otherwise one paragraph a message,
        ``User: ...``, blank lines between them.
    """
    if len(prompt) == 1 and prompt[0].get("role") == "user":
        return content_of(prompt[0])
    return "\n\n".join(f"{_speaker(message)}: {content_of(message)}" for message in prompt)


def _speaker(message: Message) -> str:
    role = str(message.get("role", "user"))
    return _SPEAKERS.get(role, role.capitalize())


def _part_text(part: Any) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, Mapping) and isinstance(part.get("text"), str):
        return str(part["text"])
    raise _not_text(part)


def _not_text(part: Any) -> InputError:
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    return InputError.of(
        saw=f"a message content of kind {kind!r}",
        expected="text (a string, or a list of text parts)",
        cure="leave out prompts with images or audio, which this judge cannot read",
    )
