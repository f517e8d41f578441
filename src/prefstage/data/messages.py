"""Chat messages out of whatever a dataset holds: roles, contents, transcripts, prompts."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from prefstage.data.faults import RowFault, show
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
_HH_TURN = re.compile(r"\n\n(Human|Assistant):")


def is_messages(value: Any) -> bool:
    """Whether a value looks like a list of chat messages (the first item decides)."""
    value = _transposed(value)
    return (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and len(value) > 0
        and isinstance(value[0], Mapping)
        and ("role" in value[0] or "from" in value[0])
    )


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
    """Read one message; see `read_messages`."""
    if not isinstance(value, Mapping):
        raise RowFault(
            field,
            saw=show(value),
            expected="a message {role, content}",
            cure="mend or remove the row",
        )
    kept = {key: item for key, item in value.items() if item is not None}
    role = kept.pop("role", None) or kept.pop("from", None)
    spelled = _ROLE_SPELLINGS.get(role, role) if isinstance(role, str) else role
    if spelled not in ROLES:
        raise RowFault(
            f"{field}.role",
            saw=show(role),
            expected=f"one of {', '.join(ROLES)} (or human, gpt)",
            cure="rename the role",
        )
    content = kept.pop("content", None)
    if content is None:
        content = kept.pop("value", None)
    text = _read_content(content, f"{field}.content", optional="tool_calls" in kept)
    return {"role": spelled, "content": text, **kept}


def _read_content(content: Any, field: str, *, optional: bool) -> str:
    if content is None and optional:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence) and content:
        parts = [part for part in content if isinstance(part, Mapping)]
        if len(parts) == len(content) and all(isinstance(part.get("text"), str) for part in parts):
            return "".join(part["text"] for part in parts)
    raise RowFault(
        field,
        saw=show(content),
        expected="text (or a list of text parts)",
        cure="mend or remove the row; images and audio are not supported",
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
