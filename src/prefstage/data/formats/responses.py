"""Formats whose rows are responses by themselves: with a label, or as demonstrations."""

from collections.abc import Sequence
from typing import Any

from prefstage.data.formats.fields import (
    COMPLETION_NAMES,
    Format,
    Row,
    fields,
    first_of,
    is_filled,
    is_missing,
    is_response,
    read_number,
    read_prompt,
    read_response,
    read_source,
    with_system_and_tools,
)
from prefstage.data.labels import LabelScheme, spell
from prefstage.data.messages import (
    is_list,
    is_messages,
    is_transcript,
    read_messages,
    read_transcript,
    turn,
)
from prefstage.data.records import Conversation, Message, Prompt, Unpaired, prompt_id_of
from prefstage.data.rows import RowFault, show
from prefstage.data.validation import check_prompt, check_response, check_text

_WORDS = {"true": True, "1": True, "desirable": True}
_WORDS |= {"false": False, "0": False, "undesirable": False}
_ASKS = ("user", "tool")


def _read_unpaired(row: Row, _: LabelScheme | None) -> Unpaired:
    column = first_of(row, "completion") or COMPLETION_NAMES[0]
    prompt = read_prompt(row)
    return _unpaired(row, prompt, read_response(row.get(column), column, prompt), column)


def _read_implicit(row: Row, _: LabelScheme | None) -> Unpaired:
    turns = read_messages(row["completion"], "completion")
    return _unpaired(row, with_system_and_tools(row, turns[:-1]), turns[-1:], "completion")


def _unpaired(row: Row, prompt: Prompt, completion: Sequence[Message], column: str) -> Unpaired:
    check_prompt(prompt)
    check_response(completion, column)
    label = row.get("label")
    word = "" if label is None else spell(label)
    if word not in _WORDS:
        raise RowFault(
            "label",
            saw="nothing" if label is None else show(label),
            expected="true (desirable) or false (undesirable); 1 and 0 mean the same",
            cure="write true or false; a score is no label: choose a threshold",
        )
    return Unpaired(
        prompt_id_of(prompt),
        tuple(prompt),
        tuple(completion),
        label=_WORDS[word],
        score=read_number(row, "score"),
        source=read_source(row, "source"),
    )


_PREFERENCES = ("chosen", "rejected")
_LABEL_NOTE = "labels read as true or 1 = desirable, false or 0 = undesirable"
UNPAIRED = (
    Format(
        "trl-unpaired",
        "unpaired",
        fields("prompt", "completion", "label"),
        _read_unpaired,
        shapes={"prompt": is_filled, "completion": is_response},
        present=("label",),
        absent=_PREFERENCES,
        note=_LABEL_NOTE,
    ),
    Format(
        "trl-unpaired-implicit",
        "unpaired",
        fields("completion", "label"),
        _read_implicit,
        shapes={"prompt": is_missing},
        present=("label",),
        absent=_PREFERENCES,
        matches=lambda row: is_messages(row.get("completion")),
        note=f"prompt read as all turns of completion but the last; {_LABEL_NOTE}",
    ),
)
"""Tried in this order."""


def _read_messages_column(row: Row, _: LabelScheme | None) -> Conversation:
    column = "messages" if row.get("messages") is not None else "conversations"
    return _conversation(row, read_messages(row[column], column), column)


def _read_ultrachat(row: Row, _: LabelScheme | None) -> Conversation:
    for index, text in enumerate(row["data"]):
        check_text(text, f"data[{index}]")
    roles = ("user", "assistant")
    turns = [turn(text, roles[index % 2])[0] for index, text in enumerate(row["data"])]
    return _conversation(row, tuple(turns), "data")


def _read_transcript(row: Row, _: LabelScheme | None) -> Conversation:
    return _conversation(row, read_transcript(row["text"], "text", is_prompt=False), "text")


def _read_completion(row: Row, _: LabelScheme | None) -> Conversation:
    # A prompt, of which nothing is learnt, and what follows it.
    prompt = read_prompt(row)
    column = first_of(row, "completion") or COMPLETION_NAMES[0]
    check_prompt(prompt)
    return _checked(prompt, read_response(row[column], column, prompt), column, 0)


def _conversation(row: Row, turns: Prompt, column: str) -> Conversation:
    # The prompt ends before the first assistant turn that answers somebody: an assistant's
    # greeting before anybody spoke stays in the prompt, since no model is asked for it.
    messages = with_system_and_tools(row, turns)
    roles = [message["role"] for message in messages]
    asked = next((index for index, role in enumerate(roles) if role in _ASKS), len(roles))
    start = next((index for index in range(asked, len(roles)) if roles[index] == "assistant"), None)
    if start is None:
        raise RowFault(
            column,
            saw=f"turns {show(roles)}",
            expected="an assistant turn after a user's or a tool's",
            cure="write the answer, or remove the row",
        )
    return _checked(messages[:start], messages[start:], column, start)


def _checked(prompt: Prompt, completion: Prompt, column: str, start: int) -> Conversation:
    # `start`: where the completion begins in its column, so that faults name the turn there.
    check_prompt(prompt)
    if not completion or completion[0]["role"] != "assistant":
        raise RowFault(
            column,
            saw=f"a turn of role {completion[0]['role']!r}" if completion else "no turn",
            expected="an assistant turn after the prompt",
            cure="mend or remove the row",
        )
    before = prompt[-1]["role"]
    for index, message in enumerate(completion, start=start):
        path = f"{column}[{index}]"
        if message["role"] == "assistant" and before not in _ASKS:
            raise RowFault(
                path,
                saw=f"an assistant turn after one of role {before!r}",
                expected="a user's or a tool's turn before every assistant turn",
                cure="join both turns into one, or remove the row",
            )
        if message["role"] == "assistant" and not message.get("tool_calls"):
            check_text(message["content"], path)
        before = message["role"]
    return Conversation(prompt_id_of(prompt), prompt, completion)


def _is_dialogue(value: Any) -> bool:
    return is_list(value, str) and len(value) > 1


def _demonstrations(name: str, names: Sequence[str], read: Any, note: str, **shapes: Any) -> Format:
    return Format(
        name,
        "conversations",
        fields(*names),
        read,
        shapes=shapes,
        absent=("chosen", "rejected", "label"),
        note=note,
    )


_ALL_LEARNT = "every assistant turn is learnt"
CONVERSATIONS = (
    _demonstrations(
        "messages", ["messages"], _read_messages_column, _ALL_LEARNT, messages=is_messages
    ),
    _demonstrations(
        *("sharegpt-conversations", ["conversations"], _read_messages_column, _ALL_LEARNT),
        conversations=is_messages,
    ),
    _demonstrations(
        *("ultrachat", ["id", "data"], _read_ultrachat),
        "texts read as the user's and the assistant's by turns; the latter are learnt",
        data=_is_dialogue,
    ),
    _demonstrations("transcript", ["text"], _read_transcript, _ALL_LEARNT, text=is_transcript),
    _demonstrations(
        *("prompt-completion", ["prompt", "completion"], _read_completion),
        "the completion is learnt, the prompt is not",
        prompt=is_filled,
        completion=is_response,
    ),
)
"""Tried in this order: the more special before the more general."""
