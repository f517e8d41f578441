"""One pass over a dataset: rows in, checked canonical records out, bad rows accounted for."""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any, ClassVar, Generic, TypeVar, cast

from prefstage.core.errors import DataError, InputError
from prefstage.core.files import atomic_path
from prefstage.data.formats import (
    Format,
    Row,
    Wanted,
    check_columns,
    check_mapped,
    format_named,
    recognise,
    rename,
)
from prefstage.data.formats.fields import SourceRow, read_annotator
from prefstage.data.labels import LabelScheme, declared_scheme
from prefstage.data.messages import SYSTEM_ROLES, template_mark, turn
from prefstage.data.records import TIE, Candidates, Message, Pair, Record, prompt_id_of
from prefstage.data.rows import BadRow, LoadReport, Observations, RawRow, RowFault
from prefstage.data.sets import CandidateSet, PairSet, RecordSet
from prefstage.data.settings import ReadOptions
from prefstage.data.sources import DataSource, Source, open_source
from prefstage.data.storage import MESSAGE_COLUMNS
from prefstage.data.validation import check_storable

R = TypeVar("R", bound=Record)

_log = logging.getLogger(__name__)
ASIDE_CURE = "set on_bad_row='quarantine' with a quarantine_file"
"""What the error of bad rows advises besides mending them."""
_PEEKED_ROWS = 1000
_SHOWN_BAD_ROWS = 3
_OFTEN_EMPTY = ("annotator", "votes", "generations")
_MEDIA = {
    "<image>": ("images", "image", "img", "image_path", "image_paths", "pixel_values"),
    "<video>": ("videos", "video", "video_path"),
    "<audio>": ("audios", "audio", "audio_path"),
}


@dataclass(frozen=True)
class Reading:
    """How to read one dataset; every call of `records` is one whole pass.

    Attributes:
        source: The rows.
        wanted: Pairs, candidates (which pairs are turned into), labelled responses or
            conversations (which their loaders make of pairs).
        format: Recognised or requested.
        scheme: Meaning of the labels, or None.
        columns: Role to column, where they differ.
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
            rows = (self._tracked(observations, row) for row in self.source.rows())
            gather = self.format.gather
            for row in rows if gather is None else gather(rows, observations):
                report.rows_read += 1
                try:
                    record = self._read(row, observations)
                    tie = isinstance(record, Pair) and record.agreement == TIE
                    if isinstance(record, Pair) and self.wanted == "candidates":
                        record = record.candidates()
                except RowFault as fault:
                    bad.add(row, fault)
                    continue
                report.keep(row.file, row.number)
                report.ties += tie
                yield record
            bad.finish(report)
            report.unused_columns = observations.unused()
            for warning in observations.warnings():
                _log.warning("%s: %s", self.source.name, warning)
            report.notes.extend(observations.notes())
            if self.stop_at_bad_row and len(observations.annotators) > 1:
                report.notes.append(
                    "streaming: rows of several annotators on one pair stay a pair each; load "
                    "without streaming to count their votes"
                )

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

    def _tracked(self, observations: Observations, row: RawRow) -> RawRow:
        if row.fault is not None:
            return row
        observations.columns.update(dict.fromkeys(row.values))
        values = SourceRow(rename(row.values, self.columns), self.columns, observations)
        return replace(row, values=values)

    def _read(self, row: RawRow, observations: Observations) -> Record:
        if row.fault is not None:
            raise row.fault
        record = self.format.read(row.values, self.scheme)
        labelled = self.wanted != "candidates"
        record = _finished(record, row.values, observations, with_annotators=labelled)
        check_storable(record)
        return record


def _finished(
    record: Record, row: SourceRow, observations: Observations, *, with_annotators: bool
) -> Record:
    # The rules that hold for all formats; what they change is noted.
    record = _without_blank_systems(record, observations)
    messages = list(_all_messages(record))
    for sign, columns in _MEDIA.items():
        column = next(
            (name for name in columns if name in row and _holds_media(row.peek(name))), None
        )
        if column is not None and any(sign in message["content"] for message in messages):
            raise RowFault(
                column,
                saw=f"{sign} in the text, and what belongs there",
                expected="text alone",
                cure="remove the rows with pictures, sounds or films: only text is supported",
            )
    rendered = (message.get(name) for message in messages for name in ("tools", "tool_calls"))
    observations.nulls += any(map(_has_null, rendered))
    mark = template_mark(messages)
    if mark is not None:
        observations.templated[mark] += 1
    labelled = with_annotators and isinstance(record, Pair) and not record.votes
    annotator = read_annotator(row) if labelled else None
    if annotator is not None:
        record = replace(cast("Pair", record), annotator=annotator)
        if len(observations.annotators) <= 1:
            observations.annotators.add(annotator)
    # Columns of our files of which nothing is lost: ids made anew, votes of nobody.
    if row.peek("prompt_id") == record.prompt_id:
        observations.used.add("prompt_id")
    observations.used.update(name for name in _OFTEN_EMPTY if not row.peek(name))
    return record


def _without_blank_systems(record: Record, observations: Observations) -> Record:
    # A system turn without text says nothing, but templates would render it, or leave their
    # default system prompt out for it; its tools move on.
    kept = [m for m in record.prompt if m["role"] not in SYSTEM_ROLES or m["content"].strip()]
    blank = len(record.prompt) - len(kept)
    if not blank:
        return record
    observations.blank_systems += blank
    tools: Any = next((m["tools"] for m in record.prompt if m.get("tools") is not None), None)
    if tools is not None and kept and "tools" not in kept[0]:
        kept[0] = {**kept[0], "tools": tools}
    return replace(record, prompt=tuple(kept), prompt_id=prompt_id_of(kept))


def _holds_media(value: Any) -> bool:
    if isinstance(value, str | Sequence):
        return any(item is not None for item in value)
    return value is not None


def _has_null(value: Any) -> bool:
    # A null for a field of an object, at any depth; nulls in lists are meant.
    if isinstance(value, Mapping):
        return any(item is None or _has_null(item) for item in value.values())
    return isinstance(value, list | tuple) and any(map(_has_null, value))


def _all_messages(record: Record) -> Iterator[Message]:
    if isinstance(record, Candidates):
        return chain(record.prompt, *map(turn, record.responses))
    return chain.from_iterable(getattr(record, column, ()) for column in MESSAGE_COLUMNS)


@dataclass
class _BadRows:
    # The bad rows of one pass: the first few to show, the rest counted or set aside.

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
            raise _no_rows(name)
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
    # The file for bad rows of one pass: whole or absent, and empty if there are none.
    if path is None:
        yield None
        return
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
        yield stream


def open_reading(
    data: DataSource,
    wanted: Wanted,
    options: ReadOptions | None = None,
    *,
    streaming: bool = False,
    fallback: Format | None = None,
) -> Reading:
    """Check the settings, open the source and settle its format from the first rows.

    Args:
        data: As in `load_pairs`.
        wanted: What its rows shall become.
        options: How it is read; None for the defaults.
        streaming: Whether rows are used as they come, and the first bad one is an error.
        fallback: The format of rows that no other format fits.

    Raises:
        DataError: As `load_pairs`.
        InputError: As `load_pairs`.
    """
    options = options or ReadOptions()
    quarantine = _check_policy(data, options)
    check_columns(options.columns)
    requested = None if options.format is None else format_named(options.format, wanted)
    source = open_source(data, split=options.split, streaming=streaming)
    sample = _peek(source)
    check_mapped(options.columns, sample[0], source.name)
    rows = [SourceRow(rename(row, options.columns)) for row in sample]
    chosen = requested or recognise(rows, source.name, wanted, fallback=fallback)
    if chosen.kind != "pairs" and wanted == "pairs":
        raise DataError.of(
            saw=f"format {chosen.name!r}, whose rows are responses without a chosen one",
            expected="pairs",
            cure="load it with load_candidates",
        )
    # A format's columns are named by the roles that the user has given them, if any.
    renamed = {role: options.columns.get(column, column) for role, column in chosen.renamed.items()}
    columns = {**options.columns, **renamed}
    rows = [SourceRow(rename(row, columns)) for row in sample]
    scheme = _scheme(chosen, rows, options.labels, source.name)
    notes = [*source.notes, *([chosen.note] if chosen.note else [])]
    if scheme is not None:
        notes.append(f"labels read as {scheme}")
    return Reading(
        source=source,
        wanted=wanted,
        format=chosen,
        scheme=scheme,
        columns=columns,
        quarantine_file=quarantine,
        stop_at_bad_row=streaming,
        notes=tuple(notes),
    )


def _check_policy(data: DataSource, options: ReadOptions) -> Path | None:
    file = options.quarantine_file
    if (options.on_bad_row == "quarantine") != (file is not None):
        raise InputError.of(
            saw=f"on_bad_row={options.on_bad_row!r} with quarantine_file={file!r}",
            expected="a quarantine_file if, and only if, bad rows are quarantined",
            cure="set both, or neither",
        )
    if file is None:
        return None
    if isinstance(data, str | Path) and Path(file).resolve() == Path(data).resolve():
        raise InputError.of(
            saw=f"quarantine_file={file!r}, which is the dataset itself",
            expected="another file",
            cure="name a new file for the bad rows",
        )
    return Path(file)


def _peek(source: Source) -> list[Row]:
    with closing(source.rows()) as rows:
        first = list(islice(rows, _PEEKED_ROWS))
    good = [row.values for row in first if row.fault is None]
    if good:
        return good
    faults = [BadRow.of(row.file, row.number, row.fault) for row in first if row.fault is not None]
    if not faults:
        raise _no_rows(source.name)
    raise DataError.of(
        saw=f"{source.name}, none of whose first {len(faults)} rows can be parsed: {faults[0]}",
        expected="rows of a dataset",
        cure="check that the file is what its ending says",
    )


def _no_rows(name: str) -> DataError:
    return DataError.of(
        saw=f"{name} without any row",
        expected="at least one row",
        cure="check how the file was made",
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
    return format_.labels(rows, name) if callable(format_.labels) else format_.labels


class RecordStream(Generic[R]):
    """Records read row by row from their source, in flat memory; every iteration reads anew.

    `PairStream` and `CandidateStream` are its uses.

    Args:
        reading: The source and how it is read.

    Attributes:
        reading: The source and how it is read.
        report: The account of the current (or last) iteration.
    """

    kind: ClassVar[type[RecordSet[Any]]]

    def __init__(self, reading: Reading) -> None:
        self.reading = reading
        self.report = reading.new_report()

    def __iter__(self) -> Iterator[R]:
        """The records in order."""
        self.report = self.reading.new_report()
        return cast("Iterator[R]", self.reading.records(self.report))

    def save(self, path: str | Path) -> None:
        """Read all rows and write their canonical columns; see `storage.save_dataset`."""
        self.kind.of(self).save(path)


class PairStream(RecordStream[Pair]):
    """Pairs, row by row; see `RecordStream`."""

    kind = PairSet


class CandidateStream(RecordStream[Candidates]):
    """Candidates, row by row; a prompt that stands in two rows comes twice."""

    kind = CandidateSet
