"""Formats whose rows state no preference: prompts with responses, trees, demonstrations."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, cycle, pairwise
from typing import Any

from prefstage.data.formats.fields import (
    Format,
    Row,
    SourceRow,
    fields,
    first_of,
    is_filled,
    is_response,
    is_text,
    list_of,
    object_with,
    read_number,
    read_optional,
    read_prompt,
    read_response,
    read_source,
    read_text,
    require,
    with_system_and_tools,
)
from prefstage.data.messages import (
    is_list,
    is_messages,
    is_sequence,
    is_transcript,
    messages_in,
    read_message,
    read_messages,
    read_transcript,
    turn,
)
from prefstage.data.records import (
    Candidates,
    Conversation,
    Generation,
    Message,
    Prompt,
    check_prompt,
    check_response,
    check_text,
    make_candidates,
    prompt_id_of,
)
from prefstage.data.rows import Observations, RawRow, RowFault, applicable, expect, show

_ASKS = frozenset(("user", "tool"))


def _read_candidates(row: SourceRow) -> Candidates:
    return make_candidates(
        read_prompt(row),
        _read_texts(row, first_of(row, "responses") or "responses"),
        sources=_values_of(row, "sources", read_source),
        scores=_values_of(row, "scores", read_number),
        generations=_read_generations(row.get("generations")),
    )


def _items(row: Row, column: str) -> dict[str, Any]:
    # The items of a list, by their paths.
    value = require(row, column)
    expect(is_sequence(value), column, value, "a list", "make it a list, one item a response")
    return {f"{column}[{index}]": item for index, item in enumerate(value)}


def _values_of(row: Row, role: str, read: Callable[[Row, str], Any]) -> list[Any] | None:
    column = first_of(row, role)
    items = {} if column is None else _items(row, column)
    return None if column is None else [read(items, path) for path in items]


def _read_texts(row: SourceRow, column: str) -> Sequence[Any]:
    # The responses; where all of them are JSON text of a message, their contents.
    items = _items(row, column)
    spelled = {
        path: messages_in(text, path) if isinstance(text, str) else None
        for path, text in items.items()
    }
    if None in spelled.values():
        return list(items.values())
    row.observations.parsed[column] += 1
    return [_content(value, path) for path, value in spelled.items()]


def _content(value: Any, path: str) -> str:
    messages = read_messages(value, path)
    check_response(messages, path)
    more = messages[0].keys() - {"role", "content"}
    RowFault.unless(
        not more,
        path,
        saw=f"a message with {', '.join(sorted(more))}",
        expected="a message with nothing but role and content",
        cure="load such rows as pairs (load_pairs), or remove them",
    )
    return str(messages[0]["content"])


def _read_generations(stored: Any) -> list[Generation | None]:
    # How a policy wrote the responses, as our files have it; others have texts of this name.
    generations = list[Generation | None]()
    for index, item in enumerate(stored if is_list(stored, Mapping | None) else ()):
        try:
            generations.append(None if item is None else Generation.of(item))
        except (TypeError, AttributeError):
            raise RowFault(
                f"generations[{index}]",
                saw=show(item),
                expected="{thought, token_ids, tokenizer}, or null",
                cure="mend or empty the field",
            ) from None
    return generations


def _read_objects(row: SourceRow, column: str, paths: Mapping[str, str]) -> Candidates:
    items = _items(row, column)
    for path, item in items.items():
        expect(
            isinstance(item, Mapping),
            *(path, item, f"an object with {paths['response']} and {paths['score']}"),
            "mend or remove the row",
        )
    values = {f"{path}.{key}": value for path in items for key, value in items[path].items()}
    return make_candidates(
        read_prompt(row),
        [read_text(values, f"{path}.{paths['response']}") for path in items],
        sources=[read_source(values, f"{path}.{paths.get('source')}") for path in items],
        scores=[read_number(values, f"{path}.{paths['score']}") for path in items],
    )


def _of_objects(name: str, prompt: str, column: str, *more: str, note: str, **paths: str) -> Format:
    # A format of a list of objects; `paths` say which field of an object has which role.
    return Format(
        name,
        "candidates",
        fields(prompt, column, *more),
        lambda row: _read_objects(row, column, paths),
        shapes={
            "prompt": is_filled,
            column: list_of(object_with(paths["response"], paths["score"])),
        },
        note=note,
    )


def _read_answer(row: SourceRow) -> Candidates:
    column = first_of(row, "response") or "output"
    return make_candidates(
        read_prompt(row),
        [read_text(row, column)],
        sources=[read_optional(row, "source")],
        scores=[read_optional(row, "score")],
        column=column,
    )


# Tried in this order: the more special before the more general.
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


@dataclass(eq=False)
class _Node:
    # One message of OpenAssistant's trees, whose messages answer each other, with ranks.

    row: RawRow
    message: Message
    rank: float | None
    deleted: bool
    parent: str | None
    replies: list["_Node"] = field(default_factory=list)
    reached: bool = False


def _gather_flat(rows: Iterator[RawRow], observations: Observations) -> Iterator[RawRow]:
    # Rows are one message each, in any order: a parent may come last, so all are held in memory.
    nodes, tally = dict[str, _Node](), Counter[str]()
    for row in rows:
        try:
            values = _values(row)
            name = str(require(values, "message_id"))
            twin = nodes.get(name)
            RowFault.unless(
                twin is None,
                "message_id",
                saw=f"{show(name)}, as in row {twin and twin.row.number}",
                expected="an id for every message",
                cure="remove one of the two rows",
            )
            nodes[name] = _node(row, values)
        except RowFault as fault:
            yield replace(row, fault=fault)
    for node in nodes.values():
        if node.parent in nodes:
            nodes[node.parent].replies.append(node)
    for root in [node for node in nodes.values() if node.parent is None]:
        yield from _prompts_of(root, tally)
    for node in nodes.values():
        if not node.reached:
            end = "which leads to no root" if node.parent in nodes else "no message read"
            yield replace(
                node.row,
                fault=RowFault(
                    "parent_id",
                    saw=f"{show(node.parent)}, {end}",
                    expected="the message_id of a good row, or null for the first message of a "
                    "tree",
                    cure="mend or remove the row",
                ),
            )
    observations.more.append(_account(tally))


def _values(row: RawRow) -> Any:
    if row.fault is not None:
        raise row.fault
    row.values.get("message_tree_id")  # counted as read: the parents say the same
    return row.values


def _node(row: RawRow, values: Any, path: str = "") -> _Node:
    expect(isinstance(values, Mapping), path, values, "a message", "mend or remove the row")
    parent, role = values.get("parent_id"), require(values, "role")
    return _Node(
        row,
        read_message({"role": role, "content": read_text(values, "text")}, "message"),
        read_number(values, "rank"),
        deleted=bool(values.get("deleted")),
        parent=None if parent is None else str(parent),
    )


def _gather_nested(rows: Iterator[RawRow], observations: Observations) -> Iterator[RawRow]:
    # Rows are one tree each, whose messages hold their replies.
    tally = Counter[str]()
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
            yield from _prompts_of(root, tally)
    observations.more.append(_account(tally))


def _prompts_of(root: _Node, tally: Counter[str]) -> Iterator[RawRow]:
    # Every user turn of a tree that has replies, with all that was said before it.
    tally["trees"] += 1
    waiting: list[tuple[_Node, Prompt, bool]] = [(root, (), False)]
    while waiting:
        node, before, dropped = waiting.pop()
        node.reached, dropped = True, dropped or node.deleted
        tally.update({"messages": 1, "deleted": dropped})
        turns = (*before, node.message)
        waiting += [(reply, turns, dropped) for reply in reversed(node.replies)]
        if node.message["role"] == "assistant" or dropped:
            continue
        replies = [r for r in node.replies if r.message["role"] == "assistant" and not r.deleted]
        tally["prompts" if replies else "unanswered"] += 1
        if replies:
            replies.sort(key=lambda reply: (reply.rank is None, reply.rank or 0))
            values = {
                "prompt": turns,
                "responses": [reply.message["content"] for reply in replies],
                # Rank 0 is the best reply, and the highest score; 0.0 - 0 is no minus zero.
                "scores": [None if reply.rank is None else 0.0 - reply.rank for reply in replies],
            }
            yield replace(node.row, values=SourceRow(values))


def _account(tally: Counter[str]) -> str:
    left_out = {
        f"{tally['unanswered']} user turns that nobody answers left out": tally["unanswered"],
        f"{tally['deleted']} deleted messages with what follows them left out": tally["deleted"],
    }
    return "; ".join(
        [
            f"{tally['messages']} messages of {tally['trees']} trees hold "
            f"{tally['prompts']} prompts",
            *applicable(left_out),
        ]
    )


def _read_prompt_of_tree(row: Row) -> Candidates:
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


def _read_messages_column(row: SourceRow) -> Conversation:
    column = "messages" if row.get("messages") is not None else "conversations"
    return _conversation(row, read_messages(row[column], column), column)


def _read_ultrachat(row: SourceRow) -> Conversation:
    for index, text in enumerate(row["data"]):
        check_text(text, f"data[{index}]")
    turns = map(turn, row["data"], cycle(("user", "assistant")))
    return _conversation(row, tuple(chain.from_iterable(turns)), "data")


def _read_transcript(row: SourceRow) -> Conversation:
    return _conversation(row, read_transcript(row["text"], "text", is_prompt=False), "text")


def _read_completion(row: SourceRow) -> Conversation:
    # A prompt, of which nothing is learnt, and what follows it.
    prompt = read_prompt(row)
    column = first_of(row, "completion") or "completion"
    check_prompt(prompt)
    return _checked(prompt, read_response(row[column], column, prompt), column, 0)


def _conversation(row: SourceRow, turns: Prompt, column: str) -> Conversation:
    # The prompt ends before the first assistant turn that answers somebody: an assistant's
    # greeting before anybody spoke stays in the prompt, since no model is asked for it.
    messages = with_system_and_tools(row, turns)
    roles = [message["role"] for message in messages]
    start = next(
        (
            index
            for index, role in enumerate(roles)
            if role == "assistant" and not _ASKS.isdisjoint(roles[:index])
        ),
        None,
    )
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
    RowFault.unless(
        completion and completion[0]["role"] == "assistant",
        column,
        saw=f"a turn of role {completion[0]['role']!r}" if completion else "no turn",
        expected="an assistant turn after the prompt",
        cure="mend or remove the row",
    )
    for index, (before, message) in enumerate(pairwise((prompt[-1], *completion)), start=start):
        if message["role"] != "assistant":
            continue
        RowFault.unless(
            before["role"] in _ASKS,
            f"{column}[{index}]",
            saw=f"an assistant turn after one of role {before['role']!r}",
            expected="a user's or a tool's turn before every assistant turn",
            cure="join both turns into one, or remove the row",
        )
        if not message.get("tool_calls"):
            check_text(message["content"], f"{column}[{index}]")
    return Conversation(prompt_id_of(prompt), prompt, completion)


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
# Tried in this order: the more special before the more general.
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
        data=lambda texts: is_list(texts, str) and len(texts) > 1,
    ),
    _demonstrations("transcript", ["text"], _read_transcript, _ALL_LEARNT, text=is_transcript),
    _demonstrations(
        *("prompt-completion", ["prompt", "completion"], _read_completion),
        "the completion is learnt, the prompt is not",
        prompt=is_filled,
        completion=is_response,
    ),
)
