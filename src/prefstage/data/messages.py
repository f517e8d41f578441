"""Chat messages out of whatever a dataset holds: roles, contents, transcripts, JSON text."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from prefstage.data.records import Message, Prompt
from prefstage.data.rows import RowFault, expect, parse_json, show

ROLES = ("system", "developer", "user", "assistant", "tool")
SYSTEM_ROLES = ("system", "developer")
_ROLE_SPELLINGS = {
    **dict.fromkeys(("human", "prompter"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "bot", "model", "function_call"), "assistant"),
    **dict.fromkeys(("function", "observation"), "tool"),
}
# Field that stored messages have where their fields' order is not that of their column.
KEY_ORDER = "__key_order__"
_TEXT_PARTS = ("text", "input_text", "output_text")
_MEDIA_FIELDS = ("image", "image_url", "images", "input_audio", "audio", "video", "file")
_JSON_FIELDS = {"tools": "a list of tools", "tool_calls": "a list of tool calls"}
_HH_TURN = re.compile(r"\n\n(Human|Assistant):")

# How texts begin, go on and end that were written from messages: as JSON (perhaps escaped in
# JSON again), as Python prints lists of dictionaries, as numpy and pandas print arrays of them.
_OPENING = re.compile(
    r"[\s\"]*(?:\w+\()?[\[(\s]*(?:\w+\(\s*)?\{\s*\\?(['\"])(?:role|from|content|value|name|tool_calls)\\?\1\s*:"
)
_ROLE = re.compile(
    r"(['\"])(?:role|from)\\?\1\s*:\s*\\?(['\"])"
    r"(?:system|developer|user|assistant|tool|human|gpt|prompter|bot|model|function|chatgpt)\\?\2"
)
_BODY = re.compile(r"(['\"])(?:content|value|tool_calls)\\?\1\s*:")
_CLOSING = re.compile(r"\}[\s\]),\"]*(?:dtype=\w+[\s\])\"]*)?$")
_MOST_WRAPPINGS = 3

_TEMPLATE_ROLES = "system|developer|user|assistant|model|tool|human|ipython|observation|environment"
_TEMPLATE_MARKS = re.compile(
    "|".join(
        (
            r"<\|im_(?:start|end|sep|user|assistant|system|middle)\|>",  # ChatML, Phi-4, Kimi
            r"<\|(?:start|end)_header_id\|>|<\|eo[tm]_id\|>|<\|begin_of_text\|>",  # Llama 3
            r"<\|header_(?:start|end)\|>|<\|eot\|>",  # Llama 4
            r"\[/?INST\]|<</?SYS>>|\[/?(?:SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS)\]",
            r"</?(?:start|end)_of_turn>|<\|?turn\|?>(?=\w)",  # Gemma
            rf"<\|(?:{_TEMPLATE_ROLES})\|>",  # Zephyr, Phi-3, GLM-4, TuluV2
            r"<\|(?:start_of_role|end_of_role)\|>",  # Granite
            rf"<\|start\|>(?:{_TEMPLATE_ROLES})|<\|channel\|>\w+<\|message\|>",  # gpt-oss
            r"<[|｜](?:User|Assistant|begin▁of▁sentence|end▁of▁sentence)[|｜]>",  # DeepSeek
            r"<\|(?:START|END)_OF_TURN_TOKEN\|>|<\|(?:USER|CHATBOT|SYSTEM)_TOKEN\|>",  # Cohere
            r"<extra_id_[01]>(?:User|Assistant|System)|<SPECIAL_1[0-9]>(?:User|Assistant|System)",
            r"GPT4(?: Correct)? (?:User|Assistant):",  # OpenChat
            r"\[gMASK\]|<\|startoftext\|>|<\|endofprompt\|>|<reserved_10[67]>",
            r"<role>(?:HUMAN|ASSISTANT|SYSTEM)</role>",  # Ling
        )
    )
)


def parse_field(text: str, field: str, expected: str) -> Any:
    """Values of a column that must be JSON where it is text.

    Args:
        text: The JSON text.
        field: The column, for faults.
        expected: What it should have been.

    Raises:
        RowFault: If it is no JSON, or names a key twice.
    """
    try:
        return parse_json(text, field)
    except (json.JSONDecodeError, RecursionError) as error:
        raise RowFault(
            field,
            saw=f"{show(text)} ({getattr(error, 'msg', 'nested too deep')})",
            expected=expected,
            cure="mend the JSON",
        ) from None


def messages_in(text: str, field: str) -> Any | None:
    """Messages that a text spells as JSON; None for a text that only is text.

    Text that spells messages in another way, as Python and pandas print lists of
    dictionaries, cannot be read back safely and must not be trained on as text.

    Args:
        text: Any text.
        field: The column, for faults.

    Returns:
        A message, or a list of messages (some perhaps JSON text again); None for other text.

    Raises:
        RowFault: If the text is the messages' Python text, cut JSON, or names a key twice.
    """
    if not _OPENING.match(text):
        return None
    value: Any = text.strip()
    try:
        for _ in range(_MOST_WRAPPINGS):
            if isinstance(value, str):
                value = parse_json(value, field)
    except (json.JSONDecodeError, RecursionError):
        # Prose may quote a message. Only what looks like messages from its start to its end
        # (or is cut before the first of them closes) was written from messages.
        if not (_ROLE.search(text) and _BODY.search(text)) or not (
            _CLOSING.search(text) or "}" not in text
        ):
            return None
        raise RowFault(
            field,
            saw=f"messages written as text that is no JSON: {show(text)}",
            expected="messages, or their JSON text",
            cure="write the column with json.dumps(messages), or the dataset as .jsonl or "
            ".parquet; str() and pandas' to_csv write what cannot be read back",
        ) from None
    return value if _are_messages(value) else None


def _are_messages(value: Any) -> bool:
    if isinstance(value, Mapping):
        return isinstance(value.get("role", value.get("from")), str) and bool(
            {"content", "value", "tool_calls"} & value.keys()
        )
    return is_list(value) and all(
        isinstance(item, Mapping) and _are_messages(item) for item in value
    )


def is_sequence(value: Any) -> bool:
    """Whether a value is a list or the like, empty or not; a text is none."""
    return isinstance(value, Sequence) and not isinstance(value, str)


def is_list(value: Any, kind: Any = object) -> bool:
    """Whether a value is a list that is not empty, whose first item is of a type."""
    return is_sequence(value) and len(value) > 0 and isinstance(value[0], kind)


def is_messages(value: Any) -> bool:
    """Whether a value looks like a list of chat messages (the first item decides)."""
    value = _transposed(value)
    try:
        first = _parsed(value[0], "[0]") if is_list(value) else None
    except RowFault:
        return True  # reading says what is wrong with it
    return isinstance(first, Mapping) and ("role" in first or "from" in first)


def read_messages(value: Any, field: str) -> Prompt:
    """Read a list of messages in either spelling (`role`/`content` or `from`/`value`).

    Args:
        value: The list.
        field: Column name for the fault.

    Returns:
        Messages with every field that is not empty, in their order.

    Raises:
        RowFault: If it is no list of messages, or a role or content is wrong.
    """
    value = _transposed(value)
    if isinstance(value, Mapping) and {"role", "from"} & value.keys():
        value = [value]
    expect(
        is_list(value), field, value, "a list of {role, content} messages", "mend or remove the row"
    )
    return tuple(read_message(item, f"{field}[{index}]") for index, item in enumerate(value))


def _transposed(value: Any) -> Any:
    # `datasets` before its List type stored a list of objects as an object of lists.
    columns = list(value.values()) if isinstance(value, Mapping) else []
    return (
        [dict(zip(value, items, strict=True)) for items in zip(*columns, strict=True)]
        if all(map(is_sequence, columns)) and len(set(map(len, columns))) == 1
        else value
    )


def read_message(value: Any, field: str) -> Message:
    """Read one message; see `read_messages`.

    Its fields stay in their order. Fields without a value go, and content that is null
    with tool calls or in a system turn is the empty text: templates print "None" for it
    or fail, and write the same for no content and for an empty one.
    """
    value = _parsed(value, field)
    expect(
        isinstance(value, Mapping),
        *(field, value, "a message {role, content}", "mend or remove the row"),
    )
    role_key = "role" if value.get("role") else "from"
    content_key = "content" if value.get("content") is not None else "value"
    spelled = value.get(role_key)
    role = _ROLE_SPELLINGS.get(spelled, spelled) if isinstance(spelled, str) else spelled
    expect(
        role in ROLES,
        *(f"{field}.role", spelled, f"one of {', '.join(ROLES)} (or human, gpt)"),
        "rename the role",
    )
    content = _read_content(
        value.get(content_key),
        f"{field}.content",
        optional=value.get("tool_calls") is not None or role in SYSTEM_ROLES,
    )
    # Role and content are both under one name, wherever they stand and however they are spelled.
    read = {role_key: ("role", role)} | dict.fromkeys(
        (content_key, "content"), ("content", content)
    )
    message: Message = dict(
        read.get(key) or (key, _read_field(key, item, field))
        for key, item in value.items()
        if key in read or item is not None
    )
    message.setdefault("content", content)
    return in_order(message)


def in_order(message: Message) -> Message:
    """A stored message with its fields in the order that they had, without the note of it."""
    order = message.pop(KEY_ORDER, None)
    return (
        {key: message[key] for key in json.loads(order) if key in message}
        if isinstance(order, str)
        else message
    )


def _parsed(item: Any, field: str) -> Any:
    # A message that is written as JSON text is the message.
    messages = messages_in(item, field) if isinstance(item, str) else None
    return item if messages is None else messages


def _read_field(key: str, item: Any, field: str) -> Any:
    # A template that walks through tools or calls would walk through the letters of a text.
    if key not in _JSON_FIELDS or not isinstance(item, str):
        return item
    expected = f"{_JSON_FIELDS[key]}, or its JSON text"
    value = parse_field(item, f"{field}.{key}", expected)
    expect(is_sequence(value), f"{field}.{key}", item, expected, "mend the JSON")
    return value


def _read_content(content: Any, field: str, *, optional: bool) -> str:
    if isinstance(content, str) or (content is None and optional):
        return content or ""
    others = [part for part in content if not _is_text_part(part)] if is_list(content) else [None]
    if not others:
        return "".join(part["text"] for part in content)
    kind = others[0].get("type") if isinstance(others[0], Mapping) else None
    raise RowFault(
        field,
        saw=f"a part of type {kind!r}"
        if isinstance(kind, str) and kind not in _TEXT_PARTS
        else show(content),
        expected="text (or a list of text parts)",
        cure="mend or remove the row; images and audio are not supported",
    )


def _is_text_part(part: Any) -> bool:
    # Some writers give every part every field: a picture then has a text, too, which is empty.
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
    expect(
        is_transcript(text),
        *(field, text, "a transcript starting with '\\n\\nHuman:'", "mend or remove the row"),
    )
    # Split at the heads of turns: what stands before the first is empty, then name and text.
    _, *parts = _HH_TURN.split(text)
    turns = [
        {
            "role": "user" if name == "Human" else "assistant",
            "content": content.removeprefix(" "),
        }
        for name, content in zip(parts[::2], parts[1::2], strict=True)
    ]
    if is_prompt and turns[-1] == {"role": "assistant", "content": ""}:
        turns.pop()
    return tuple(turns)


def turn(text: str, role: str = "assistant") -> tuple[Message, ...]:
    """One message as the conversation that it is: a response, or a prompt of one turn."""
    return ({"role": role, "content": text},)


def common_prefix(first: Sequence[Any], second: Sequence[Any]) -> int:
    """Length of the common beginning of two texts, or of two lists of messages or tokens."""
    return (
        len(first)
        if second[: len(first)] == first  # the usual case, without a loop over its characters
        else next(
            (index for index, (a, b) in enumerate(zip(first, second, strict=False)) if a != b),
            min(len(first), len(second)),
        )
    )


def template_marks(messages: Iterable[Message]) -> Iterator[str]:
    """Marks of a chat template in the texts of some messages, as they stand there.

    Text that a chat template has written already would be put into a template once more.
    """
    return (
        match.group()
        for message in messages
        for match in _TEMPLATE_MARKS.finditer(message["content"])
    )
