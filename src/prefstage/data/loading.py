"""`load_pairs` and `load_candidates`: any dataset in, canonical records out."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, cast, overload

from prefstage.core.errors import DataError
from prefstage.data.disk_numbers import count_different, hashes_of
from prefstage.data.faults import LoadReport
from prefstage.data.grouping import group_by_prompt
from prefstage.data.reading import OnBadRow, Reading, open_reading
from prefstage.data.records import Candidates, Pair
from prefstage.data.sets import CandidateSet, CandidateStream, PairSet, PairStream
from prefstage.data.sources import Given
from prefstage.data.vote_merging import merge_annotators, pair_key


@overload
def load_pairs(
    source: Given,
    *,
    format: str | None = None,
    columns: Mapping[str, str] | None = None,
    labels: Mapping[Any, str] | None = None,
    split: str | None = None,
    on_bad_row: OnBadRow = "error",
    quarantine_file: str | Path | None = None,
    streaming: Literal[False] = False,
) -> PairSet: ...
@overload
def load_pairs(
    source: Given,
    *,
    format: str | None = None,
    columns: Mapping[str, str] | None = None,
    labels: Mapping[Any, str] | None = None,
    split: str | None = None,
    on_bad_row: OnBadRow = "error",
    quarantine_file: str | Path | None = None,
    streaming: Literal[True],
) -> PairStream: ...
def load_pairs(
    source: Given,
    *,
    format: str | None = None,
    columns: Mapping[str, str] | None = None,
    labels: Mapping[Any, str] | None = None,
    split: str | None = None,
    on_bad_row: OnBadRow = "error",
    quarantine_file: str | Path | None = None,
    streaming: bool = False,
) -> PairSet | PairStream:
    """Load preference pairs from any dataset whose format is known or described.

    Rows of several annotators on the same pair become one pair, whose agreement is the
    share of their votes; the report counts them.

    Args:
        source: A file (.jsonl, .json, .csv, .tsv, .parquet, each perhaps .gz), a folder (of
            `save_to_disk`, or of data files), a URL, a Hub id ``name``, ``name:split`` or
            ``name:config:split``, a `datasets` object, or a list of rows (mappings).
        format: Name of a format (see docs/data.md); None to recognise it.
        columns: Role to column name, for columns with names of their own:
            ``{"prompt": "question", "chosen": "good", "rejected": "bad"}``.
        labels: What label values mean, where a column says which response won:
            ``{0: "first", 1: "second", 2: "tie"}``; None to read them as the report says.
        split: Split of a folder or Hub dataset with several.
        on_bad_row: "error": one error that shows the first bad rows and counts them all.
            "quarantine": bad rows are written to `quarantine_file` and counted.
        quarantine_file: JSON-lines file for bad rows; replaced if it exists.
        streaming: Read row by row without a dataset on disk, however large the source;
            "error" then stops at the first bad row.

    Returns:
        The pairs, with a report of what was recognised, kept and set aside.

    Raises:
        DataError: If the source, its format or its rows cannot be read; one line.
        InputError: If an argument is wrong or without effect.
    """
    reading = open_reading(
        source,
        "pairs",
        format=format,
        columns=columns,
        labels=labels,
        split=split,
        on_bad_row=on_bad_row,
        quarantine_file=quarantine_file,
        streaming=streaming,
    )
    if not streaming:
        return _read_pairs(reading)
    _check_stream(reading)
    return PairStream(reading)


@overload
def load_candidates(
    source: Given,
    *,
    format: str | None = None,
    columns: Mapping[str, str] | None = None,
    labels: Mapping[Any, str] | None = None,
    split: str | None = None,
    on_bad_row: OnBadRow = "error",
    quarantine_file: str | Path | None = None,
    streaming: Literal[False] = False,
) -> CandidateSet: ...
@overload
def load_candidates(
    source: Given,
    *,
    format: str | None = None,
    columns: Mapping[str, str] | None = None,
    labels: Mapping[Any, str] | None = None,
    split: str | None = None,
    on_bad_row: OnBadRow = "error",
    quarantine_file: str | Path | None = None,
    streaming: Literal[True],
) -> CandidateStream: ...
def load_candidates(
    source: Given,
    *,
    format: str | None = None,
    columns: Mapping[str, str] | None = None,
    labels: Mapping[Any, str] | None = None,
    split: str | None = None,
    on_bad_row: OnBadRow = "error",
    quarantine_file: str | Path | None = None,
    streaming: bool = False,
) -> CandidateSet | CandidateStream:
    """Load prompts with their candidate responses; also from any dataset of pairs.

    Each prompt stands once: rows of one prompt are grouped. From pairs, a response that
    several pairs of a prompt share is kept once (counted in the report).

    Args:
        source: As in `load_pairs`.
        format: As in `load_pairs`.
        columns: As in `load_pairs`.
        labels: As in `load_pairs`.
        split: As in `load_pairs`.
        on_bad_row: As in `load_pairs`.
        quarantine_file: As in `load_pairs`.
        streaming: As in `load_pairs`; only for formats whose rows hold a prompt with all
            its responses, since grouping needs the whole dataset.

    Returns:
        The candidates, with a report.

    Raises:
        DataError: As in `load_pairs`.
        InputError: As in `load_pairs`.
    """
    reading = open_reading(
        source,
        "candidates",
        format=format,
        columns=columns,
        labels=labels,
        split=split,
        on_bad_row=on_bad_row,
        quarantine_file=quarantine_file,
        streaming=streaming,
    )
    if not streaming:
        return _read_candidates(reading)
    if reading.format.kind != "candidates":
        raise DataError.of(
            saw=f"streaming=True for {reading.source.name}, read as {reading.format.name}",
            expected="a format whose rows hold all responses of a prompt",
            cure="load it without streaming, so that rows can be grouped by prompt",
        )
    return CandidateStream(reading)


def _read_pairs(reading: Reading) -> PairSet:
    report = reading.new_report()
    pairs = read_pair_set(reading, report)
    with hashes_of(pairs.dataset["prompt_id"]) as prompts:
        repeated = len(pairs) - count_different(prompts)
    if repeated:
        report.notes.append(f"{repeated} pairs repeat the prompt of an earlier pair (all kept)")
    return pairs


def read_pair_set(reading: Reading, report: LoadReport) -> PairSet:
    """All pairs of a reading, those of several annotators made one.

    Args:
        reading: Of a format of pairs.
        report: Filled while the rows come.

    Returns:
        The pairs.

    Raises:
        DataError: As `Reading.records`.
    """
    rows = cast("Iterator[Pair]", reading.records(report))
    return merge_annotators(PairSet.of(rows, report=report))


def _check_stream(reading: Reading) -> None:
    """Refuse to stream rows whose annotators' votes would have to be counted together.

    Raises:
        DataError: If two annotators labelled the same pair among the first rows.
    """
    voters: dict[str, str] = {}
    for pair in reading.first_pairs():
        if pair.annotator is None:
            continue
        if voters.setdefault(pair_key(pair), pair.annotator) != pair.annotator:
            raise DataError.of(
                saw=f"streaming=True for {reading.source.name}, where several annotators "
                "labelled the same pair",
                expected="one row for each pair",
                cure="load it without streaming, so that their votes can be counted",
            )


def _read_candidates(reading: Reading) -> CandidateSet:
    report = reading.new_report()
    rows = cast("Iterator[Candidates]", reading.records(report))
    merge = reading.format.kind == "pairs"
    return group_by_prompt(CandidateSet.of(rows, report=report), merge=merge)
