"""One pass over a dataset: rows in, checked canonical records out, bad rows accounted for."""

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Generic, cast

from prefstage.core import DataError, InputError, atomic_path
from prefstage.data.compat import check_storable
from prefstage.data.formats import Wanted, check_columns, format_named, recognise
from prefstage.data.formats.fields import Format, Row, SourceRow, read_annotator
from prefstage.data.messages import SYSTEM_ROLES, template_marks, turn
from prefstage.data.records import TIE, Candidates, Message, Pair, Record, prompt_id_of
from prefstage.data.rows import (
    WARNING,
    LabelScheme,
    LoadReport,
    Observations,
    RawRow,
    RowFault,
    declared_scheme,
)
from prefstage.data.sets import (
    CandidateSet,
    DataSource,
    PairSet,
    RecordSet,
    Source,
    open_source,
)
from prefstage.data.settings import ReadOptions
from prefstage.data.storage import MESSAGE_COLUMNS, R

_log = logging.getLogger(__name__)
# What the error of bad rows advises besides mending them.
ASIDE_CURE = "set on_bad_row='quarantine' with a quarantine_file"
_PEEKED_ROWS = 1000
_SHOWN_BAD_ROWS = 3
_SETS: Mapping[str, type[RecordSet[Any]]] = {"pairs": PairSet, "candidates": CandidateSet}
_OFTEN_EMPTY = ("annotator", "votes", "generations")
_MEDIA = {
    "<image>": ("images", "image", "img", "image_path", "image_paths", "pixel_values"),
    "<video>": ("videos", "video", "video_path"),
    "<audio>": ("audios", "audio", "audio_path"),
}


class Reading(Generic[R]):
    """Records read row by row from one dataset, in flat memory; every iteration reads anew.

    To make one checks the settings, opens the source and settles its format from the first rows.
    `PairStream` and `CandidateStream` are its uses.

    Args:
        data: As in `load_pairs`.
        wanted: What its rows shall become: pairs, candidates (which pairs are turned into),
            labelled responses or conversations (which their loaders make of pairs).
        options: How it is read; None for the defaults.
        streaming: Whether rows are used as they come, and the first bad one is an error.
        fallback: The format of rows that no other format fits.

    Attributes:
        source: The rows.
        format: Recognised or requested.
        scheme: Meaning of the labels, or None.
        columns: Role to column, where they differ.
        quarantine_file: Where bad rows go, or None if they are errors.
        report: The account of the current (or last) iteration.

    Raises:
        DataError: As `load_pairs`.
        InputError: As `load_pairs`.
    """

    def __init__(
        self,
        data: DataSource,
        wanted: Wanted,
        options: ReadOptions | None = None,
        *,
        streaming: bool = False,
        fallback: Format | None = None,
    ) -> None:
        options = options or ReadOptions()
        self.wanted, self.streaming = wanted, streaming
        self.quarantine_file = _quarantine_file(data, options)
        self.source = open_source(data, split=options.split, streaming=streaming)
        name, sample = self.source.name, _peek(self.source)
        check_columns(options.columns, sample[0], name)
        rows = [SourceRow(row, options.columns) for row in sample]
        self.format = (
            recognise(rows, name, wanted, fallback=fallback)
            if options.format is None
            else format_named(options.format, wanted)
        )
        DataError.unless(
            self.format.kind == "pairs" or wanted != "pairs",
            saw=f"format {self.format.name!r}, whose rows are responses without a chosen one",
            expected="pairs",
            cure="load it with load_candidates",
        )
        # A format's columns are named by the roles that the user has given them, if any.
        self.columns = options.columns | {
            role: options.columns.get(column, column)
            for role, column in self.format.renamed.items()
        }
        rows = [SourceRow(row, self.columns) for row in sample]
        self.scheme = _scheme(self.format, rows, options.labels, name)
        labels = f"labels read as {self.scheme}" if self.scheme else None
        self._notes = (*self.source.notes, *filter(None, (self.format.note, labels)))
        self.report = LoadReport(name, self.format.name, notes=list(self._notes))
        if streaming and wanted == "pairs":
            self._check_votes(rows)

    def __iter__(self) -> Iterator[R]:
        """Read all rows anew.

        Returns:
            The records in order, each as it is read.

        Raises:
            DataError: After the last row (or at the first bad one, if `streaming`)
                if any was bad and no quarantine file takes it, or if none was good.
        """
        self.report = LoadReport(self.source.name, self.format.name, notes=list(self._notes))
        return cast("Iterator[R]", self._records(self.report))

    def _records(self, report: LoadReport) -> Iterator[Record]:
        name, observations, first = self.source.name, Observations(), list[str]()
        with ExitStack() as stack:
            if self.quarantine_file is not None:  # whole or absent, and empty without bad rows
                report.quarantine_file = str(self.quarantine_file)
                temporary = stack.enter_context(atomic_path(self.quarantine_file))
                stream = stack.enter_context(temporary.open("w", encoding="utf-8"))
            rows = (
                row
                if row.fault is not None
                else replace(row, values=SourceRow(row.values, self.columns, observations))
                for row in self.source.rows()
            )
            for row in self.format.gather(rows, observations):
                report.rows_read += 1
                try:
                    record = self._read(row, observations)
                    tie = isinstance(record, Pair) and record.agreement == TIE
                    if isinstance(record, Pair) and self.wanted == "candidates":
                        record = record.candidates()
                except RowFault as fault:
                    report.quarantined += 1
                    if len(first) < _SHOWN_BAD_ROWS:
                        first.append(fault.at(row.file, row.number))
                    if self.quarantine_file is not None:
                        raw = row.values.raw() if isinstance(row.values, SourceRow) else row.values
                        bad = {"file": row.file, "row": row.number, **vars(fault), "raw": raw}
                        stream.write(json.dumps(bad, default=str) + "\n")
                    elif self.streaming:
                        raise self._error("a bad row (later rows not read yet)", first, 1) from None
                    continue
                report.keep(row.file, row.number)
                report.ties += tie
                yield record
            count = report.quarantined
            if report.rows_read == 0:
                raise _no_rows(name)
            if count and (self.quarantine_file is None or report.rows_kept == 0):
                raise self._error(f"{count} bad of {report.rows_read} rows", first, count)
            report.unused_columns, notes = observations.unused(), observations.notes()
            report.notes += notes
            for note in filter(lambda text: text.startswith(WARNING), notes):
                _log.warning("%s: %s", name, note)
            if self.streaming and len(observations.annotators) > 1:
                report.notes.append(
                    "streaming: rows of several annotators on one pair stay a pair each; load "
                    "without streaming to count their votes"
                )

    def _error(self, what: str, first: Sequence[str], count: int) -> DataError:
        others = [f"and {count - len(first)} more"] if count > len(first) else []
        return DataError.of(
            saw=f"{self.source.name}: {what}: {'; '.join([*first, *others])}",
            expected="every row to be whole",
            cure=f"mend them, or {ASIDE_CURE}"
            if self.quarantine_file is None
            else "check the format and columns, since no row is good",
        )

    def save(self, path: str | Path) -> None:
        """Read all rows and write their canonical columns; see `storage.save_dataset`."""
        _SETS[self.wanted].of(self).save(path)

    def _check_votes(self, rows: Iterable[SourceRow]) -> None:
        # Annotators' votes have to be counted together, which streaming cannot.
        voters = dict[str, str]()
        for row in rows:
            with suppress(RowFault):
                pair = self._read(RawRow(self.source.name, 0, row), Observations())
                if isinstance(pair, Pair) and pair.annotator is not None:
                    DataError.unless(
                        voters.setdefault(pair.key, pair.annotator) == pair.annotator,
                        saw=f"streaming=True for {self.source.name}, where several annotators "
                        "labelled the same pair",
                        expected="one row for each pair",
                        cure="load it without streaming, so that their votes can be counted",
                    )

    def _read(self, row: RawRow, observations: Observations) -> Record:
        if row.fault is not None:
            raise row.fault
        values: SourceRow = row.values
        # Then the rules that hold for all formats; what they change is noted.
        record = _without_blank_systems(
            self.format.read(values, *filter(None, [self.scheme])), observations
        )
        _check_texts(values, record, observations)
        if self.wanted != "candidates" and isinstance(record, Pair) and not record.votes:
            record = replace(record, annotator=read_annotator(values))
            if record.annotator is not None and len(observations.annotators) <= 1:
                observations.annotators.add(record.annotator)
        # Columns of our files of which nothing is lost: ids made anew, votes of nobody.
        if values.peek("prompt_id") == record.prompt_id:
            observations.used.add("prompt_id")
        observations.used.update(name for name in _OFTEN_EMPTY if not values.peek(name))
        _check_storable(record)
        return record


def _check_texts(row: SourceRow, record: Record, observations: Observations) -> None:
    # Pictures and the like are faults; nulls that templates would render, and texts that a
    # template has written already, are noted.
    messages = _messages_of(record) + [
        message for text in getattr(record, "responses", ()) for message in turn(text)
    ]
    for sign, columns in _MEDIA.items():
        filled = [name for name in columns if name in row and _holds_media(row.peek(name))]
        if filled and any(sign in message["content"] for message in messages):
            raise RowFault(
                filled[0],
                saw=f"{sign} in the text, and what belongs there",
                expected="text alone",
                cure="remove the rows with pictures, sounds or films: only text is supported",
            )
    observations.nulls += any(
        _has_null(message.get(name)) for message in messages for name in ("tools", "tool_calls")
    )
    observations.templated.update(islice(template_marks(messages), 1))


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
    return any(i is not None for i in value) if isinstance(value, Sequence) else value is not None


def _has_null(value: Any) -> bool:
    # A null for a field of an object, at any depth; nulls in lists are meant.
    return (
        any(item is None or _has_null(item) for item in value.values())
        if isinstance(value, Mapping)
        else isinstance(value, list | tuple) and any(map(_has_null, value))
    )


def _messages_of(record: Record) -> list[Message]:
    return [message for column in MESSAGE_COLUMNS for message in getattr(record, column, ())]


def _check_storable(record: Record) -> None:
    # Text that UTF-8 cannot hold, and message fields that JSON or Arrow cannot, are faults.
    try:
        json.dumps(vars(record), ensure_ascii=False, default=vars).encode("utf-8")
        for message in _messages_of(record):
            if others := {n: value for n, value in message.items() if not isinstance(value, str)}:
                check_storable(others)
    except UnicodeEncodeError as error:
        raise RowFault(
            "(row)",
            saw=f"the lone surrogate {error.object[error.start]!a}, which is not UTF-8",
            expected="text that UTF-8 can hold",
            cure="remove that character, or the row",
        ) from None
    except (TypeError, ValueError, RecursionError) as error:
        raise RowFault(
            "(row)",
            saw=f"a message field that cannot be stored ({error})",
            expected="texts, numbers of 64 bits, lists and objects",
            cure="turn the value into text",
        ) from None


def _quarantine_file(data: DataSource, options: ReadOptions) -> Path | None:
    file = options.quarantine_file
    InputError.unless(
        (options.on_bad_row == "quarantine") == (file is not None),
        saw=f"on_bad_row={options.on_bad_row!r} with quarantine_file={file!r}",
        expected="a quarantine_file if, and only if, bad rows are quarantined",
        cure="set both, or neither",
    )
    InputError.unless(
        file is None
        or not isinstance(data, str | Path)
        or Path(file).resolve() != Path(data).resolve(),
        saw=f"quarantine_file={file!r}, which is the dataset itself",
        expected="another file",
        cure="name a new file for the bad rows",
    )
    return None if file is None else Path(file)


def _peek(source: Source) -> list[Row]:
    with closing(source.rows()) as rows:
        first = list(islice(rows, _PEEKED_ROWS))
    good = [row.values for row in first if row.fault is None]
    if good:
        return good
    faults = [row.fault.at(row.file, row.number) for row in first if row.fault is not None]
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
        InputError.unless(
            format_.labels,
            saw=f"labels={dict(labels)} for {name}, which is read as {format_.name}",
            expected="no labels, since this format has none",
            cure="leave labels out, or name the format with format='labelled'",
        )
        return declared_scheme(labels)
    return format_.labels(rows, name) if callable(format_.labels) else format_.labels


class PairStream(Reading[Pair]):
    """Pairs, row by row; see `Reading`."""


class CandidateStream(Reading[Candidates]):
    """Candidates, row by row; a prompt that stands in two rows comes twice."""
