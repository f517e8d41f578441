"""JSON text to values without a loss, and messages that a dataset holds as text."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from prefstage.data.faults import RowFault, show

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


class DuplicatedKey(ValueError):  # noqa: N818 - a finding about a text; users see a RowFault
    """A JSON object names one key twice, so that one of two values would be lost.

    Attributes:
        key: The key.
    """

    def __init__(self, key: str) -> None:
        super().__init__(f"the key {key!r} twice in one object")
        self.key = key

    def fault(self, field: str = "") -> RowFault:
        """What is wrong with the row.

        Args:
            field: Where the object stands, or empty if the row itself names the key twice.

        Returns:
            The fault, to be raised.
        """
        return RowFault(
            field or self.key,
            saw=str(self),
            expected="every key once",
            cure="rename or remove one of the two: only one of their values could be kept",
        )


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of a list of keys and values, for `json` to call.

    Raises:
        DuplicatedKey: If a key stands twice.
    """
    values = dict(pairs)
    if len(values) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise DuplicatedKey(key)
            seen.add(key)
    return values


def parse_json(text: str) -> Any:
    """Values of JSON text: numbers exactly, keys in their order, none of them twice.

    Raises:
        json.JSONDecodeError: If the text is no JSON.
        DuplicatedKey: If an object names a key twice.
    """
    return json.loads(text, object_pairs_hook=unique_keys)


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
        return parse_json(text)
    except DuplicatedKey as error:
        raise error.fault(field) from None
    except (json.JSONDecodeError, RecursionError) as error:
        reason = getattr(error, "msg", "nested too deep")
        raise RowFault(
            field, saw=f"{show(text)} ({reason})", expected=expected, cure="mend the JSON"
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
                value = parse_json(value)
    except DuplicatedKey as error:
        raise error.fault(field) from None
    except (json.JSONDecodeError, RecursionError):
        if _is_broken(text):
            raise _not_json(text, field) from None
        return None
    return value if _are_messages(value) else None


def _is_broken(text: str) -> bool:
    """Whether a text that is no JSON was written from messages, from its start to its end."""
    spelled = _ROLE.search(text) is not None and _BODY.search(text) is not None
    return spelled and (_CLOSING.search(text) is not None or "}" not in text)


def _not_json(text: str, field: str) -> RowFault:
    return RowFault(
        field,
        saw=f"messages written as text that is no JSON: {show(text)}",
        expected="messages, or their JSON text",
        cure="write the column with json.dumps(messages), or the dataset as .jsonl or .parquet; "
        "str() and pandas' to_csv write what cannot be read back",
    )


def _are_messages(value: Any) -> bool:
    """Whether values are a message, or a list of nothing but messages."""
    if isinstance(value, Mapping):
        named = value.get("role", value.get("from"))
        return isinstance(named, str) and bool({"content", "value", "tool_calls"} & value.keys())
    listed = isinstance(value, Sequence) and not isinstance(value, str) and len(value) > 0
    return listed and all(isinstance(item, Mapping) and _are_messages(item) for item in value)
