"""`load_prompts`: what is to be answered, from any dataset, with responses or without."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from prefstage.data.formats import Format
from prefstage.data.formats.base import PROMPT_NAMES, Row, first_of, read_prompt
from prefstage.data.labels import LabelScheme
from prefstage.data.loading import load_candidates
from prefstage.data.reading import OnBadRow, open_reading
from prefstage.data.records import Candidates, prompt_id_of
from prefstage.data.sets import CandidateSet
from prefstage.data.sources import Given
from prefstage.data.validation import check_prompt


def load_prompts(
    source: Given,
    *,
    format: str | None = None,
    columns: Mapping[str, str] | None = None,
    split: str | None = None,
    on_bad_row: OnBadRow = "error",
    quarantine_file: str | Path | None = None,
) -> CandidateSet:
    """Load prompts: of pairs or candidates, or of a dataset that has nothing else.

    Args:
        source: As in `load_pairs`.
        format: As in `load_pairs`.
        columns: As in `load_pairs`.
        split: As in `load_pairs`.
        on_bad_row: As in `load_pairs`.
        quarantine_file: As in `load_pairs`.

    Returns:
        Each prompt once, with the responses that the dataset has, if any.

    Raises:
        DataError: As in `load_pairs`.
        InputError: As in `load_pairs`.
    """
    reading = open_reading(
        source,
        "candidates",
        format=format,
        columns=columns,
        labels=None,
        split=split,
        on_bad_row=on_bad_row,
        quarantine_file=quarantine_file,
        streaming=False,
        fallback=_PROMPTS,
    )
    if reading.format is not _PROMPTS:
        return load_candidates(
            source,
            format=format,
            columns=columns,
            split=split,
            on_bad_row=on_bad_row,
            quarantine_file=quarantine_file,
        )
    report = reading.new_report()
    seen: set[str] = set()

    def once() -> Iterator[Candidates]:
        for record in reading.records(report):
            if isinstance(record, Candidates) and record.prompt_id not in seen:
                seen.add(record.prompt_id)
                yield record

    prompts = CandidateSet.of(once(), report=report)
    if report.rows_kept > len(seen):
        report.notes.append(f"{report.rows_kept} rows hold {len(seen)} different prompts")
    return prompts


def _read_prompt_alone(row: Row, _: LabelScheme | None) -> Candidates:
    prompt = read_prompt(row)
    check_prompt(prompt)
    return Candidates(prompt_id_of(prompt), tuple(prompt), (), (), ())


_PROMPTS = Format(
    name="prompts",
    kind="candidates",
    needs=("prompt",),
    recognises=lambda row: first_of(row, PROMPT_NAMES) is not None,
    read=_read_prompt_alone,
    note="rows are prompts without responses",
)
