"""Formats of prompts with their responses: several in a row, or one answer a row."""

import operator
from collections.abc import Mapping, Sequence
from typing import Any

from prefstage.data.faults import RowFault, show
from prefstage.data.formats.base import (
    PROMPT_NAMES,
    Format,
    Row,
    first_of,
    read_number,
    read_prompt,
    read_source,
    read_text,
    require,
)
from prefstage.data.json_text import messages_in
from prefstage.data.labels import LabelScheme
from prefstage.data.messages import read_messages
from prefstage.data.observations import SourceRow
from prefstage.data.records import Candidates, Generation
from prefstage.data.validation import check_response, make_candidates

_RESPONSES = ("responses", "completions", "generations", "outputs", "answers", "candidates")
_SOURCES = ("sources", "models", "generation_models")
_SCORES = ("scores", "ratings", "rewards", "all_rm_scores")
_ONE_RESPONSE = ("response", "output", "completion", "answer")
_ONE_SOURCE = ("source", "generator", "model")
_ONE_SCORE = ("score", "preference", "reward", "rating")


def _read_candidates(row: Row, _: LabelScheme | None) -> Candidates:
    field = first_of(row, _RESPONSES) or "responses"
    responses = _read_texts(row, field)
    sources, scores = first_of(row, _SOURCES), first_of(row, _SCORES)
    return make_candidates(
        read_prompt(row),
        responses,
        sources=_each(row, sources, read_source) if sources else None,
        scores=_each(row, scores, read_number) if scores else None,
        generations=_read_generations(row),
    )


def _read_texts(row: Row, field: str) -> Sequence[Any]:
    """The responses; where all of them are JSON text of a message, their contents."""
    responses = _read_list(row, field)
    spelled = [
        messages_in(text, f"{field}[{index}]") if isinstance(text, str) else None
        for index, text in enumerate(responses)
    ]
    if None in spelled:
        return responses
    if isinstance(row, SourceRow) and row.observations is not None:
        row.observations.parsed[field] += 1
    return [_content(value, f"{field}[{index}]") for index, value in enumerate(spelled)]


def _content(value: Any, field: str) -> str:
    """The text of a response that is a message; what is no text has no place here."""
    messages = read_messages(value, field)
    check_response(messages, field)
    (message,) = messages
    more = message.keys() - {"role", "content"}
    if more:
        raise RowFault(
            field,
            saw=f"a message with {', '.join(sorted(more))}",
            expected="a message with nothing but role and content",
            cure="load such rows as pairs (load_pairs), or remove them",
        )
    return str(message["content"])


def _read_generations(row: Row) -> list[Generation | None]:
    """How a policy wrote each response, as our own files have it."""
    generations = row.get("generations")
    if generations is None or not _is_list_of(generations, Mapping | None):
        return []
    return [
        None if item is None else _generation(item, f"generations[{index}]")
        for index, item in enumerate(generations)
    ]


def _generation(value: Any, field: str) -> Generation:
    try:
        ids = tuple(map(operator.index, value.get("token_ids") or ()))
        return Generation(value.get("thought"), ids, value.get("tokenizer") or "")
    except (TypeError, AttributeError):
        raise RowFault(
            field,
            saw=show(value),
            expected="{thought, token_ids, tokenizer}, or null",
            cure="mend or empty the field",
        ) from None


def _read_list(row: Row, field: str) -> Sequence[Any]:
    value = require(row, field)
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise RowFault(
            field, saw=show(value), expected="a list", cure="make it a list, one item a response"
        )
    return value


def _each(row: Row, field: str, read: Any) -> list[Any]:
    """Read every item of a list column, naming the item in faults."""
    names = [f"{field}[{index}]" for index in range(len(_read_list(row, field)))]
    items = dict(zip(names, row[field], strict=True))
    return [read(items, name) for name in names]


def _objects(field: str, *, text: str, source: str | None, score: str) -> Any:
    """Reader of a list of objects, each a response with what is known of it."""

    def read(row: Row, _: LabelScheme | None) -> Candidates:
        texts, sources, scores = [], [], []
        for index, item in enumerate(_read_list(row, field)):
            path = f"{field}[{index}]"
            if not isinstance(item, Mapping):
                raise RowFault(
                    path,
                    saw=show(item),
                    expected=f"an object with {text} and {score}",
                    cure="mend or remove the row",
                )
            named = {f"{path}.{key}": value for key, value in item.items()}
            texts.append(read_text(named, f"{path}.{text}"))
            sources.append(read_source(named, f"{path}.{source}") if source else None)
            scores.append(read_number(named, f"{path}.{score}"))
        return make_candidates(read_prompt(row), texts, sources=sources, scores=scores)

    return read


def _read_answer(row: Row, _: LabelScheme | None) -> Candidates:
    source, score = first_of(row, _ONE_SOURCE), first_of(row, _ONE_SCORE)
    field = first_of(row, _ONE_RESPONSE) or "output"
    return make_candidates(
        read_prompt(row),
        [read_text(row, field)],
        sources=[read_source(row, source) if source else None],
        scores=[read_number(row, score) if score else None],
        field=field,
    )


def _is_list_of(value: Any, kind: Any) -> bool:
    listed = isinstance(value, Sequence) and not isinstance(value, str) and len(value) > 0
    return listed and isinstance(value[0], kind)


def _is_ultrafeedback(row: Row, score: str) -> bool:
    completions: Any = row.get("completions")
    return (
        first_of(row, PROMPT_NAMES) is not None
        and _is_list_of(completions, Mapping)
        and {"response", score} <= set(completions[0])
    )


def _is_stackexchange(row: Row) -> bool:
    answers: Any = row.get("answers")
    return (
        first_of(row, PROMPT_NAMES) is not None
        and _is_list_of(answers, Mapping)
        and {"text", "pm_score"} <= set(answers[0])
    )


LISTED = (
    Format(
        name="ultrafeedback",
        kind="candidates",
        needs=("instruction", "completions", "models"),
        recognises=lambda row: _is_ultrafeedback(row, "overall_score"),
        read=_objects("completions", text="response", source="model", score="overall_score"),
        note="scores are overall_score; format='ultrafeedback-fine-grained' reads the other",
    ),
    Format(
        name="ultrafeedback-fine-grained",
        kind="candidates",
        needs=("instruction", "completions", "models"),
        recognises=lambda row: _is_ultrafeedback(row, "fine-grained_score"),
        read=_objects("completions", text="response", source="model", score="fine-grained_score"),
        note="scores are fine-grained_score",
    ),
    Format(
        name="stackexchange",
        kind="candidates",
        needs=("question", "answers"),
        recognises=_is_stackexchange,
        read=_objects("answers", text="text", source=None, score="pm_score"),
        note="scores are pm_score; texts stay HTML where they are; authors and the accepted "
        "answer are not used",
    ),
    Format(
        name="candidates",
        kind="candidates",
        needs=("prompt", "responses", "sources", "scores"),
        recognises=lambda row: (
            first_of(row, PROMPT_NAMES) is not None
            and _is_list_of(row.get(first_of(row, _RESPONSES) or ""), str)
        ),
        read=_read_candidates,
    ),
    Format(
        name="model-outputs",
        kind="answers",
        needs=("instruction", "output", "generator"),
        recognises=lambda row: (
            first_of(row, PROMPT_NAMES) is not None
            and isinstance(row.get(first_of(row, _ONE_RESPONSE) or ""), str)
            and first_of(row, _ONE_SOURCE) is not None
        ),
        read=_read_answer,
        note="one row per answer; rows grouped by prompt",
    ),
)
"""Tried in this order: the more special before the more general."""
