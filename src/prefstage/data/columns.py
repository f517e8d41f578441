"""The canonical columns: records to rows and back, and their Arrow types."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from datasets import Features, Json, List, Value

from prefstage.data.records import Candidates, Message, Pair

_OPTIONAL = ("score_chosen", "score_rejected", "source_chosen", "source_rejected", "agreement")
PAIR_COLUMNS = ("prompt_id", "prompt", "chosen", "rejected", *_OPTIONAL)
CANDIDATE_COLUMNS = ("prompt_id", "prompt", "responses", "sources", "scores")
Row = dict[str, Any]


def pair_to_row(pair: Pair) -> Row:
    """The pair as a mapping of the canonical columns."""
    row = {name: getattr(pair, name) for name in PAIR_COLUMNS}
    return {**row, **{name: list(row[name]) for name in ("prompt", "chosen", "rejected")}}


def row_to_pair(row: Mapping[str, Any]) -> Pair:
    """The pair that a canonical row holds; null fields that Arrow added to messages go."""
    return Pair(
        prompt_id=row["prompt_id"],
        prompt=_messages(row["prompt"]),
        chosen=_messages(row["chosen"]),
        rejected=_messages(row["rejected"]),
        **{name: row.get(name) for name in _OPTIONAL},
    )


def candidates_to_row(candidates: Candidates) -> Row:
    """The candidates as a mapping of the canonical columns."""
    row = {name: getattr(candidates, name) for name in CANDIDATE_COLUMNS}
    return {**row, **{name: list(row[name]) for name in CANDIDATE_COLUMNS[1:]}}


def row_to_candidates(row: Mapping[str, Any]) -> Candidates:
    """The candidates that a canonical row holds."""
    return Candidates(
        prompt_id=row["prompt_id"],
        prompt=_messages(row["prompt"]),
        responses=tuple(row["responses"]),
        sources=tuple(row["sources"]),
        scores=tuple(row["scores"]),
    )


def message_fields(messages: Iterable[Message]) -> set[str]:
    """Fields of messages besides `role` and `content`."""
    return {key for message in messages for key in message} - {"role", "content"}


def pair_features(extra_fields: Iterable[str] = ()) -> Features:
    """Arrow types of the pair columns.

    Args:
        extra_fields: Message fields besides `role` and `content` (tool calls and the
            like); each is stored as JSON, since its shape differs from row to row.
    """
    messages = _message_type(extra_fields)
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
        }
    )


def candidate_features(extra_fields: Iterable[str] = ()) -> Features:
    """Arrow types of the candidate columns; see `pair_features`."""
    return Features(
        {
            "prompt_id": Value("string"),
            "prompt": _message_type(extra_fields),
            "responses": List(Value("string")),
            "sources": List(Value("string")),
            "scores": List(Value("float64")),
        }
    )


def _message_type(extra_fields: Iterable[str]) -> List:
    extras = {name: Json() for name in sorted(extra_fields)}
    return List({"role": Value("string"), "content": Value("string"), **extras})


def _messages(value: Sequence[Message]) -> tuple[Message, ...]:
    return tuple(
        {key: item for key, item in message.items() if item is not None} for message in value
    )
