"""Formats whose rows name a chosen and a rejected response."""

from typing import Any

from prefstage.data.faults import RowFault, show
from prefstage.data.formats.base import (
    Format,
    Row,
    first_of,
    make_pair,
    read_number,
    read_text,
)
from prefstage.data.labels import LabelScheme
from prefstage.data.messages import (
    assistant,
    common_prefix,
    is_transcript,
    read_message,
    read_messages,
    read_transcript,
)
from prefstage.data.records import Pair

PROMPT_NAMES = ("prompt", "instruction", "question", "query")
_SPELLINGS = {
    "score_chosen": ("score_chosen", "chosen_score", "chosen_rating", "chosen-rating"),
    "score_rejected": ("score_rejected", "rejected_score", "rejected_rating", "rejected-rating"),
    "source_chosen": ("source_chosen", "chosen_model", "chosen-model"),
    "source_rejected": ("source_rejected", "rejected_model", "rejected-model"),
    "agreement": ("agreement",),
}


def optional_fields(row: Row) -> dict[str, Any]:
    """Scores, sources and agreement where the row has them, checked."""
    found: dict[str, Any] = {}
    for name, spellings in _SPELLINGS.items():
        column = first_of(row, spellings)
        if column is None:
            continue
        if name.startswith("source"):
            found[name] = None if row[column] is None else read_text(row, column)
        else:
            found[name] = read_number(row, column)
    agreement = found.get("agreement")
    if agreement is not None and not 0.5 <= agreement <= 1:
        raise RowFault(
            "agreement",
            saw=show(agreement),
            expected="the share of raters for chosen, in [0.5, 1]",
            cure="swap chosen and rejected where it is below 0.5",
        )
    return found


def _read_sharegpt(row: Row, _: LabelScheme | None) -> Pair:
    prompt = read_messages(row["conversations"], "conversations")
    system = row.get("system")
    if isinstance(system, str) and system:
        prompt = ({"role": "system", "content": system}, *prompt)
    chosen, rejected = (
        (read_message(row[side], side),) if not isinstance(row[side], str) else assistant(row[side])
        for side in ("chosen", "rejected")
    )
    return make_pair(prompt, chosen, rejected, **optional_fields(row))


def _read_transcripts(row: Row, _: LabelScheme | None) -> Pair:
    chosen = read_transcript(read_text(row, "chosen"), "chosen")
    rejected = read_transcript(read_text(row, "rejected"), "rejected")
    shared = common_prefix(chosen, rejected)
    return make_pair(chosen[:shared], chosen[shared:], rejected[shared:], **optional_fields(row))


PAIRED = (
    Format(
        name="hh-transcript",
        kind="pairs",
        columns="chosen, rejected: '\\n\\nHuman: …\\n\\nAssistant: …'",
        recognises=lambda row: (
            is_transcript(row.get("chosen")) and is_transcript(row.get("rejected"))
        ),
        read=_read_transcripts,
    ),
    Format(
        name="sharegpt",
        kind="pairs",
        columns="conversations: [{from, value}], chosen: {from, value}, rejected: {from, value}",
        recognises=lambda row: {"conversations", "chosen", "rejected"} <= row.keys(),
        read=_read_sharegpt,
    ),
)
