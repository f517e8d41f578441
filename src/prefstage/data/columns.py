"""The canonical columns: records to rows and back, and their Arrow types."""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from datasets import Features, Json, List, Value

from prefstage.data.messages import KEY_ORDER, in_order
from prefstage.data.records import (
    Candidates,
    Conversation,
    Generation,
    Message,
    Pair,
    Unpaired,
    Vote,
)

_OPTIONAL = (
    *("score_chosen", "score_rejected", "source_chosen", "source_rejected"),
    *("agreement", "annotator", "judge_probability"),
)
PAIR_COLUMNS = ("prompt_id", "prompt", "chosen", "rejected", *_OPTIONAL, "votes")
CANDIDATE_COLUMNS = ("prompt_id", "prompt", "responses", "sources", "scores", "generations")
UNPAIRED_COLUMNS = ("prompt_id", "prompt", "completion", "label", "score", "source")
CONVERSATION_COLUMNS = ("prompt_id", "prompt", "completion")
_MESSAGE_COLUMNS = ("prompt", "chosen", "rejected", "completion")
Row = dict[str, Any]


def pair_to_row(pair: Pair) -> Row:
    """The pair as a mapping of the canonical columns."""
    row = {name: getattr(pair, name) for name in PAIR_COLUMNS}
    row["votes"] = [vars(vote) for vote in pair.votes]
    return {**row, **{name: list(row[name]) for name in ("prompt", "chosen", "rejected")}}


def row_to_pair(row: Mapping[str, Any]) -> Pair:
    """The pair that a canonical row holds; null fields that Arrow added to messages go."""
    return Pair(
        prompt_id=row["prompt_id"],
        prompt=_messages(row["prompt"]),
        chosen=_messages(row["chosen"]),
        rejected=_messages(row["rejected"]),
        **{name: row.get(name) for name in _OPTIONAL},
        votes=tuple(Vote(**vote) for vote in row.get("votes") or ()),
    )


def candidates_to_row(candidates: Candidates) -> Row:
    """The candidates as a mapping of the canonical columns."""
    row = {name: getattr(candidates, name) for name in CANDIDATE_COLUMNS}
    row["generations"] = [
        None if each is None else {**vars(each), "token_ids": list(each.token_ids)}
        for each in candidates.generations
    ]
    return {**row, **{name: list(row[name]) for name in CANDIDATE_COLUMNS[1:]}}


def row_to_candidates(row: Mapping[str, Any]) -> Candidates:
    """The candidates that a canonical row holds."""
    return Candidates(
        prompt_id=row["prompt_id"],
        prompt=_messages(row["prompt"]),
        responses=tuple(row["responses"]),
        sources=tuple(row["sources"]),
        scores=tuple(row["scores"]),
        generations=tuple(map(_generation, row.get("generations") or ())),
    )


def _generation(value: Mapping[str, Any] | None) -> Generation | None:
    if value is None:
        return None
    ids, tokenizer = value.get("token_ids") or (), value.get("tokenizer") or ""
    return Generation(value.get("thought"), tuple(ids), tokenizer)


def unpaired_to_row(unpaired: Unpaired) -> Row:
    """The labelled response as a mapping of the canonical columns."""
    row = {name: getattr(unpaired, name) for name in UNPAIRED_COLUMNS}
    return {**row, **{name: list(row[name]) for name in ("prompt", "completion")}}


def row_to_unpaired(row: Mapping[str, Any]) -> Unpaired:
    """The labelled response that a canonical row holds."""
    return Unpaired(
        prompt_id=row["prompt_id"],
        prompt=_messages(row["prompt"]),
        completion=_messages(row["completion"]),
        label=row["label"],
        score=row.get("score"),
        source=row.get("source"),
    )


def conversation_to_row(conversation: Conversation) -> Row:
    """The conversation as a mapping of the canonical columns."""
    row = {name: getattr(conversation, name) for name in CONVERSATION_COLUMNS}
    return {**row, **{name: list(row[name]) for name in ("prompt", "completion")}}


def row_to_conversation(row: Mapping[str, Any]) -> Conversation:
    """The conversation that a canonical row holds."""
    return Conversation(row["prompt_id"], _messages(row["prompt"]), _messages(row["completion"]))


class MessageShapes:
    """What the messages of a dataset look like: their fields, and the fields' orders.

    Attributes:
        fields: Fields in the order in which they first came, and whether each is text; with
            `KEY_ORDER` where the order of some message is another.
    """

    def __init__(self) -> None:
        self.fields: dict[str, bool] = {}
        self._orders: dict[tuple[str, ...], None] = {}

    def add(self, row: Row) -> None:
        """Take the messages of a row into account."""
        for message in _messages_of(row):
            self._orders[tuple(message)] = None
            for name, value in message.items():
                self.fields[name] = self.fields.get(name, True) and isinstance(value, str)

    def close(self) -> None:
        """Note whether every order is that of the fields; called after the last row."""
        if any(list(order) != self._usual(order) for order in self._orders):
            self.fields[KEY_ORDER] = True

    def encode(self, row: Row) -> Row:
        """The row as Arrow stores it: fields that are no text as JSON text, orders noted."""
        encoded = {name for name, is_text in self.fields.items() if not is_text}
        if not encoded and KEY_ORDER not in self.fields:
            return row
        return row | {
            column: [self._encoded(message, encoded) for message in row[column]]
            for column in _MESSAGE_COLUMNS
            if column in row
        }

    def _encoded(self, message: Message, encoded: set[str]) -> Message:
        stored = {
            key: json.dumps(item) if key in encoded else item for key, item in message.items()
        }
        if list(message) != self._usual(message):
            stored[KEY_ORDER] = json.dumps(list(message))
        return stored

    def _usual(self, names: Collection[str]) -> list[str]:
        return [name for name in self.fields if name in names]


def _messages_of(row: Row) -> Iterator[Message]:
    for column in _MESSAGE_COLUMNS:
        yield from row.get(column, ())


def pair_features(fields: Mapping[str, bool]) -> Features:
    """Arrow types of the pair columns.

    Args:
        fields: The messages' fields in their order, and whether each is text; others (tool
            calls and the like) are stored as JSON, since their shapes differ.
    """
    messages = _message_type(fields)
    return Features(
        {
            "prompt_id": Value("string"),
            "prompt": messages,
            "chosen": messages,
            "rejected": messages,
            "score_chosen": Value("float64"),
            "score_rejected": Value("float64"),
            "source_chosen": Value("string"),
            "source_rejected": Value("string"),
            "agreement": Value("float64"),
            "annotator": Value("string"),
            "judge_probability": Value("float64"),
            "votes": List({"annotator": Value("string"), "preference": Value("float64")}),
        }
    )


def candidate_features(fields: Mapping[str, bool]) -> Features:
    """Arrow types of the candidate columns; see `pair_features`."""
    return Features(
        {
            "prompt_id": Value("string"),
            "prompt": _message_type(fields),
            "responses": List(Value("string")),
            "sources": List(Value("string")),
            "scores": List(Value("float64")),
            "generations": List(
                {
                    "thought": Value("string"),
                    "token_ids": List(Value("int32")),
                    "tokenizer": Value("string"),
                }
            ),
        }
    )


def unpaired_features(fields: Mapping[str, bool]) -> Features:
    """Arrow types of the columns of labelled responses; see `pair_features`."""
    rest = {"label": Value("bool"), "score": Value("float64"), "source": Value("string")}
    return Features({**conversation_features(fields), **rest})


def conversation_features(fields: Mapping[str, bool]) -> Features:
    """Arrow types of the columns of conversations; see `pair_features`."""
    messages = _message_type(fields)
    return Features({"prompt_id": Value("string"), "prompt": messages, "completion": messages})


def without_nulls(row: Row) -> Row:
    """The row without the null fields that Arrow adds to messages which lack them."""
    return row | {
        column: list(_messages(row[column])) for column in _MESSAGE_COLUMNS if column in row
    }


def _message_type(fields: Mapping[str, bool]) -> List:
    named = fields or dict.fromkeys(("role", "content"), True)
    return List({name: Value("string") if named[name] else Json() for name in named})


def _messages(value: Sequence[Message]) -> tuple[Message, ...]:
    return tuple(
        in_order({key: item for key, item in message.items() if item is not None})
        for message in value
    )
