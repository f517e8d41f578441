"""`load_pairs` and `load_candidates`: any dataset in, canonical records out."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from prefstage.core.errors import DataError
from prefstage.core.files import append_json_line
from prefstage.data.faults import BadRow, LoadReport, RowFault
from prefstage.data.formats import FORMATS, Format
from prefstage.data.records import Candidates, Pair
from prefstage.data.sets import CandidateSet, PairSet
from prefstage.data.sources import RawRow, read_rows

OnBadRow = Literal["error", "quarantine"]


def load_pairs(
    source: str | Path,
    *,
    on_bad_row: OnBadRow = "error",
    quarantine_file: str | Path | None = None,
) -> PairSet:
    """Load preference pairs."""
    records, report = _load(source, on_bad_row, quarantine_file)
    return PairSet.of(records, report=report)


def load_candidates(
    source: str | Path,
    *,
    on_bad_row: OnBadRow = "error",
    quarantine_file: str | Path | None = None,
) -> CandidateSet:
    """Load candidates, grouped by prompt."""
    records, report = _load(source, on_bad_row, quarantine_file)
    grouped: dict[str, Candidates] = {}
    for record in records:
        new = _pair_candidates(record) if isinstance(record, Pair) else record
        old = grouped.get(new.prompt_id)
        grouped[new.prompt_id] = new if old is None else _joined(old, new)
    return CandidateSet.of(grouped.values(), report=report)


def _joined(old: Candidates, new: Candidates) -> Candidates:
    return Candidates(
        old.prompt_id,
        old.prompt,
        old.responses + new.responses,
        old.sources + new.sources,
        old.scores + new.scores,
    )


def _pair_candidates(pair: Pair) -> Candidates:
    return Candidates(
        prompt_id=pair.prompt_id,
        prompt=pair.prompt,
        responses=(pair.chosen[0]["content"], pair.rejected[0]["content"]),
        sources=(pair.source_chosen, pair.source_rejected),
        scores=(pair.score_chosen, pair.score_rejected),
    )


def _load(source: str | Path, on_bad_row: OnBadRow, quarantine_file: str | Path | None):
    rows = list(read_rows(str(source)))
    first = next(row.values for row in rows if row.fault is None)
    format_ = next((f for f in FORMATS if f.recognises(first)), None)
    if format_ is None:
        raise DataError.of(
            saw=f"columns {', '.join(first)} in {source}",
            expected="a known format",
            cure="name the columns",
        )
    report = LoadReport(str(source), format_.name)
    return list(_records(rows, format_, report, on_bad_row, quarantine_file)), report


def _records(
    rows: Iterable[RawRow],
    format_: Format,
    report: LoadReport,
    on_bad_row: OnBadRow,
    quarantine_file: str | Path | None,
) -> Iterator[Pair | Candidates]:
    bad: list[BadRow] = []
    for row in rows:
        report.rows_read += 1
        try:
            if row.fault:
                raise row.fault
            yield format_.read(row.values, None)
            report.rows_kept += 1
        except RowFault as fault:
            bad.append(
                BadRow(
                    row.file,
                    row.number,
                    fault.field,
                    fault.saw,
                    fault.expected,
                    fault.cure,
                    row.values,
                )
            )
    if bad and on_bad_row == "error":
        raise DataError.of(
            saw=f"{len(bad)} bad rows: " + "; ".join(map(str, bad[:3])),
            expected="every row to be whole",
            cure="mend them, or load with on_bad_row='quarantine'",
        )
    for item in bad:
        record: Mapping[str, Any] = {
            "file": item.file,
            "row": item.row,
            "reason": str(item),
            "raw": item.raw,
        }
        append_json_line(Path(quarantine_file or "quarantine.jsonl"), record)
    report.quarantined = len(bad)
