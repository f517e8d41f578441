"""Formats of prompts with their responses: several in a row, or one answer a row."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
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
from prefstage.data.labels import LabelScheme
from prefstage.data.records import Candidates, Generation
from prefstage.data.validation import make_candidates

_RESPONSES = ("responses", "completions", "generations", "outputs", "answers", "candidates")
_SOURCES = ("sources", "models", "generation_models")
_SCORES = ("scores", "ratings", "rewards", "all_rm_scores")
_GENERATIONS = "generations"  # beside responses: how each was sampled
_ONE_RESPONSE = ("response", "output", "completion", "answer")
_ONE_SOURCE = ("source", "generator", "model")
_ONE_SCORE = ("score", "preference", "reward", "rating")


def _read_candidates(row: Row, _: LabelScheme | None) -> Candidates:
    field = first_of(row, _RESPONSES) or "responses"
    responses = _read_list(row, field)
    sources, scores = first_of(row, _SOURCES), first_of(row, _SCORES)
    made = make_candidates(
        read_prompt(row),
        responses,
        sources=_each(row, sources, read_source) if sources else None,
        scores=_each(row, scores, read_number) if scores else None,
    )
    generations: Any = row.get(_GENERATIONS)
    if field == _GENERATIONS or not _is_list_of_some(generations, Mapping):
        return made
    if len(generations) != len(responses):
        raise RowFault(
            _GENERATIONS,
            saw=f"{len(generations)} generations beside {len(responses)} responses",
            expected="lists of equal length",
            cure="leave the column out, or give one (or null) for each response",
        )
    return replace(made, generations=tuple(_each(row, _GENERATIONS, _read_generation)))


def _read_generation(row: Row, name: str) -> Generation | None:
    """How a response was sampled, as our own files hold it."""
    value: Any = row[name]
    if value is None:
        return None
    thought, ids, tokenizer = (value.get(key) for key in ("thought", "token_ids", "tokenizer"))
    whole = all(type(token) is int and token >= 0 for token in ids or ())
    if not isinstance(thought, str | None) or not whole or not isinstance(tokenizer, str | None):
        raise RowFault(
            name,
            saw=show(value),
            expected="{thought, token_ids, tokenizer}, as `prefstage sample` writes them",
            cure="leave the column out, or sample again",
        )
    return Generation(thought, tuple(ids or ()), tokenizer or "")


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


def _ultrafeedback(score: str) -> Any:
    """Reader of UltraFeedback's completions with one of its two scores."""

    def read(row: Row, _: LabelScheme | None) -> Candidates:
        completions = _read_list(row, "completions")
        texts, sources, scores = [], [], []
        for index, completion in enumerate(completions):
            place = f"completions[{index}]"
            if not isinstance(completion, Mapping):
                raise RowFault(
                    place,
                    saw=show(completion),
                    expected="an object with response and scores",
                    cure="mend or remove the row",
                )
            named = {f"{place}.{key}": value for key, value in completion.items()}
            texts.append(read_text(named, f"{place}.response"))
            sources.append(read_source(named, f"{place}.model"))
            scores.append(read_number(named, f"{place}.{score}"))
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


def _is_list_of_some(value: Any, kind: Any) -> bool:
    """Whether a list holds things of a kind, nulls aside."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        return False
    filled = [item for item in value if item is not None]
    return bool(filled) and all(isinstance(item, kind) for item in filled)


def _is_ultrafeedback(row: Row, score: str) -> bool:
    completions: Any = row.get("completions")
    return (
        first_of(row, PROMPT_NAMES) is not None
        and _is_list_of(completions, Mapping)
        and {"response", score} <= set(completions[0])
    )


LISTED = (
    Format(
        name="ultrafeedback",
        kind="candidates",
        needs=("instruction", "completions", "models"),
        recognises=lambda row: _is_ultrafeedback(row, "overall_score"),
        read=_ultrafeedback("overall_score"),
        note="scores are overall_score; format='ultrafeedback-fine-grained' reads the other",
    ),
    Format(
        name="ultrafeedback-fine-grained",
        kind="candidates",
        needs=("instruction", "completions", "models"),
        recognises=lambda row: _is_ultrafeedback(row, "fine-grained_score"),
        read=_ultrafeedback("fine-grained_score"),
        note="scores are fine-grained_score",
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
