"""Formats whose rows are demonstrations: conversations, or a prompt with its completion."""

from collections.abc import Sequence
from typing import Any

from prefstage.data.faults import RowFault, show
from prefstage.data.formats.base import (
    PROMPT_NAMES,
    Format,
    Row,
    first_of,
    read_prompt,
    read_response,
    with_system_and_tools,
)
from prefstage.data.formats.unpaired import COMPLETION_NAMES, is_response
from prefstage.data.labels import LabelScheme
from prefstage.data.messages import is_messages, is_transcript, read_messages, read_transcript
from prefstage.data.records import Conversation, Message, prompt_id_of
from prefstage.data.validation import check_prompt, check_text

_ASKS = ("user", "tool")
_ALTERNATING = ("user", "assistant")


def _read_messages_column(row: Row, _: LabelScheme | None) -> Conversation:
    field = "messages" if row.get("messages") is not None else "conversations"
    return make_conversation(with_system_and_tools(row, read_messages(row[field], field)), field)


def _read_ultrachat(row: Row, _: LabelScheme | None) -> Conversation:
    """Texts by turns: the user's, the assistant's, the user's, and so on."""
    texts = row["data"]
    for place, text in enumerate(texts):
        check_text(text, f"data[{place}]")
    turns = [{"role": _ALTERNATING[place % 2], "content": text} for place, text in enumerate(texts)]
    return make_conversation(with_system_and_tools(row, tuple(turns)), "data")


def _read_transcript(row: Row, _: LabelScheme | None) -> Conversation:
    turns = read_transcript(row["text"], "text", is_prompt=False)
    return make_conversation(with_system_and_tools(row, turns), "text")


def _read_completion(row: Row, _: LabelScheme | None) -> Conversation:
    """A prompt, of which nothing is learnt, and what follows it."""
    prompt = read_prompt(row)
    field = first_of(row, COMPLETION_NAMES) or COMPLETION_NAMES[0]
    check_prompt(prompt)
    completion = read_response(row[field], field, prompt)
    return _checked((*prompt, *completion), len(prompt), field)


def make_conversation(messages: Sequence[Message], field: str) -> Conversation:
    """A conversation of which every assistant turn that answers somebody is to be learnt.

    Args:
        messages: All turns.
        field: Column that they came from, for faults.

    Returns:
        The conversation; its prompt ends before the first such turn. An assistant's
        greeting before anybody spoke stays in the prompt.

    Raises:
        RowFault: If there is no such turn, or one is empty or follows another.
    """
    roles = [message["role"] for message in messages]
    asked = next((place for place, role in enumerate(roles) if role in _ASKS), len(roles))
    start = next((place for place in range(asked, len(roles)) if roles[place] == "assistant"), None)
    if start is None:
        raise RowFault(
            field,
            saw=f"turns {show(roles)}",
            expected="an assistant turn after a user's or a tool's",
            cure="write the answer, or remove the row",
        )
    return _checked(messages, start, field)


def _checked(messages: Sequence[Message], start: int, field: str) -> Conversation:
    prompt, completion = tuple(messages[:start]), tuple(messages[start:])
    check_prompt(prompt)
    before = prompt[-1]["role"]
    if not completion or completion[0]["role"] != "assistant":
        raise RowFault(
            field,
            saw=f"a turn of role {completion[0]['role']!r}" if completion else "no turn",
            expected="an assistant turn after the prompt",
            cure="mend or remove the row",
        )
    for place, message in enumerate(completion):
        own = f"{field}[{place + (start if is_whole(field) else 0)}]"
        if message["role"] == "assistant":
            _check_turn(message, before, own)
        before = message["role"]
    return Conversation(prompt_id_of(prompt), prompt, completion)


def is_whole(field: str) -> bool:
    """Whether a column holds whole conversations, so that its turns are counted from 0."""
    return field not in COMPLETION_NAMES


def _check_turn(message: Message, before: str, field: str) -> None:
    if before not in _ASKS:
        raise RowFault(
            field,
            saw=f"an assistant turn after one of role {before!r}",
            expected="a user's or a tool's turn before every assistant turn",
            cure="join both turns into one, or remove the row",
        )
    if not message.get("tool_calls"):
        check_text(message["content"], field)


def _is_dialogue(value: Any) -> bool:
    return (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and len(value) > 1
        and isinstance(value[0], str)
    )


def _no_preference(row: Row) -> bool:
    return not {"chosen", "rejected", "label"} & set(row)


CONVERSATIONS = (
    Format(
        name="messages",
        kind="conversations",
        needs=("messages",),
        recognises=lambda row: _no_preference(row) and is_messages(row.get("messages")),
        read=_read_messages_column,
        note="every assistant turn is learnt",
    ),
    Format(
        name="sharegpt-conversations",
        kind="conversations",
        needs=("conversations",),
        recognises=lambda row: _no_preference(row) and is_messages(row.get("conversations")),
        read=_read_messages_column,
        note="every assistant turn is learnt",
    ),
    Format(
        name="ultrachat",
        kind="conversations",
        needs=("id", "data"),
        recognises=lambda row: _no_preference(row) and _is_dialogue(row.get("data")),
        read=_read_ultrachat,
        note="texts read as the user's and the assistant's by turns; the latter are learnt",
    ),
    Format(
        name="transcript",
        kind="conversations",
        needs=("text",),
        recognises=lambda row: _no_preference(row) and is_transcript(row.get("text")),
        read=_read_transcript,
        note="every assistant turn is learnt",
    ),
    Format(
        name="prompt-completion",
        kind="conversations",
        needs=("prompt", "completion"),
        recognises=lambda row: (
            _no_preference(row)
            and first_of(row, PROMPT_NAMES) is not None
            and is_response(row.get(first_of(row, COMPLETION_NAMES) or ""))
        ),
        read=_read_completion,
        note="the completion is learnt, the prompt is not",
    ),
)
"""Tried in this order: the more special before the more general."""
