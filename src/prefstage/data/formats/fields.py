"""What a format is, a row under its roles, and how readers reach into it."""

import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any, Literal

from prefstage.data.messages import (
    is_list,
    is_messages,
    is_sequence,
    is_transcript,
    messages_in,
    parse_field,
    read_message,
    read_messages,
    read_transcript,
    turn,
)
from prefstage.data.records import Message, Prompt, Record
from prefstage.data.rows import (
    LabelScheme,
    Observations,
    RawRow,
    RowFault,
    expect,
    show,
)

Row = Mapping[str, Any]
Kind = Literal["pairs", "candidates", "answers", "unpaired", "conversations"]
PROMPT_NAMES = ("prompt", "instruction", "question", "query", "input", "context")
SYSTEM_NAMES = ("system", "system_prompt", "system_message", "sys_prompt")
ANNOTATOR_NAMES = (
    *("annotator", "annotator_id", "annotator_index", "worker", "worker_id", "rater"),
    *("rater_id", "labeler", "labeler_id", "labeller", "user", "user_id"),
)
# How datasets spell the column of a role; the first that is filled counts.
SPELLINGS = {
    "prompt": PROMPT_NAMES,
    "gold": ("gold", "reference"),  # TRL's name
    "completion": ("completion", "response", "output", "answer"),
    "responses": ("responses", "completions", "generations", "outputs", "answers", "candidates"),
    "sources": ("sources", "models", "generation_models"),
    "scores": ("scores", "ratings", "rewards", "all_rm_scores"),
    "response": ("response", "output", "completion", "answer"),
    "source": ("source", "generator", "model"),
    "score": ("score", "preference", "reward", "rating"),
    "score_chosen": ("score_chosen", "chosen_score", "chosen_rating", "chosen-rating"),
    "score_rejected": ("score_rejected", "rejected_score", "rejected_rating", "rejected-rating"),
    "source_chosen": ("source_chosen", "chosen_model", "chosen-model"),
    "source_rejected": ("source_rejected", "rejected_model", "rejected-model"),
}
is_filled, is_missing = partial(operator.is_not, None), partial(operator.is_, None)
_STAND_IN = [*turn("", "user"), *turn("")]


class SourceRow(dict[str, Any]):
    """One row under its roles, which notes the columns that are read.

    Columns without a role keep their names. Looking for a name is no reading; taking its value
    is. Text that spells messages as JSON comes out as the messages.

    Args:
        values: The row, by column.
        columns: Role to column, where they differ.
        observations: The account of the pass; None for a row that is only looked at, where
            messages stand for a text of messages that cannot be parsed (its account is read by
            nobody).
    """

    def __init__(
        self,
        values: Mapping[str, Any],
        columns: Mapping[str, str] | None = None,
        observations: Observations | None = None,
    ) -> None:
        self._columns, self._looked_at = columns or {}, observations is None
        self.observations = observations or Observations()
        self.observations.columns.update(dict.fromkeys(values))
        self._parsed: dict[str, Any] = {}
        mapped = {role: values[name] for role, name in self._columns.items() if name in values}
        others = values.keys() - self._columns.values() - mapped.keys()
        super().__init__(mapped | {name: item for name, item in values.items() if name in others})

    def __getitem__(self, name: str) -> Any:
        """The value of a role or column, which is noted as read."""
        value = super().__getitem__(name)
        column = self._columns.get(name, name)
        self.observations.used.add(column)
        if isinstance(value, str) and name not in self._parsed:
            self._parsed[name] = self._parse(value, column)
        return self._parsed.get(name, value)

    def get(self, name: str, default: Any = None) -> Any:
        """As `dict.get`; a reading, unlike the other methods."""
        return self[name] if super().__contains__(name) else default

    def peek(self, name: str) -> Any:
        """A value as it stands, or None, without noting it as read."""
        return super().get(name)

    def raw(self) -> dict[str, Any]:
        """The row under its source's columns, as it stands there; not a reading."""
        return {self._columns.get(name, name): value for name, value in self.items()}

    def _parse(self, text: str, column: str) -> Any:
        try:
            messages = messages_in(text, column)
        except RowFault:
            if not self._looked_at:
                raise
            return _STAND_IN  # so that the format is recognised, and its reader says the fault
        if messages is not None:
            self.observations.parsed[column] += 1
        return (
            [messages] if isinstance(messages, Mapping) else text if messages is None else messages
        )


@dataclass(frozen=True)
class Format:
    """One dataset format that is recognised by itself, declared as fields and their roles.

    Attributes:
        name: For reports and for `format=`.
        kind: "pairs" (a row is a pair), "candidates" (a row is a prompt with its
            responses), "answers" (a row is one response; rows are grouped by prompt),
            "unpaired" (a row is one response with a label) or "conversations".
        fields: Column to role. A column of another name than its role is read under the role.
        read: Row to record; takes the label scheme as well where `labels` is set.
        shapes: Role to what its value must be for a row to be of this format.
        present: Columns that a row of this format has, filled or not.
        absent: Columns that it does not have.
        matches: What else holds for a row of this format.
        labels: Meaning of the labels, or how it follows from the first rows and the
            dataset's name; None for formats without labels.
        gather: The source's rows to rows that `read` takes, for formats whose records do not
            stand in one row.
        note: What the report should say whenever this format is read.
    """

    name: str
    kind: Kind
    fields: Mapping[str, str]
    read: Callable[..., Record]
    shapes: Mapping[str, Callable[[Any], bool]] = field(default_factory=dict)
    present: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    matches: Callable[[Row], bool] | None = None
    labels: LabelScheme | Callable[[Sequence[Row], str], LabelScheme] | None = None
    gather: Callable[[Iterator[RawRow], Observations], Iterator[RawRow]] = lambda rows, _: rows
    note: str | None = None

    @property
    def renamed(self) -> dict[str, str]:
        """Role to column, where they differ."""
        return {role: column for column, role in self.fields.items() if role != column}

    def recognises(self, row: Row) -> bool:
        """Whether a row is of this format."""
        columns = {role: self.renamed.get(role) or first_of(row, role) for role in self.shapes}
        return (
            all(name in row for name in self.present)
            and not any(name in row for name in self.absent)
            and all(test(row.get(columns[role] or role)) for role, test in self.shapes.items())
            and (self.matches is None or self.matches(row))
        )


def fields(*same: str, **roles: str) -> dict[str, str]:
    """Fields of a format: columns that are named as their roles, and ``column="role"``."""
    return {**roles, **{name: name for name in same}}


def is_text(value: Any) -> bool:
    """Whether a value is text."""
    return isinstance(value, str)


def is_response(value: Any) -> bool:
    """Whether a value may be a response: text, or messages."""
    return isinstance(value, str) or is_messages(value)


def object_with(*keys: str) -> Callable[[Any], bool]:
    """Whether a value is an object with some fields."""
    return lambda value: isinstance(value, Mapping) and set(keys) <= value.keys()


def list_of(test: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Whether a value is a list whose first item passes a test."""
    return lambda value: is_list(value) and test(value[0])


def first_of(row: Row, role: str) -> str | None:
    """The first column that is filled among the spellings of a role; None if none is."""
    # Most spellings are no column of the row: asking for the key first costs a tenth of `get`.
    return next((n for n in SPELLINGS.get(role, (role,)) if n in row and row[n] is not None), None)


def require(row: Row, role: str) -> Any:
    """The value of the first filled column of a role.

    Raises:
        RowFault: If none is.
    """
    name = first_of(row, role)
    if name is None:
        first = SPELLINGS.get(role, (role,))[0]
        raise RowFault(
            first,
            saw="nothing" if first in row else "no such field",
            expected="a value",
            cure="fill the field, or remove the row",
        )
    return row[name]


def read_text(row: Row, role: str) -> str:
    """A text column, which may be empty but not of another type."""
    value, name = require(row, role), first_of(row, role) or role
    expect(isinstance(value, str), name, value, "text", "turn it into text, or remove the row")
    return str(value)


def read_number(row: Row, name: str) -> float | None:
    """A numeric column; missing, empty and NaN mean unknown (None)."""
    value = row.get(name)
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        number = math.inf if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.inf
    expect(
        not math.isinf(number),
        *(name, value, "a finite number, or nothing", "mend the value, or leave it empty"),
    )
    return None if math.isnan(number) else number


def read_source(row: Row, name: str) -> str | None:
    """A column that names who wrote a response; missing means unknown (None)."""
    return None if row.get(name) is None else read_text(row, name)


def read_optional(row: Row, role: str) -> Any:
    """The number or writer of a role, from whichever of its columns is filled, or None."""
    column = first_of(row, role) or role
    return read_source(row, column) if role.startswith("source") else read_number(row, column)


def read_annotator(row: SourceRow) -> str | None:
    """Who labelled a row's pair.

    Args:
        row: The row.

    Returns:
        The annotator's name (numbers as text), or None if the row names nobody.

    Raises:
        RowFault: If the column holds no name.
    """
    name = next((n for n in ANNOTATOR_NAMES if n in row and row[n] not in (None, "")), None)
    value = "" if name is None else row[name]
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # as tables write a column of numbers in which some are missing
    expect(
        isinstance(value, str | int) and not isinstance(value, bool),
        *(str(name), value, "the annotator's name or number", "mend or empty the field"),
    )
    return str(value).strip() or None


def read_prompt(row: SourceRow) -> Prompt:
    """The prompt of a row: text, messages or a transcript, with what belongs to it.

    A column of `SYSTEM_NAMES` becomes the system message, Alpaca's `input` follows the
    `instruction` after a line break and its `history` goes before it, and `tools` are
    kept with the first message.

    Raises:
        RowFault: If there is no prompt, or a part of it is of a wrong type.
    """
    value = require(row, "prompt")
    name = first_of(row, "prompt") or "prompt"
    if isinstance(value, str) and name == "instruction" and row.get("input"):
        value = f"{value}\n{read_text(row, 'input')}"
    prompt = (
        read_transcript(value, name, is_prompt=True)
        if is_transcript(value)
        else turn(value, "user")
        if isinstance(value, str)
        else read_messages(value, name)
    )
    history = row.get("history") or ()
    expect(
        isinstance(history, Sequence)
        and all(
            isinstance(texts, Sequence) and [type(text) for text in texts] == [str, str]
            for texts in history
        ),
        *("history", history, "a list of [user, assistant] texts", "mend or empty the field"),
    )
    return with_system_and_tools(
        row,
        (
            *chain.from_iterable(turn(asked, "user") + turn(reply) for asked, reply in history),
            *prompt,
        ),
    )


def with_system_and_tools(row: SourceRow, prompt: Prompt) -> Prompt:
    """Put the row's columns of a system turn and of tools into the prompt's first message."""
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
    name, system = next(iter((filled or texts).items()), ("", ""))
    has_system = bool(prompt) and prompt[0]["role"] == "system"
    RowFault.unless(
        not has_system or not system.strip() or prompt[0]["content"] == system,
        name,
        saw=f"{show(system)} beside a system turn in the prompt",
        expected="one system message",
        cure="empty the column, or remove the turn",
    )
    if system and not has_system:
        prompt = (*turn(system, "system"), *prompt)
        if system.strip() and name != "system":
            row.observations.systems[name] += 1
    tools = _read_tools(row.get("tools"))
    if tools and prompt:
        RowFault.unless(
            prompt[0].get("tools") in (None, tools),
            "tools",
            saw="other tools in the first message",
            expected="one list of tools",
            cure="empty the column, or remove the message's tools",
        )
        prompt = ({**prompt[0], "tools": tools}, *prompt[1:])
    return prompt


def read_response(value: Any, field: str, prompt: Prompt = ()) -> tuple[Message, ...]:
    """A response: text, one message, or messages (which may repeat the prompt first).

    Raises:
        RowFault: If it is of another type.
    """
    if isinstance(value, str):
        return turn(value)
    if isinstance(value, Mapping) and not is_messages(value):
        return (read_message(value, field),)
    expect(
        is_messages(value),
        *(field, value, "text or {role, content} messages", "fill the field, or remove the row"),
    )
    turns = read_messages(value, field)
    # A column of tools went into the prompt's first message, where the conversation has none.
    bare = tuple({k: item for k, item in message.items() if k != "tools"} for message in prompt)
    repeats_prompt = len(turns) > len(bare) and turns[: len(bare)] == bare
    return turns[len(bare) :] if repeats_prompt else turns


def _read_tools(tools: Any) -> Any:
    # A list of tools: objects, or the JSON text of the list or of its items.
    expected = "a list of tools, or its JSON text"
    if isinstance(tools, str):
        tools = parse_field(tools, "tools", expected) if tools.strip() else None
    tools = [tools] if isinstance(tools, Mapping) else tools or []
    expect(is_sequence(tools), "tools", tools, expected, "mend the field")
    return [
        parse_field(tool, f"tools[{index}]", "a tool, or its JSON text")
        if isinstance(tool, str)
        else tool
        for index, tool in enumerate(tools)
    ]
