"""One pass over a dataset: rows in, checked canonical rows out, bad rows accounted for."""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, Any, Literal

from prefstage.core.errors import DataError, InputError
from prefstage.core.files import atomic_path
from prefstage.data.conversions import candidates_of_pair
from prefstage.data.faults import BadRow, LoadReport, RowFault
from prefstage.data.finishing import finish_record
from prefstage.data.formats import Format, Row
from prefstage.data.labels import LabelScheme, declared_scheme
from prefstage.data.observations import Observations, SourceRow
from prefstage.data.raw_rows import RawRow
from prefstage.data.recognition import (
    Wanted,
    check_columns,
    check_mapped,
    format_named,
    recognise,
    rename,
)
from prefstage.data.records import TIE, Pair, Record
from prefstage.data.sources import Given, Source, open_source
from prefstage.data.validation import check_storable

_log = logging.getLogger(__name__)
OnBadRow = Literal["error", "quarantine"]
ASIDE_CURE = "set on_bad_row='quarantine' with a quarantine_file"
"""What the error of bad rows tells to do besides mending them."""
_PEEKED_ROWS = 1000
_SHOWN_BAD_ROWS = 3


@dataclass(frozen=True)
class Reading:
    """How to read one dataset; every call of `records` is one whole pass.

    Attributes:
        source: The rows.
        wanted: Pairs, candidates (which pairs are turned into), labelled responses or
            conversations (which their loaders make of pairs).
        format: Recognised or given.
        scheme: Meaning of the labels, or None.
        columns: Role of each renamed column.
        quarantine_file: Where bad rows go, or None if they are errors.
        stop_at_bad_row: Raise at the first bad row instead of after all rows.
        notes: What the report says from the start.
    """

    source: Source
    wanted: Wanted
    format: Format
    scheme: LabelScheme | None
    columns: Mapping[str, str]
    quarantine_file: Path | None
    stop_at_bad_row: bool
    notes: tuple[str, ...] = ()

    def new_report(self) -> LoadReport:
        """An empty account."""
        return LoadReport(self.source.name, self.format.name, notes=list(self.notes))

    def records(self, report: LoadReport) -> Iterator[Record]:
        """Read all rows.

        Args:
            report: Filled while the rows come.

        Raises:
            DataError: After the last row (or at the first bad one, if `stop_at_bad_row`)
                if any was bad and no quarantine file takes it, or if none was good.
        """
        with _quarantine_stream(self.quarantine_file) as stream:
            bad = _BadRows(self, stream)
            observations = Observations()
            for row in self._rows(observations):
                report.rows_read += 1
                try:
                    record = self._read(row, observations)
                    tie = isinstance(record, Pair) and record.agreement == TIE
                    if isinstance(record, Pair) and self.wanted == "candidates":
                        record = candidates_of_pair(record)
                except RowFault as fault:
                    bad.add(row, fault)
                    continue
                report.rows_kept += 1
                report.places.add(row.file, row.number)
                report.ties += tie
                yield record
            bad.finish(report)
            report.unused_columns = observations.unused()
            for warning in observations.warnings():
                _log.warning("%s: %s", self.source.name, warning)
            report.notes.extend([*observations.notes(), *self._annotator_notes(observations)])

    def first_pairs(self) -> Iterator[Pair]:
        """The good pairs among the first rows."""
        observations = Observations()
        with closing(self.source.rows()) as rows:
            for row in islice(rows, _PEEKED_ROWS):
                try:
                    record = self._read(self._tracked(observations, row), observations)
                except RowFault:
                    continue
                if isinstance(record, Pair):
                    yield record

    def _rows(self, observations: Observations) -> Iterator[RawRow]:
        """The rows, each a `SourceRow`; of formats that gather rows, what they make of them."""
        rows = map(partial(self._tracked, observations), self.source.rows())
        return rows if self.format.gather is None else self.format.gather(rows, observations)

    def _tracked(self, observations: Observations, row: RawRow) -> RawRow:
        if row.fault is not None:
            return row
        observations.columns.update(dict.fromkeys(row.values))
        values = SourceRow(rename(row.values, self.columns), self.columns, observations)
        return replace(row, values=values)

    def _read(self, row: RawRow, observations: Observations) -> Record:
        if row.fault is not None:
            raise row.fault
        record = finish_record(
            self.format.read(row.values, self.scheme),
            row.values,
            observations,
            with_annotators=self.wanted != "candidates",
        )
        check_storable(record)
        return record

    def _annotator_notes(self, observations: Observations) -> list[str]:
        if not self.stop_at_bad_row or len(observations.annotators) <= 1:
            return []
        return [
            "streaming: rows of several annotators on one pair stay a pair each; load without "
            "streaming to count their votes"
        ]


@dataclass
class _BadRows:
    """Collects the bad rows of one pass: the first few to show, the rest counted or kept."""

    reading: Reading
    stream: IO[str] | None
    count: int = 0
    first: list[BadRow] = field(default_factory=list)

    def add(self, row: RawRow, fault: RowFault) -> None:
        self.count += 1
        bad = BadRow.of(row.file, row.number, fault)
        if len(self.first) < _SHOWN_BAD_ROWS:
            self.first.append(bad)
        if self.stream is not None:
            raw = row.values.raw() if isinstance(row.values, SourceRow) else row.values
            self.stream.write(json.dumps({**vars(bad), "raw": raw}, default=str) + "\n")
        elif self.reading.stop_at_bad_row:
            raise self._error(f"{self.reading.source.name}: a bad row (later rows not read yet)")

    def finish(self, report: LoadReport) -> None:
        name = self.reading.source.name
        if report.rows_read == 0:
            raise DataError.of(
                saw=f"{name} without any row",
                expected="at least one row",
                cure="check how the file was made",
            )
        if self.count and (self.reading.quarantine_file is None or report.rows_kept == 0):
            raise self._error(f"{name}: {self.count} bad of {report.rows_read} rows")
        report.quarantined = self.count
        if self.stream is not None:
            report.quarantine_file = str(self.reading.quarantine_file)

    def _error(self, what: str) -> DataError:
        listed = "; ".join(map(str, self.first))
        more = self.count - len(self.first)
        others = f"; and {more} more" if more else ""
        return DataError.of(
            saw=f"{what}: {listed}{others}",
            expected="every row to be whole",
            cure=f"mend them, or {ASIDE_CURE}"
            if self.reading.quarantine_file is None
            else "check the format and columns, since no row is good",
        )


@contextmanager
def _quarantine_stream(path: Path | None) -> Iterator[IO[str] | None]:
    """The file for bad rows of one pass, whole or absent; empty if there are none."""
    if path is None:
        yield None
        return
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
        yield stream


def open_reading(
    given: Given,
    wanted: Wanted,
    *,
    format: str | None,
    columns: Mapping[str, str] | None,
    labels: Mapping[Any, str] | None,
    split: str | None,
    on_bad_row: OnBadRow,
    quarantine_file: str | Path | None,
    streaming: bool,
    fallback: Format | None = None,
) -> Reading:
    """Check the settings, open the source and settle its format from the first rows."""
    quarantine = _check_policy(given, on_bad_row, quarantine_file)
    check_columns(columns or {})
    chosen_format = None if format is None else format_named(format, wanted)
    source = open_source(given, split=split, streaming=streaming)
    sample = _peek(source)
    check_mapped(columns or {}, sample[0], source.name)
    rows = [SourceRow(rename(row, columns or {})) for row in sample]
    found = chosen_format or recognise(rows, source.name, wanted, fallback=fallback)
    if found.kind != "pairs" and wanted == "pairs":
        raise DataError.of(
            saw=f"format {found.name!r}, whose rows are responses without a chosen one",
            expected="pairs",
            cure="load it with load_candidates",
        )
    scheme = _scheme(found, rows, labels, source.name)
    notes = [*source.notes, *([found.note] if found.note else [])]
    if scheme is not None:
        notes.append(f"labels read as {scheme}")
    return Reading(
        source=source,
        wanted=wanted,
        format=found,
        scheme=scheme,
        columns=dict(columns or {}),
        quarantine_file=quarantine,
        stop_at_bad_row=streaming,
        notes=tuple(notes),
    )


def _check_policy(given: Given, on_bad_row: str, quarantine_file: str | Path | None) -> Path | None:
    if on_bad_row not in ("error", "quarantine"):
        raise InputError.of(
            saw=f"on_bad_row={on_bad_row!r}",
            expected="'error' or 'quarantine'",
            cure="choose one of them",
        )
    if (on_bad_row == "quarantine") != (quarantine_file is not None):
        raise InputError.of(
            saw=f"on_bad_row={on_bad_row!r} with quarantine_file="
            f"{None if quarantine_file is None else str(quarantine_file)!r}",
            expected="a quarantine_file if, and only if, bad rows are quarantined",
            cure="give both, or neither",
        )
    named = isinstance(given, str | Path) and quarantine_file is not None
    if named and Path(str(quarantine_file)).resolve() == Path(str(given)).resolve():
        raise InputError.of(
            saw=f"quarantine_file={str(quarantine_file)!r}, which is the dataset itself",
            expected="another file",
            cure="name a new file for the bad rows",
        )
    return None if quarantine_file is None else Path(quarantine_file)


def _peek(source: Source) -> list[Row]:
    """The first rows that are objects.

    Raises:
        DataError: If there are no rows, or none of the first ones is an object.
    """
    with closing(source.rows()) as rows:
        first = list(islice(rows, _PEEKED_ROWS))
    good = [row.values for row in first if row.fault is None]
    if good:
        return good
    faults = [BadRow.of(row.file, row.number, row.fault) for row in first if row.fault is not None]
    if not faults:
        raise DataError.of(
            saw=f"{source.name} without any row",
            expected="at least one row",
            cure="check how the file was made",
        )
    raise DataError.of(
        saw=f"{source.name}, none of whose first {len(faults)} rows can be parsed: {faults[0]}",
        expected="rows of a dataset",
        cure="check that the file is what its ending says",
    )


def _scheme(
    format_: Format, rows: Sequence[Row], labels: Mapping[Any, str] | None, name: str
) -> LabelScheme | None:
    if labels is not None:
        if format_.labels is None:
            raise InputError.of(
                saw=f"labels={dict(labels)} for {name}, which is read as {format_.name}",
                expected="no labels, since this format has none",
                cure="leave labels out, or name the format with format='labelled'",
            )
        return declared_scheme(labels)
    return None if format_.labels is None else format_.labels(rows, name)
