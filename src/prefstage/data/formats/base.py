"""What a format is, and the checks that every row passes whatever its format."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from prefstage.data.faults import RowFault, show
from prefstage.data.labels import LabelScheme
from prefstage.data.records import Candidates, Message, Pair, Prompt, prompt_id_of

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Format:
    """One dataset format that is recognised unaided.

    Attributes:
        name: For reports and for `format=`.
        kind: "pairs" (a row is a pair), "candidates" (a row is a prompt with its
            responses) or "answers" (a row is one response; rows are grouped by prompt).
        columns: The columns it needs, for people.
        recognises: Whether a row is of this format.
        read: Row to record; a label scheme is given where `label_column` says so.
        label_column: Finds the column whose values say which response is preferred, or
            None for formats without labels.
        note: What the report should say whenever this format is read.
    """

    name: str
    kind: Literal["pairs", "candidates", "answers"]
    columns: str
    recognises: Callable[[Row], bool]
    read: Callable[[Row, LabelScheme | None], Pair | Candidates]
    label_column: Callable[[Row], str] | None = None
    note: str | None = None


def make_pair(
    prompt: Prompt,
    chosen: Sequence[Message],
    rejected: Sequence[Message],
    **optional: Any,
) -> Pair:
    """Build a pair after the checks that every pair must pass.

    Args:
        prompt: Messages before the response.
        chosen: The preferred response: one assistant message.
        rejected: The other one.
        optional: The optional fields of `Pair`, already of their types.

    Raises:
        RowFault: If the prompt does not end with a user's or tool's turn, a response is
            not one non-empty assistant message, or both responses are equal.
    """
    check_prompt(prompt)
    check_response(chosen, "chosen")
    check_response(rejected, "rejected")
    if tuple(chosen) == tuple(rejected):
        raise RowFault(
            "rejected",
            saw=f"the same text as in chosen: {show(chosen[0]['content'])}",
            expected="two different responses",
            cure="remove the row, or write the other response",
        )
    return Pair(
        prompt_id=prompt_id_of(prompt),
        prompt=tuple(prompt),
        chosen=tuple(chosen),
        rejected=tuple(rejected),
        **optional,
    )


def make_candidates(
    prompt: Prompt,
    responses: Sequence[str],
    *,
    sources: Sequence[str | None] | None = None,
    scores: Sequence[float | None] | None = None,
) -> Candidates:
    """Build candidates after the checks that every prompt and response must pass.

    Raises:
        RowFault: As `make_pair`, and if the three lists differ in length.
    """
    check_prompt(prompt)
    if not responses:
        raise RowFault(
            "responses",
            saw="an empty list",
            expected="at least one response",
            cure="remove the row",
        )
    for index, response in enumerate(responses):
        check_text(response, f"responses[{index}]")
    for name, values in (("sources", sources), ("scores", scores)):
        if values is not None and len(values) != len(responses):
            raise RowFault(
                name,
                saw=f"{len(values)} {name} beside {len(responses)} responses",
                expected="lists of equal length",
                cure=f"give one of {name} (or null) for each response",
            )
    nothing = (None,) * len(responses)
    return Candidates(
        prompt_id=prompt_id_of(prompt),
        prompt=tuple(prompt),
        responses=tuple(responses),
        sources=nothing if sources is None else tuple(sources),
        scores=nothing if scores is None else tuple(scores),
    )


def check_prompt(prompt: Sequence[Message]) -> None:
    """Fault a prompt that a model could not answer next."""
    if not prompt or prompt[-1]["role"] not in ("user", "tool"):
        ending = f"a last turn of role {prompt[-1]['role']!r}" if prompt else "no turn at all"
        raise RowFault(
            "prompt",
            saw=ending,
            expected="a prompt that ends with a user (or tool) turn",
            cure="cut the prompt after its last user turn",
        )
    if not any(message["content"].strip() for message in prompt):
        raise RowFault(
            "prompt",
            saw="only empty turns",
            expected="a prompt with text",
            cure="remove the row, or write its prompt",
        )


def check_response(response: Sequence[Message], field: str) -> None:
    """Fault a response that is not one non-empty assistant message."""
    if len(response) != 1 or response[0]["role"] != "assistant":
        roles = [message["role"] for message in response]
        raise RowFault(
            field,
            saw=f"turns {roles} after the prompt",
            expected="one assistant turn",
            cure="cut both conversations where they part, or remove the row",
        )
    if "tool_calls" not in response[0]:
        check_text(response[0]["content"], field)


def check_text(text: Any, field: str) -> str:
    """Fault anything but a text with something in it."""
    if not isinstance(text, str):
        raise RowFault(field, saw=show(text), expected="text", cure="mend or remove the row")
    if not text.strip():
        raise RowFault(
            field,
            saw="an empty response" if not text else f"only whitespace: {text[:20]!r}",
            expected="a response with text",
            cure="remove the row, or write the response",
        )
    return text


def read_text(row: Row, field: str) -> str:
    """A text column, which may be empty but not of another type."""
    value = row.get(field)
    if not isinstance(value, str):
        raise RowFault(
            field,
            saw="nothing" if value is None else show(value),
            expected="text",
            cure="fill the field, or remove the row",
        )
    return value


def read_number(row: Row, field: str) -> float | None:
    """A numeric column; missing and NaN mean unknown (None)."""
    value = row.get(field)
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        number = math.inf if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.inf
    if math.isinf(number):
        raise RowFault(
            field,
            saw=show(value),
            expected="a finite number, or nothing",
            cure="mend the value, or leave it empty",
        )
    return None if math.isnan(number) else number


def first_of(row: Row, names: Sequence[str]) -> str | None:
    """The first of some column names that the row has."""
    return next((name for name in names if name in row), None)
