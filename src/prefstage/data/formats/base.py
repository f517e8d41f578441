"""What a format is, and how its readers reach into a row."""

import math
from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from prefstage.data.faults import RowFault, show
from prefstage.data.json_text import parse_field
from prefstage.data.labels import LabelScheme
from prefstage.data.messages import (
    assistant,
    is_messages,
    is_transcript,
    read_message,
    read_messages,
    read_transcript,
)
from prefstage.data.observations import Observations, SourceRow
from prefstage.data.raw_rows import RawRow
from prefstage.data.records import Message, Prompt, Record

Row = Mapping[str, Any]
SYSTEM_NAMES = ("system", "system_prompt", "system_message", "sys_prompt")
PROMPT_NAMES = ("prompt", "instruction", "question", "query", "input", "context")


@dataclass(frozen=True)
class Format:
    """One dataset format that is recognised unaided.

    Attributes:
        name: For reports and for `format=`.
        kind: "pairs" (a row is a pair), "candidates" (a row is a prompt with its
            responses), "answers" (a row is one response; rows are grouped by prompt),
            "unpaired" (a row is one response with a label) or "conversations".
        needs: The columns it is known by, for the nearest-format hint.
        recognises: Whether a row is of this format.
        read: Row to record; the label scheme is given where `labels` is.
        labels: Meaning of the labels, from the first rows and the dataset's name; None
            for formats without labels.
        gather: For formats whose records do not stand in one row each: the source's rows to
            rows that `read` takes.
        note: What the report should say whenever this format is read.
    """

    name: str
    kind: Literal["pairs", "candidates", "answers", "unpaired", "conversations"]
    needs: tuple[str, ...]
    recognises: Callable[[Row], bool]
    read: Callable[[Row, LabelScheme | None], Record]
    labels: Callable[[Sequence[Row], str], LabelScheme] | None = None
    gather: Callable[[Iterator[RawRow], Observations], Iterator[RawRow]] | None = None
    note: str | None = None


def overlaid(row: Row, **values: Any) -> Row:
    """The row with other values under some names; what is not looked at stays unread.

    Args:
        row: The row.
        values: By name, what stands before the row's own.

    Returns:
        A view of both.
    """
    return ChainMap(values, cast("dict[str, Any]", row))


def first_of(row: Row, names: Sequence[str]) -> str | None:
    """The first of some column names that the row has, filled."""
    return next((name for name in names if row.get(name) is not None), None)


def require(row: Row, *names: str) -> Any:
    """The value of the first of these columns that is filled.

    Raises:
        RowFault: If none is.
    """
    name = first_of(row, names)
    if name is None:
        raise RowFault(
            names[0],
            saw="nothing" if names[0] in row else "no such field",
            expected="a value",
            cure="fill the field, or remove the row",
        )
    return row[name]


def read_text(row: Row, *names: str) -> str:
    """A text column, which may be empty but not of another type."""
    value = require(row, *names)
    if not isinstance(value, str):
        raise RowFault(
            first_of(row, names) or names[0],
            saw=show(value),
            expected="text",
            cure="turn it into text, or remove the row",
        )
    return value


def read_number(row: Row, name: str) -> float | None:
    """A numeric column; missing, empty and NaN mean unknown (None)."""
    value = row.get(name)
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        number = math.inf if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.inf
    if math.isinf(number):
        raise RowFault(
            name,
            saw=show(value),
            expected="a finite number, or nothing",
            cure="mend the value, or leave it empty",
        )
    return None if math.isnan(number) else number


def read_source(row: Row, name: str) -> str | None:
    """A column that names who wrote a response; missing means unknown (None)."""
    return None if row.get(name) is None else read_text(row, name)


def read_prompt(row: Row, *names: str) -> Prompt:
    """The prompt of a row: text, messages or a transcript, with what belongs to it.

    A column of `SYSTEM_NAMES` becomes the system message, Alpaca's `input` follows the
    `instruction` after a line break and its `history` goes before it, and `tools` are
    kept with the first message.

    Args:
        row: The raw row.
        names: Column names to try, by default `PROMPT_NAMES`.

    Raises:
        RowFault: If there is no prompt, or a part of it is of a wrong type.
    """
    names = names or PROMPT_NAMES
    value = require(row, *names)
    field = first_of(row, names) or names[0]
    if isinstance(value, str):
        if field == "instruction" and row.get("input"):
            value = f"{value}\n{read_text(row, 'input')}"
        if is_transcript(value):
            prompt = read_transcript(value, field, is_prompt=True)
        else:
            prompt = _user(value)
    else:
        prompt = read_messages(value, field)
    return with_system_and_tools(row, (*_read_history(row), *prompt))


def with_system_and_tools(row: Row, prompt: Prompt) -> Prompt:
    """Put the row's columns of a system turn and of tools into the prompt's first message."""
    name, system = _read_system(row)
    if name and system:
        if prompt and prompt[0]["role"] == "system":
            if system.strip() and prompt[0]["content"] != system:
                raise RowFault(
                    name,
                    saw=f"{show(system)} beside a system turn in the prompt",
                    expected="one system message",
                    cure="empty the column, or remove the turn",
                )
        else:
            prompt = ({"role": "system", "content": system}, *prompt)
            if system.strip():
                _note_system(row, name)
    tools = _read_tools(row.get("tools"))
    if tools and prompt:
        if prompt[0].get("tools") not in (None, tools):
            raise RowFault(
                "tools",
                saw="other tools in the first message",
                expected="one list of tools",
                cure="empty the column, or remove the message's tools",
            )
        prompt = ({**prompt[0], "tools": tools}, *prompt[1:])
    return prompt


def _note_system(row: Row, name: str) -> None:
    """Say in the report that a column of another name than `system` gave the system turn."""
    while isinstance(row, ChainMap):
        row = row.maps[-1]
    if name != "system" and isinstance(row, SourceRow) and row.observations is not None:
        row.observations.systems[name] += 1


def _read_system(row: Row) -> tuple[str | None, str]:
    """The column of the system turn, and its text."""
    texts = {name: read_text(row, name) for name in SYSTEM_NAMES if row.get(name) is not None}
    filled = {name: text for name, text in texts.items() if text.strip()}
    if len(set(filled.values())) > 1:
        first, second = list(filled)[:2]
        raise RowFault(
            second,
            saw=f"{show(filled[second])} beside {show(filled[first])} in {first}",
            expected="one system message",
            cure="empty one of the columns",
        )
    name, text = next(iter((filled or texts).items()), (None, ""))
    return name, text


def read_response(value: Any, field: str, prompt: Prompt = ()) -> tuple[Message, ...]:
    """A response: text, one message, or messages (which may repeat the prompt first).

    Raises:
        RowFault: If it is of another type.
    """
    if isinstance(value, str):
        return assistant(value)
    if isinstance(value, Mapping) and not is_messages(value):
        return (read_message(value, field),)
    if not is_messages(value):
        raise RowFault(
            field,
            saw="nothing" if value is None else show(value),
            expected="text or {role, content} messages",
            cure="fill the field, or remove the row",
        )
    turns = read_messages(value, field)
    bare = tuple({key: item for key, item in turn.items() if key != "tools"} for turn in prompt)
    if bare and len(turns) > len(bare) and turns[: len(bare)] == bare:
        return turns[len(bare) :]
    return turns


def _user(text: str) -> Prompt:
    return ({"role": "user", "content": text},)


def _read_history(row: Row) -> Prompt:
    history = row.get("history")
    if not history:
        return ()
    pairs = isinstance(history, Sequence) and all(
        isinstance(turn, Sequence) and [type(text) for text in turn] == [str, str]
        for turn in history
    )
    if not pairs:
        raise RowFault(
            "history",
            saw=show(history),
            expected="a list of [user, assistant] texts",
            cure="mend or empty the field",
        )
    return tuple(
        {"role": role, "content": text}
        for turn in history
        for role, text in zip(("user", "assistant"), turn, strict=True)
    )


def _read_tools(tools: Any) -> Any:
    """A list of tools: objects, or the JSON text of the list or of its items."""
    expected = "a list of tools, or its JSON text"
    if isinstance(tools, str):
        tools = parse_field(tools, "tools", expected) if tools.strip() else None
    if isinstance(tools, Mapping):
        tools = [tools]
    if not tools:
        return None
    if isinstance(tools, str) or not isinstance(tools, Sequence):
        raise RowFault("tools", saw=show(tools), expected=expected, cure="mend the field")
    return [
        parse_field(tool, f"tools[{index}]", "a tool, or its JSON text")
        if isinstance(tool, str)
        else tool
        for index, tool in enumerate(tools)
    ]
