"""OpenAssistant's trees: messages that answer each other, with ranks; one prompt a user turn."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from prefstage.data.faults import RowFault, show
from prefstage.data.formats.base import Format, Row, read_number, read_text, require
from prefstage.data.labels import LabelScheme
from prefstage.data.messages import read_message
from prefstage.data.observations import Observations, SourceRow
from prefstage.data.raw_rows import RawRow
from prefstage.data.records import Candidates, Message
from prefstage.data.validation import make_candidates

_FLAT = ("message_id", "parent_id", "text", "role", "message_tree_id")
_NOTE = "scores are minus the rank (0 is the best reply); replies without a rank have none"


@dataclass(eq=False)
class _Node:
    """One message of a tree."""

    row: RawRow
    message: Message
    rank: float | None
    deleted: bool
    parent: str | None = None
    replies: list["_Node"] = field(default_factory=list)


@dataclass
class _Tally:
    """What stood in the trees, for the report."""

    trees: int = 0
    messages: int = 0
    prompts: int = 0
    unanswered: int = 0
    deleted: int = 0

    def note(self) -> str:
        left = [
            f"{count} {what} left out"
            for count, what in (
                (self.unanswered, "user turns that nobody answers"),
                (self.deleted, "deleted messages with what follows them"),
            )
            if count
        ]
        read = f"{self.messages} messages of {self.trees} trees hold {self.prompts} prompts"
        return "; ".join([read, *left])


def _gather_flat(rows: Iterator[RawRow], observations: Observations) -> Iterator[RawRow]:
    """Trees of rows that are one message each, in any order; all are held in memory."""
    nodes: dict[str, _Node] = {}
    for row in rows:
        if row.fault is not None:
            yield row
            continue
        try:
            _add_message(nodes, row)
        except RowFault as fault:
            yield RawRow(row.file, row.number, row.values, fault)
    roots = []
    for node in nodes.values():
        if node.parent is None:
            roots.append(node)
        elif node.parent in nodes:
            nodes[node.parent].replies.append(node)
    tally = _Tally()
    reached: set[int] = set()
    for root in roots:
        yield from _prompts_of(root, tally, reached)
    yield from (_unreachable(node, nodes) for node in nodes.values() if id(node) not in reached)
    observations.more.append(tally.note())


def _add_message(nodes: dict[str, _Node], row: RawRow) -> None:
    name, parent = str(require(row.values, "message_id")), row.values.get("parent_id")
    row.values.get("message_tree_id")  # the parents say the same
    if name in nodes:
        raise RowFault(
            "message_id",
            saw=f"{show(name)}, as in row {nodes[name].row.number}",
            expected="an id for every message",
            cure="remove one of the two rows",
        )
    nodes[name] = _node(row, row.values)
    nodes[name].parent = None if parent is None else str(parent)


def _node(row: RawRow, values: Row) -> _Node:
    message = read_message(
        {"role": require(values, "role"), "content": read_text(values, "text")}, "message"
    )
    rank, deleted = read_number(values, "rank"), values.get("deleted")
    return _Node(row, message, rank, bool(deleted))


def _unreachable(node: _Node, nodes: dict[str, _Node]) -> RawRow:
    circle = node.parent in nodes
    fault = RowFault(
        "parent_id",
        saw=f"{show(node.parent)}, {'which leads to no root' if circle else 'no message read'}",
        expected="the message_id of a good row, or null for the first message of a tree",
        cure="mend or remove the row",
    )
    return RawRow(node.row.file, node.row.number, node.row.values, fault)


def _gather_nested(rows: Iterator[RawRow], observations: Observations) -> Iterator[RawRow]:
    """Trees of rows that are one tree each, whose messages hold their replies."""
    tally = _Tally()
    for row in rows:
        if row.fault is not None:
            yield row
            continue
        try:
            root = _nested(row)
        except RowFault as fault:
            yield RawRow(row.file, row.number, row.values, fault)
            continue
        row.values.get("message_tree_id")
        yield from _prompts_of(root, tally, set())
    observations.more.append(tally.note())


def _nested(row: RawRow) -> _Node:
    top = require(row.values, "prompt")
    root = _node(row, _mapping(top, "prompt"))
    waiting = [(root, top, "prompt")]
    while waiting:
        node, values, path = waiting.pop()
        for index, reply in enumerate(values.get("replies") or ()):
            place = f"{path}.replies[{index}]"
            child = _node(row, _mapping(reply, place))
            node.replies.append(child)
            waiting.append((child, reply, place))
    return root


def _mapping(value: Any, path: str) -> Mapping[str, Any]:
    if isinstance(value, Mapping):
        return value
    raise RowFault(path, saw=show(value), expected="a message", cure="mend or remove the row")


def _prompts_of(root: _Node, tally: _Tally, reached: set[int]) -> Iterator[RawRow]:
    """Every user turn of a tree that has replies, with all that was said before it."""
    tally.trees += 1
    waiting: list[tuple[_Node, tuple[Message, ...], bool]] = [(root, (), False)]
    while waiting:
        node, before, dropped = waiting.pop()
        reached.add(id(node))
        dropped = dropped or node.deleted
        tally.messages += 1
        tally.deleted += dropped
        said = (*before, node.message)
        waiting += [(reply, said, dropped) for reply in reversed(node.replies)]
        if node.message["role"] == "assistant" or dropped:
            continue
        replies = [r for r in node.replies if r.message["role"] == "assistant" and not r.deleted]
        if not replies:
            tally.unanswered += 1
            continue
        tally.prompts += 1
        replies.sort(key=lambda reply: (reply.rank is None, reply.rank or 0))
        yield RawRow(node.row.file, node.row.number, SourceRow(_as_row(said, replies)))


def _as_row(said: tuple[Message, ...], replies: list[_Node]) -> dict[str, Any]:
    return {
        "prompt": said,
        "responses": [reply.message["content"] for reply in replies],
        "scores": [None if reply.rank is None else 0.0 - reply.rank for reply in replies],
    }


def _read(row: Row, _: LabelScheme | None) -> Candidates:
    return make_candidates(row["prompt"], row["responses"], scores=row["scores"])


def _is_nested(row: Row) -> bool:
    prompt: Any = row.get("prompt")
    return isinstance(prompt, Mapping) and {"text", "replies"} <= prompt.keys()


TREES = (
    Format(
        name="openassistant-trees",
        kind="candidates",
        needs=("message_tree_id", "prompt"),
        recognises=_is_nested,
        read=_read,
        gather=_gather_nested,
        note=_NOTE,
    ),
    Format(
        name="openassistant-messages",
        kind="answers",
        needs=_FLAT,
        recognises=lambda row: set(_FLAT) <= row.keys(),
        read=_read,
        gather=_gather_flat,
        note=_NOTE,
    ),
)
"""Tried in this order."""
