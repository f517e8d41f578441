"""Formats of prompts with responses: several in a row, one answer a row, or trees of messages."""

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from prefstage.data.formats.fields import (
    Format,
    Row,
    SourceRow,
    fields,
    first_of,
    is_filled,
    is_text,
    list_of,
    object_with,
    observations_of,
    read_number,
    read_optional,
    read_prompt,
    read_source,
    read_text,
    require,
)
from prefstage.data.labels import LabelScheme
from prefstage.data.messages import is_list, messages_in, read_message, read_messages
from prefstage.data.records import Candidates, Generation, Message
from prefstage.data.rows import Observations, RawRow, RowFault, show
from prefstage.data.validation import check_response, make_candidates


def _read_candidates(row: Row, _: LabelScheme | None) -> Candidates:
    responses = _read_texts(row, first_of(row, "responses") or "responses")
    sources, scores = first_of(row, "sources"), first_of(row, "scores")
    return make_candidates(
        read_prompt(row),
        responses,
        sources=_items(row, sources, read_source) if sources else None,
        scores=_items(row, scores, read_number) if scores else None,
        generations=_read_generations(row),
    )


def _read_texts(row: Row, column: str) -> Sequence[Any]:
    # The responses; where all of them are JSON text of a message, their contents.
    responses = _read_list(row, column)
    spelled = [
        messages_in(text, f"{column}[{index}]") if isinstance(text, str) else None
        for index, text in enumerate(responses)
    ]
    if None in spelled:
        return responses
    observations = observations_of(row)
    if observations is not None:
        observations.parsed[column] += 1
    return [_content(value, f"{column}[{index}]") for index, value in enumerate(spelled)]


def _content(value: Any, path: str) -> str:
    messages = read_messages(value, path)
    check_response(messages, path)
    more = messages[0].keys() - {"role", "content"}
    if more:
        raise RowFault(
            path,
            saw=f"a message with {', '.join(sorted(more))}",
            expected="a message with nothing but role and content",
            cure="load such rows as pairs (load_pairs), or remove them",
        )
    return str(messages[0]["content"])


def _read_generations(row: Row) -> list[Generation | None]:
    # How a policy wrote the responses, as our files have it; others have texts of this name.
    generations = row.get("generations")
    if not is_list(generations, Mapping | None):
        return []
    return [
        None if item is None else _generation(item, f"generations[{index}]")
        for index, item in enumerate(generations or ())
    ]


def _generation(value: Any, path: str) -> Generation:
    try:
        ids = tuple(map(operator.index, value.get("token_ids") or ()))
        return Generation(value.get("thought"), ids, value.get("tokenizer") or "")
    except (TypeError, AttributeError):
        raise RowFault(
            path,
            saw=show(value),
            expected="{thought, token_ids, tokenizer}, or null",
            cure="mend or empty the field",
        ) from None


def _read_list(row: Row, column: str) -> Sequence[Any]:
    value = require(row, column)
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise RowFault(
            column, saw=show(value), expected="a list", cure="make it a list, one item a response"
        )
    return value


def _items(row: Row, column: str, read: Callable[[Row, str], Any]) -> list[Any]:
    items = {f"{column}[{index}]": item for index, item in enumerate(_read_list(row, column))}
    return [read(items, name) for name in items]


def _read_objects(row: Row, column: str, paths: Mapping[str, str]) -> Candidates:
    texts, sources, scores = [], [], []
    for index, item in enumerate(_read_list(row, column)):
        path = f"{column}[{index}]"
        if not isinstance(item, Mapping):
            raise RowFault(
                path,
                saw=show(item),
                expected=f"an object with {paths['response']} and {paths['score']}",
                cure="mend or remove the row",
            )
        values = {f"{path}.{key}": value for key, value in item.items()}
        texts.append(read_text(values, f"{path}.{paths['response']}"))
        sources.append(read_source(values, f"{path}.{paths.get('source')}"))
        scores.append(read_number(values, f"{path}.{paths['score']}"))
    return make_candidates(read_prompt(row), texts, sources=sources, scores=scores)


def _of_objects(name: str, prompt: str, column: str, *more: str, note: str, **paths: str) -> Format:
    """A format of a list of objects; `paths` say which field of an object has which role."""
    return Format(
        name,
        "candidates",
        fields(prompt, column, *more),
        lambda row, _: _read_objects(row, column, paths),
        shapes={
            "prompt": is_filled,
            column: list_of(object_with(paths["response"], paths["score"])),
        },
        note=note,
    )


def _read_answer(row: Row, _: LabelScheme | None) -> Candidates:
    column = first_of(row, "response") or "output"
    return make_candidates(
        read_prompt(row),
        [read_text(row, column)],
        sources=[read_optional(row, "source")],
        scores=[read_optional(row, "score")],
        column=column,
    )


LISTED = (
    _of_objects(
        "ultrafeedback",
        *("instruction", "completions", "models"),
        **{"response": "response", "source": "model", "score": "overall_score"},
        note="scores are overall_score; format='ultrafeedback-fine-grained' reads the other",
    ),
    _of_objects(
        "ultrafeedback-fine-grained",
        *("instruction", "completions", "models"),
        **{"response": "response", "source": "model", "score": "fine-grained_score"},
        note="scores are fine-grained_score",
    ),
    _of_objects(
        "stackexchange",
        *("question", "answers"),
        **{"response": "text", "score": "pm_score"},
        note="scores are pm_score; texts stay HTML where they are; authors and the accepted "
        "answer are not used",
    ),
    Format(
        "candidates",
        "candidates",
        fields("prompt", "responses", "sources", "scores"),
        _read_candidates,
        shapes={"prompt": is_filled, "responses": list_of(is_text)},
    ),
    Format(
        "model-outputs",
        "answers",
        fields("instruction", "output", "generator"),
        _read_answer,
        shapes={"prompt": is_filled, "response": is_text, "source": is_filled},
        note="one row per answer; rows grouped by prompt",
    ),
)
"""Tried in this order: the more special before the more general."""


@dataclass(eq=False)
class _Node:
    """One message of OpenAssistant's trees, whose messages answer each other, with ranks."""

    row: RawRow
    message: Message
    rank: float | None
    deleted: bool
    parent: str | None = None
    replies: list["_Node"] = field(default_factory=list)


@dataclass
class _Tally:
    trees: int = 0
    messages: int = 0
    prompts: int = 0
    unanswered: int = 0
    deleted: int = 0

    def note(self) -> str:
        left_out = {
            "user turns that nobody answers": self.unanswered,
            "deleted messages with what follows them": self.deleted,
        }
        read = f"{self.messages} messages of {self.trees} trees hold {self.prompts} prompts"
        counts = [f"{count} {what} left out" for what, count in left_out.items() if count]
        return "; ".join([read, *counts])


def _gather_flat(rows: Iterator[RawRow], observations: Observations) -> Iterator[RawRow]:
    # Rows are one message each, in any order: a parent may come last, so all are held in memory.
    nodes, tally, reached = dict[str, _Node](), _Tally(), set[int]()
    for row in rows:
        try:
            _add_message(nodes, row)
        except RowFault as fault:
            yield replace(row, fault=fault)
    for node in nodes.values():
        if node.parent in nodes:
            nodes[node.parent].replies.append(node)
    for node in nodes.values():
        if node.parent is None:
            yield from _prompts_of(node, tally, reached)
    for node in nodes.values():
        if id(node) not in reached:
            end = "which leads to no root" if node.parent in nodes else "no message read"
            lost = RowFault(
                "parent_id",
                saw=f"{show(node.parent)}, {end}",
                expected="the message_id of a good row, or null for the first message of a tree",
                cure="mend or remove the row",
            )
            yield replace(node.row, fault=lost)
    observations.more.append(tally.note())


def _add_message(nodes: dict[str, _Node], row: RawRow) -> None:
    values = _values(row)
    name, parent = str(require(values, "message_id")), values.get("parent_id")
    if name in nodes:
        raise RowFault(
            "message_id",
            saw=f"{show(name)}, as in row {nodes[name].row.number}",
            expected="an id for every message",
            cure="remove one of the two rows",
        )
    nodes[name] = _node(row, values)
    nodes[name].parent = None if parent is None else str(parent)


def _values(row: RawRow) -> Row:
    if row.fault is not None:
        raise row.fault
    row.values.get("message_tree_id")  # counted as read: the parents say the same
    values: Row = row.values
    return values


def _node(row: RawRow, values: Any, path: str = "") -> _Node:
    if not isinstance(values, Mapping):
        raise RowFault(path, saw=show(values), expected="a message", cure="mend or remove the row")
    turn = {"role": require(values, "role"), "content": read_text(values, "text")}
    deleted = bool(values.get("deleted"))
    return _Node(row, read_message(turn, "message"), read_number(values, "rank"), deleted)


def _gather_nested(rows: Iterator[RawRow], observations: Observations) -> Iterator[RawRow]:
    # Rows are one tree each, whose messages hold their replies.
    tally = _Tally()
    for row in rows:
        try:
            top = require(_values(row), "prompt")
            root = _node(row, top, "prompt")
            waiting = [(root, top, "prompt")]  # no recursion: trees are deeper than the stack
            while waiting:
                node, values, path = waiting.pop()
                for index, reply in enumerate(values.get("replies") or ()):
                    position = f"{path}.replies[{index}]"
                    node.replies.append(_node(row, reply, position))
                    waiting.append((node.replies[-1], reply, position))
        except RowFault as fault:
            yield replace(row, fault=fault)
        else:
            yield from _prompts_of(root, tally, set())
    observations.more.append(tally.note())


def _prompts_of(root: _Node, tally: _Tally, reached: set[int]) -> Iterator[RawRow]:
    # Every user turn of a tree that has replies, with all that was said before it.
    tally.trees += 1
    waiting: list[tuple[_Node, tuple[Message, ...], bool]] = [(root, (), False)]
    while waiting:
        node, before, dropped = waiting.pop()
        reached.add(id(node))
        dropped = dropped or node.deleted
        tally.messages += 1
        tally.deleted += dropped
        turns = (*before, node.message)
        waiting += [(reply, turns, dropped) for reply in reversed(node.replies)]
        if node.message["role"] == "assistant" or dropped:
            continue
        replies = [r for r in node.replies if r.message["role"] == "assistant" and not r.deleted]
        tally.prompts += bool(replies)
        tally.unanswered += not replies
        if replies:
            replies.sort(key=lambda reply: (reply.rank is None, reply.rank or 0))
            values = {
                "prompt": turns,
                "responses": [reply.message["content"] for reply in replies],
                # Rank 0 is the best reply, and the highest score; 0.0 - 0 is no minus zero.
                "scores": [None if reply.rank is None else 0.0 - reply.rank for reply in replies],
            }
            yield replace(node.row, values=SourceRow(values))


def _read_prompt_of_tree(row: Row, _: LabelScheme | None) -> Candidates:
    return make_candidates(row["prompt"], row["responses"], scores=row["scores"])


_FLAT = ("message_id", "parent_id", "text", "role", "message_tree_id")
_RANK_NOTE = "scores are minus the rank (0 is the best reply); replies without a rank have none"
TREES = (
    Format(
        "openassistant-trees",
        "candidates",
        fields("message_tree_id", "prompt"),
        _read_prompt_of_tree,
        shapes={"prompt": object_with("text", "replies")},
        gather=_gather_nested,
        note=_RANK_NOTE,
    ),
    Format(
        "openassistant-messages",
        "answers",
        fields(*_FLAT),
        _read_prompt_of_tree,
        present=_FLAT,
        gather=_gather_flat,
        note=_RANK_NOTE,
    ),
)
"""Tried in this order."""
