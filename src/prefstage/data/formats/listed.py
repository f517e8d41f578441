"""Formats of prompts with their responses: several in a row, or one a row."""

from prefstage.data.formats.base import (
    Format,
    Row,
    first_of,
    make_candidates,
    read_number,
    read_text,
)
from prefstage.data.labels import LabelScheme
from prefstage.data.messages import user_prompt
from prefstage.data.records import Candidates

_SOURCES = ("model", "generator", "source")
_SCORES = ("preference", "score", "reward", "rating")


def _read_answer(row: Row, _: LabelScheme | None) -> Candidates:
    source, score = first_of(row, _SOURCES), first_of(row, _SCORES)
    return make_candidates(
        user_prompt(read_text(row, "instruction")),
        [read_text(row, "output")],
        sources=[read_text(row, source) if source else None],
        scores=[read_number(row, score) if score else None],
    )


LISTED = (
    Format(
        name="model-outputs",
        kind="answers",
        columns="instruction, output, generator (or model), one row per answer",
        recognises=lambda row: (
            {"instruction", "output"} <= row.keys()
            and first_of(row, _SOURCES) is not None
            and isinstance(row["output"], str)
        ),
        read=_read_answer,
    ),
)
