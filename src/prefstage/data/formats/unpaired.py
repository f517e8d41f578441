"""Formats whose rows are one response with a label: desirable or not."""

from collections.abc import Sequence
from typing import Any

from prefstage.data.faults import RowFault, show
from prefstage.data.formats.base import (
    PROMPT_NAMES,
    Format,
    Row,
    first_of,
    read_number,
    read_prompt,
    read_response,
    read_source,
    with_system_and_tools,
)
from prefstage.data.labels import LabelScheme, spell
from prefstage.data.messages import is_messages, read_messages
from prefstage.data.records import Message, Prompt, Unpaired, prompt_id_of
from prefstage.data.validation import check_prompt, check_response

COMPLETION_NAMES = ("completion", "response", "output", "answer")
_WORDS = {"true": True, "false": False, "1": True, "0": False}
_WORDS |= {"desirable": True, "undesirable": False}


def is_response(value: Any) -> bool:
    """Whether a value may be a response: text, or messages."""
    return isinstance(value, str) or is_messages(value)


def split_conversation(row: Row, field: str) -> tuple[Prompt, Sequence[Message]]:
    """A whole conversation as the prompt and the last turn."""
    turns = read_messages(row[field], field)
    return with_system_and_tools(row, turns[:-1]), turns[-1:]


def _read(row: Row, _: LabelScheme | None) -> Unpaired:
    field = first_of(row, COMPLETION_NAMES) or COMPLETION_NAMES[0]
    prompt = read_prompt(row)
    return _made(row, prompt, read_response(row.get(field), field, prompt), field)


def _read_implicit(row: Row, _: LabelScheme | None) -> Unpaired:
    return _made(row, *split_conversation(row, "completion"), "completion")


def _made(row: Row, prompt: Prompt, completion: Sequence[Message], field: str) -> Unpaired:
    check_prompt(prompt)
    check_response(completion, field)
    return Unpaired(
        prompt_id_of(prompt),
        tuple(prompt),
        tuple(completion),
        label=_read_label(row.get("label")),
        score=read_number(row, "score"),
        source=read_source(row, "source"),
    )


def _read_label(value: Any) -> bool:
    word = "" if value is None else spell(value)
    if word not in _WORDS:
        raise RowFault(
            "label",
            saw="nothing" if value is None else show(value),
            expected="true (desirable) or false (undesirable); 1 and 0 mean the same",
            cure="write true or false; a score is no label: choose a threshold",
        )
    return _WORDS[word]


def _has_label(row: Row) -> bool:
    return "label" in row and not {"chosen", "rejected"} & set(row)


UNPAIRED = (
    Format(
        name="trl-unpaired",
        kind="unpaired",
        needs=("prompt", "completion", "label"),
        recognises=lambda row: (
            _has_label(row)
            and first_of(row, PROMPT_NAMES) is not None
            and is_response(row.get(first_of(row, COMPLETION_NAMES) or ""))
        ),
        read=_read,
        note="labels read as true or 1 = desirable, false or 0 = undesirable",
    ),
    Format(
        name="trl-unpaired-implicit",
        kind="unpaired",
        needs=("completion", "label"),
        recognises=lambda row: (
            _has_label(row)
            and first_of(row, PROMPT_NAMES) is None
            and is_messages(row.get("completion"))
        ),
        read=_read_implicit,
        note="prompt read as all turns of completion but the last; labels read as true or 1 = "
        "desirable, false or 0 = undesirable",
    ),
)
"""Tried in this order."""
