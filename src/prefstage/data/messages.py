"""Chat messages out of whatever a dataset holds: roles, contents, transcripts, prompts."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from prefstage.data.faults import RowFault, show
from prefstage.data.json_text import messages_in, parse_field
from prefstage.data.records import Message, Prompt

ROLES = ("system", "developer", "user", "assistant", "tool")
_ROLE_SPELLINGS = {
    "human": "user",
    "prompter": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "function": "tool",
    "observation": "tool",
}
SYSTEM_ROLES = ("system", "developer")
KEY_ORDER = "__key_order__"
"""Field that stored messages have where their fields' order is not that of their column."""
_TEXT_PARTS = ("text", "input_text", "output_text")
_MEDIA_FIELDS = ("image", "image_url", "images", "input_audio", "audio", "video", "file")
_JSON_FIELDS = {"tools": "a list of tools", "tool_calls": "a list of tool calls"}
_HH_TURN = re.compile(r"\n\n(Human|Assistant):")


def is_messages(value: Any) -> bool:
    """Whether a value looks like a list of chat messages (the first item decides)."""
    value = _transposed(value)
    if isinstance(value, str) or not isinstance(value, Sequence) or len(value) == 0:
        return False
    try:
        first = _parsed(value[0], "[0]") if isinstance(value[0], str) else value[0]
    except RowFault:
        return True  # reading says what is wrong with it
    return isinstance(first, Mapping) and ("role" in first or "from" in first)


def read_messages(value: Any, field: str) -> Prompt:
    """Read a list of messages in either spelling (`role`/`content` or `from`/`value`).

    Args:
        value: The list.
        field: Column name for the fault.

    Returns:
        Messages with `role` and `content` first and every other non-empty field kept.

    Raises:
        RowFault: If it is no list of messages, or a role or content is wrong.
    """
    value = _transposed(value)
    if isinstance(value, Mapping) and {"role", "from"} & value.keys():
        value = [value]
    if isinstance(value, str) or not isinstance(value, Sequence) or not value:
        raise RowFault(
            field,
            saw=show(value),
            expected="a list of {role, content} messages",
            cure="mend or remove the row",
        )
    return tuple(read_message(item, f"{field}[{index}]") for index, item in enumerate(value))


def _transposed(value: Any) -> Any:
    """A list of messages out of a message of lists, as `datasets` stored them before List."""
    if not isinstance(value, Mapping) or not value:
        return value
    lists = all(isinstance(item, Sequence) and not isinstance(item, str) for item in value.values())
    if not lists or len({len(item) for item in value.values()}) != 1:
        return value
    return [dict(zip(value, items, strict=True)) for items in zip(*value.values(), strict=True)]


def read_message(value: Any, field: str) -> Message:
    """Read one message; see `read_messages`.

    Its fields stay in their order. Fields without a value go, and content that is null
    beside tool calls or in a system turn is the empty text: templates print "None" for it
    or fail, and write the same for no content and for an empty one.
    """
    if isinstance(value, str):
        value = _parsed(value, field)
    if not isinstance(value, Mapping):
        raise RowFault(
            field,
            saw=show(value),
            expected="a message {role, content}",
            cure="mend or remove the row",
        )
    role_key = "role" if value.get("role") else "from"
    content_key = "content" if value.get("content") is not None else "value"
    role = _read_role(value.get(role_key), f"{field}.role")
    optional = value.get("tool_calls") is not None or role in SYSTEM_ROLES
    content = _read_content(value.get(content_key), f"{field}.content", optional=optional)
    message: Message = {}
    for key, item in value.items():
        if key == role_key:
            message["role"] = role
        elif key == content_key or (key == "content" and item is None):
            message["content"] = content
        elif item is not None:
            message[key] = _read_field(key, item, field)
    message.setdefault("content", content)
    return in_order(message)


def in_order(message: Message) -> Message:
    """A stored message with its fields in the order that they had, without the note of it."""
    order = message.pop(KEY_ORDER, None)
    if not isinstance(order, str):
        return message
    return {key: message[key] for key in json.loads(order) if key in message}


def _parsed(text: str, field: str) -> Any:
    """The message that a text spells as JSON, or the text."""
    value = messages_in(text, field)
    return text if value is None else value


def _read_role(role: Any, field: str) -> str:
    spelled = _ROLE_SPELLINGS.get(role, role) if isinstance(role, str) else role
    if spelled not in ROLES:
        raise RowFault(
            field,
            saw=show(role),
            expected=f"one of {', '.join(ROLES)} (or human, gpt)",
            cure="rename the role",
        )
    return str(spelled)


def _read_field(key: str, item: Any, field: str) -> Any:
    """A field beside role and content: as it stands, but lists of objects are no text."""
    if key not in _JSON_FIELDS or not isinstance(item, str):
        return item
    expected = f"{_JSON_FIELDS[key]}, or its JSON text"
    value = parse_field(item, f"{field}.{key}", expected)
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise RowFault(f"{field}.{key}", saw=show(item), expected=expected, cure="mend the JSON")
    return value


def _read_content(content: Any, field: str, *, optional: bool) -> str:
    if content is None and optional:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence) and content:
        other = next((part for part in content if not _is_text_part(part)), None)
        if other is None:
            return "".join(part["text"] for part in content)
        kind = other.get("type") if isinstance(other, Mapping) else None
        if isinstance(kind, str) and kind not in _TEXT_PARTS:
            content = f"a part of type {kind!r}"
    raise RowFault(
        field,
        saw=content if isinstance(content, str) else show(content),
        expected="text (or a list of text parts)",
        cure="mend or remove the row; images and audio are not supported",
    )


def _is_text_part(part: Any) -> bool:
    """Whether a part of a message's content is text, and no picture with an empty text."""
    return (
        isinstance(part, Mapping)
        and (part.get("type") is None or part["type"] in _TEXT_PARTS)
        and isinstance(part.get("text"), str)
        and all(part.get(name) is None for name in _MEDIA_FIELDS)
    )


def is_transcript(value: Any) -> bool:
    """Whether a text is an HH transcript (it starts with a `Human:` or `Assistant:` turn)."""
    return isinstance(value, str) and _HH_TURN.match(value) is not None


def read_transcript(text: str, field: str, *, is_prompt: bool) -> Prompt:
    r"""Split an HH transcript (``\n\nHuman: …\n\nAssistant: …``) into messages.

    One space after the colon belongs to the format; all other text is kept as it is.

    Args:
        text: The transcript.
        field: Column name for the fault.
        is_prompt: A bare ``\n\nAssistant:`` at the end only invites the response; else it
            is an empty response.

    Returns:
        The turns in order.

    Raises:
        RowFault: If the text does not start with a turn.
    """
    starts = list(_HH_TURN.finditer(text))
    if not starts or starts[0].start() != 0:
        raise RowFault(
            field,
            saw=show(text),
            expected="a transcript starting with '\\n\\nHuman:'",
            cure="mend or remove the row",
        )
    ends = [start.start() for start in starts[1:]] + [len(text)]
    turns = [
        {
            "role": "user" if start.group(1) == "Human" else "assistant",
            "content": text[start.end() : end].removeprefix(" "),
        }
        for start, end in zip(starts, ends, strict=True)
    ]
    if is_prompt and turns[-1] == {"role": "assistant", "content": ""}:
        turns.pop()
    return tuple(turns)


def user_prompt(text: str, *, system: str | None = None) -> Prompt:
    """A one-turn prompt, after a system message if there is one."""
    before = ({"role": "system", "content": system},) if system else ()
    return (*before, {"role": "user", "content": text})


def assistant(text: str) -> tuple[Message, ...]:
    """A response as the one message that it is."""
    return ({"role": "assistant", "content": text},)


def common_prefix(first: Sequence[Message], second: Sequence[Message]) -> int:
    """Number of leading messages that two conversations share."""
    pairs = zip(first, second, strict=False)
    return next(
        (index for index, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second))
    )
