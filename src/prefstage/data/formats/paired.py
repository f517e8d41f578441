"""Formats whose rows name a chosen and a rejected response."""

from collections.abc import Mapping, Sequence
from typing import Any

from prefstage.data.annotators import read_votes
from prefstage.data.faults import RowFault, show
from prefstage.data.formats.base import (
    PROMPT_NAMES,
    Format,
    Row,
    first_of,
    overlaid,
    read_number,
    read_prompt,
    read_response,
    read_source,
    read_text,
    require,
    with_system_and_tools,
)
from prefstage.data.labels import LabelScheme
from prefstage.data.messages import (
    assistant,
    common_prefix,
    is_messages,
    is_transcript,
    read_messages,
    read_transcript,
)
from prefstage.data.records import Message, Pair, Prompt
from prefstage.data.validation import make_pair

_SIDES = ("chosen", "rejected")
_SPELLINGS = {
    "score_chosen": ("score_chosen", "chosen_score", "chosen_rating", "chosen-rating"),
    "score_rejected": ("score_rejected", "rejected_score", "rejected_rating", "rejected-rating"),
    "source_chosen": ("source_chosen", "chosen_model", "chosen-model"),
    "source_rejected": ("source_rejected", "rejected_model", "rejected-model"),
    "agreement": ("agreement",),
    "judge_probability": ("judge_probability",),
}


def _optional_fields(row: Row) -> dict[str, Any]:
    """Scores, sources and agreement where the row has them."""
    found: dict[str, Any] = {}
    for name, spellings in _SPELLINGS.items():
        column = first_of(row, spellings)
        if column is not None:
            read = read_source if name.startswith("source") else read_number
            found[name] = read(row, column)
    if first_of(row, ("votes",)):
        found["votes"] = read_votes(row["votes"], "votes")
    if row.get("judge_status") == "undecided":  # as prefstage judge writes it, beside a ½
        found.pop("judge_probability", None)
    return found


def _pair(row: Row, prompt: Prompt, chosen: Sequence[Message], rejected: Sequence[Message]) -> Pair:
    return make_pair(prompt, chosen, rejected, **_optional_fields(row))


def _read_explicit(row: Row, _: LabelScheme | None) -> Pair:
    """A prompt column beside both responses, each text, a message or messages."""
    prompt = read_prompt(row)
    chosen, rejected = (read_response(require(row, side), side, prompt) for side in _SIDES)
    return _pair(row, prompt, chosen, rejected)


def _read_whole_conversations(row: Row, _: LabelScheme | None) -> Pair:
    """Both sides are whole conversations; the turns that they share are the prompt."""
    chosen, rejected = (read_messages(require(row, side), side) for side in _SIDES)
    shared = common_prefix(chosen, rejected)
    if shared == len(chosen) == len(rejected):
        shared -= 1  # equal conversations: let the check of equal responses say so
    prompt = with_system_and_tools(row, chosen[:shared])
    return _pair(row, prompt, chosen[shared:], rejected[shared:])


def _read_binarized(row: Row, _: LabelScheme | None) -> Pair:
    """A prompt text that repeats the last user turn of two whole conversations."""
    text = read_text(row, *PROMPT_NAMES)
    if all(is_messages(row.get(side)) and len(row[side]) == 1 for side in _SIDES):
        return _read_explicit(row, None)
    pair = _read_whole_conversations(row, None)
    users = [turn["content"].strip() for turn in pair.prompt if turn["role"] == "user"]
    if text.strip() not in users:
        raise RowFault(
            first_of(row, PROMPT_NAMES) or "prompt",
            saw=f"{show(text)}, which is no user turn of chosen",
            expected="the prompt that both conversations start with",
            cure="mend the row, or remove the prompt column to use the shared turns",
        )
    return pair


def _read_transcripts(row: Row, _: LabelScheme | None) -> Pair:
    sides = {side: read_transcript(read_text(row, side), side, is_prompt=False) for side in _SIDES}
    return _read_whole_conversations(overlaid(row, **sides), None)


def _read_after_transcript(row: Row, _: LabelScheme | None) -> Pair:
    prompt = read_prompt(row)
    chosen, rejected = (assistant(read_text(row, side).removeprefix(" ")) for side in _SIDES)
    return _pair(row, prompt, chosen, rejected)


def _read_implicit_texts(row: Row, _: LabelScheme | None) -> Pair:
    """Two texts; what they share up to a word's end is the prompt."""
    chosen, rejected = (read_text(row, side) for side in _SIDES)
    shared = _shared_words(chosen, rejected)
    if chosen != rejected and not chosen[:shared].strip():
        raise RowFault(
            "chosen",
            saw=f"no prompt column, and texts that share no beginning: {show(chosen)}",
            expected="a prompt, or two texts that begin with it",
            cure="name the prompt's column with columns={'prompt': ...}",
        )
    if chosen == rejected:
        return make_pair(_user("?"), assistant(chosen), assistant(rejected))
    return _pair(row, _user(chosen[:shared]), *(assistant(t[shared:]) for t in (chosen, rejected)))


def _shared_words(first: str, second: str) -> int:
    """Length of the common beginning, without the whitespace and word at its end."""
    pairs = zip(first, second, strict=False)
    shared = next(
        (index for index, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second))
    )
    while shared and not (shared < len(first) and first[shared].isspace()):
        shared -= 1
    return len(first[:shared].rstrip())


def _read_sharegpt(row: Row, _: LabelScheme | None) -> Pair:
    return _read_explicit(overlaid(row, prompt=require(row, "conversations")), None)


def _read_alpaca_output(row: Row, _: LabelScheme | None) -> Pair:
    output = require(row, "output")
    if isinstance(output, str) or len(output) != 2 or not all(isinstance(t, str) for t in output):  # noqa: PLR2004 - chosen and rejected
        raise RowFault(
            "output",
            saw=show(output),
            expected="a list of two texts: chosen, rejected",
            cure="mend the row, or name columns with columns={...}",
        )
    return _read_explicit(overlaid(row, chosen=output[0], rejected=output[1]), None)


def _user(text: str) -> Prompt:
    return ({"role": "user", "content": text},)


def _sides(row: Row, test: Any) -> bool:
    return all(test(row.get(side)) for side in _SIDES)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _prompt_of(row: Row) -> Any:
    name = first_of(row, PROMPT_NAMES)
    return None if name is None else row[name]


PAIRED = (
    Format(
        name="hh-transcript",
        kind="pairs",
        needs=("chosen", "rejected"),
        recognises=lambda row: _sides(row, is_transcript),
        read=_read_transcripts,
    ),
    Format(
        name="hh-transcript-prompt",
        kind="pairs",
        needs=("prompt", "chosen", "rejected"),
        recognises=lambda row: _sides(row, _is_text) and is_transcript(_prompt_of(row)),
        read=_read_after_transcript,
    ),
    Format(
        name="sharegpt",
        kind="pairs",
        needs=("conversations", "chosen", "rejected"),
        recognises=lambda row: (
            is_messages(row.get("conversations"))
            and _sides(row, lambda value: isinstance(value, str | Mapping) or is_messages(value))
        ),
        read=_read_sharegpt,
    ),
    Format(
        name="alpaca",
        kind="pairs",
        needs=("instruction", "input", "chosen", "rejected"),
        recognises=lambda row: (
            _sides(row, _is_text)
            and first_of(row, PROMPT_NAMES) == "instruction"
            and _is_text(row["instruction"])
        ),
        read=_read_explicit,
    ),
    Format(
        name="alpaca-output-list",
        kind="pairs",
        needs=("instruction", "input", "output"),
        recognises=lambda row: (
            _is_text(row.get("instruction"))
            and isinstance(row.get("output"), Sequence)
            and not _is_text(row["output"])
            and "chosen" not in row
        ),
        read=_read_alpaca_output,
        note="output read as [chosen, rejected] (LLaMA-Factory's order)",
    ),
    Format(
        name="ultrafeedback-binarized",
        kind="pairs",
        needs=("prompt", "chosen", "rejected", "score_chosen", "score_rejected", "messages"),
        recognises=lambda row: _sides(row, is_messages) and _is_text(_prompt_of(row)),
        read=_read_binarized,
    ),
    Format(
        name="trl-conversational",
        kind="pairs",
        needs=("prompt", "chosen", "rejected"),
        recognises=lambda row: (
            is_messages(_prompt_of(row)) and _sides(row, lambda value: value is not None)
        ),
        read=_read_explicit,
    ),
    Format(
        name="trl-conversational-implicit",
        kind="pairs",
        needs=("chosen", "rejected"),
        recognises=lambda row: _sides(row, is_messages) and _prompt_of(row) is None,
        read=_read_whole_conversations,
        note="prompt read from the turns that chosen and rejected share",
    ),
    Format(
        name="trl-standard",
        kind="pairs",
        needs=("prompt", "chosen", "rejected"),
        recognises=lambda row: (
            _sides(row, lambda value: _is_text(value) or is_messages(value))
            and _is_text(_prompt_of(row))
        ),
        read=_read_explicit,
    ),
    Format(
        name="trl-standard-implicit",
        kind="pairs",
        needs=("chosen", "rejected"),
        recognises=lambda row: _sides(row, _is_text) and _prompt_of(row) is None,
        read=_read_implicit_texts,
        note="prompt read from the words that chosen and rejected share at their start",
    ),
)
"""Tried in this order: the more special before the more general."""
