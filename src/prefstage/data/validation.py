"""The checks that every pair and every prompt with candidates passes, whatever its format."""

import json
from collections.abc import Sequence
from typing import Any

from prefstage.data.compat import check_readable
from prefstage.data.records import (
    TIE,
    Candidates,
    Generation,
    Message,
    Pair,
    Prompt,
    Record,
    prompt_id_of,
)
from prefstage.data.rows import RowFault, show
from prefstage.data.storage import MESSAGE_COLUMNS


def make_pair(
    prompt: Prompt,
    chosen: Sequence[Message],
    rejected: Sequence[Message],
    *,
    columns: Sequence[str] = ("chosen", "rejected"),
    **optional: Any,
) -> Pair:
    """Build a pair after the checks that every pair must pass.

    Args:
        prompt: Messages before the response.
        chosen: The preferred response: one assistant message.
        rejected: The other one.
        columns: That the responses came from, for faults.
        optional: The optional fields of `Pair`, already of their types.

    Raises:
        RowFault: If the prompt does not end with a user's or tool's turn, a response is
            not one non-empty assistant message, both responses are equal, the
            agreement lies outside [½, 1], or the judge's probability outside [0, 1].
    """
    check_prompt(prompt)
    check_response(chosen, columns[0])
    check_response(rejected, columns[1])
    if tuple(chosen) == tuple(rejected):
        raise RowFault(
            columns[1],
            saw=f"the same response as in {columns[0]}: {show(chosen[0]['content'])}",
            expected="two different responses",
            cure="remove the row, or write the other response",
        )
    agreement = optional.get("agreement")
    if agreement is not None and not TIE <= agreement <= 1:
        raise RowFault(
            "agreement",
            saw=show(agreement),
            expected="the share of raters for the chosen response, in [0.5, 1]",
            cure="where it is below 0.5, swap chosen and rejected",
        )
    probability = optional.get("judge_probability")
    if probability is not None and not 0 <= probability <= 1:
        raise RowFault(
            "judge_probability",
            saw=show(probability),
            expected="P(chosen better than rejected) by the judge, in [0, 1]",
            cure="mend the value, or rename the column if it means something else",
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
    responses: Sequence[Any],
    *,
    sources: Sequence[str | None] | None = None,
    scores: Sequence[float | None] | None = None,
    generations: Sequence[Generation | None] = (),
    column: str = "responses",
) -> Candidates:
    """Build candidates after the checks that every prompt and response must pass.

    Raises:
        RowFault: As `make_pair`, and if the three lists differ in length.
    """
    check_prompt(prompt)
    if not responses:
        raise RowFault(
            column, saw="an empty list", expected="at least one response", cure="remove the row"
        )
    several = column == "responses"
    for index, response in enumerate(responses):
        check_text(response, f"{column}[{index}]" if several else column)
    known = {"sources": sources, "scores": scores, "generations": generations or None}
    for name, values in known.items():
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
        generations=tuple(generations),
    )


def check_prompt(prompt: Sequence[Message]) -> None:
    """Fault a prompt that a model could not answer next."""
    if not prompt or prompt[-1]["role"] not in ("user", "tool"):
        ending = f"a last turn of role {prompt[-1]['role']!r}" if prompt else "no turn at all"
        raise RowFault(
            "prompt",
            saw=ending,
            expected="a prompt that ends with a user (or tool) turn",
            cure="cut the prompt after its last user turn, or remove the row",
        )
    if not any(message["content"].strip() for message in prompt):
        raise RowFault(
            "prompt",
            saw="only empty turns",
            expected="a prompt with text",
            cure="write the prompt, or remove the row",
        )


def check_response(response: Sequence[Message], field: str) -> None:
    """Fault a response that is not one non-empty assistant message."""
    roles = [message["role"] for message in response]
    if roles != ["assistant"]:
        raise RowFault(
            field,
            saw=f"turns {roles} after the prompt" if roles else "no turn after the prompt",
            expected="one assistant turn",
            cure="end both conversations with their first different answer, or remove the row",
        )
    if not response[0].get("tool_calls"):
        check_text(response[0]["content"], field)


def check_text(text: Any, field: str) -> None:
    """Fault anything but a text with something in it."""
    if not isinstance(text, str):
        raise RowFault(
            field,
            saw="nothing" if text is None else show(text),
            expected="text",
            cure="fill the field, or remove the row",
        )
    if not text.strip():
        raise RowFault(
            field,
            saw=f"only whitespace: {text[:20]!r}" if text else "an empty response",
            expected="a response with text",
            cure="write the response, or remove the row",
        )


def check_storable(record: Record) -> None:
    """Fault text that UTF-8 cannot hold, and message fields that JSON or Arrow cannot."""
    try:
        json.dumps(vars(record), ensure_ascii=False, default=vars).encode("utf-8")
        for column in MESSAGE_COLUMNS:
            for message in getattr(record, column, ()):
                _check_fields(message)
    except UnicodeEncodeError as error:
        raise RowFault(
            "(row)",
            saw=f"the lone surrogate {error.object[error.start]!a}, which is not UTF-8",
            expected="text that UTF-8 can hold",
            cure="remove that character, or the row",
        ) from None
    except (TypeError, ValueError) as error:
        raise RowFault(
            "(row)",
            saw=f"a message field that cannot be stored ({error})",
            expected="texts, numbers of 64 bits, lists and objects",
            cure="turn the value into text",
        ) from None


def _check_fields(message: Message) -> None:
    for name in message.keys() - {"role", "content"}:
        value = message[name]
        if isinstance(value, str):
            continue
        text = json.dumps(value)
        check_readable(text)
        # JSON turns keys that are no text into text, and tuples into lists: what would not
        # come back as it was is refused rather than changed.
        if json.loads(text) != value:
            raise ValueError(f"{name}: {show(value)}")
