"""The loaders: any dataset in, canonical records out."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal, TypeVar, Unpack, cast, overload

from prefstage.core.config import check_config
from prefstage.core.errors import DataError
from prefstage.data.formats import PROMPTS
from prefstage.data.grouping import group_by_prompt, merge_annotators, pair_key
from prefstage.data.reading import CandidateStream, PairStream, Reading, open_reading
from prefstage.data.records import Candidates, Conversation, Pair
from prefstage.data.rows import LoadReport
from prefstage.data.sets import CandidateSet, ConversationSet, PairSet, RecordSet, UnpairedSet
from prefstage.data.settings import ReadArguments, ReadOptions
from prefstage.data.sources import DataSource

_Set = TypeVar("_Set", bound=RecordSet[Any])


@overload
def load_pairs(
    source: DataSource, *, streaming: Literal[False] = False, **options: Unpack[ReadArguments]
) -> PairSet: ...
@overload
def load_pairs(
    source: DataSource, *, streaming: Literal[True], **options: Unpack[ReadArguments]
) -> PairStream: ...
def load_pairs(
    source: DataSource, *, streaming: bool = False, **options: Unpack[ReadArguments]
) -> PairSet | PairStream:
    """Load preference pairs from any dataset whose format is known or described.

    Rows of several annotators on the same pair become one pair, whose agreement is the
    share of their votes; the report counts them.

    Args:
        source: A file (.jsonl, .json, .csv, .tsv, .parquet, each perhaps .gz), a folder (of
            `save_to_disk`, or of data files), a URL, a Hub id ``name``, ``name:split`` or
            ``name:config:split``, a `datasets` object, a list of rows (mappings) or of
            records, or a record set.
        streaming: Read row by row without a dataset on disk, however large the source;
            "error" then stops at the first bad row.
        **options: The fields of `ReadOptions`. `format`: name of a format (see docs/data.md),
            None to recognise it. `columns`: role to column name, for columns with names of
            their own (``{"prompt": "question", "chosen": "good", "rejected": "bad"}``).
            `labels`: what label values mean, where a column says which response won
            (``{0: "first", 1: "second", 2: "tie"}``), None to read them as the report says.
            `split`: of a folder or Hub dataset with several. `on_bad_row`: "error" (one error
            that shows the first bad rows and counts them all) or "quarantine" (bad rows are
            written to `quarantine_file` and counted). `quarantine_file`: JSON-lines file for
            bad rows; replaced if it exists.

    Returns:
        The pairs, with a report of what was recognised, kept and set aside.

    Raises:
        DataError: If the source, its format or its rows cannot be read; one line.
        InputError: If an argument is wrong or without effect.
    """
    if not streaming:
        return _load(PairSet, source, options)
    reading = open_reading(source, "pairs", check_config(ReadOptions, options), streaming=True)
    _check_votes(reading)
    return PairStream(reading)


@overload
def load_candidates(
    source: DataSource, *, streaming: Literal[False] = False, **options: Unpack[ReadArguments]
) -> CandidateSet: ...
@overload
def load_candidates(
    source: DataSource, *, streaming: Literal[True], **options: Unpack[ReadArguments]
) -> CandidateStream: ...
def load_candidates(
    source: DataSource, *, streaming: bool = False, **options: Unpack[ReadArguments]
) -> CandidateSet | CandidateStream:
    """Load prompts with their candidate responses; also from any dataset of pairs.

    Each prompt stands once: rows of one prompt are grouped. From pairs, a response that
    several pairs of a prompt share is kept once (counted in the report).

    Args:
        source: As in `load_pairs`.
        streaming: As in `load_pairs`; only for formats whose rows hold a prompt with all
            its responses, since grouping needs the whole dataset.
        **options: As in `load_pairs`.

    Returns:
        The candidates, with a report.

    Raises:
        DataError: As in `load_pairs`.
        InputError: As in `load_pairs`.
    """
    if not streaming:
        return _load(CandidateSet, source, options)
    reading = open_reading(source, "candidates", check_config(ReadOptions, options), streaming=True)
    if reading.format.kind != "candidates":
        raise DataError.of(
            saw=f"streaming=True for {reading.source.name}, read as {reading.format.name}",
            expected="a format whose rows hold all responses of a prompt",
            cure="load it without streaming, so that rows can be grouped by prompt",
        )
    return CandidateStream(reading)


def load_prompts(source: DataSource, **options: Unpack[ReadArguments]) -> CandidateSet:
    """Load prompts: of pairs or candidates, or of a dataset that has nothing else.

    Args:
        source: As in `load_pairs`.
        **options: As in `load_pairs`.

    Returns:
        Each prompt once, with the responses that the dataset has, if any.

    Raises:
        DataError: As in `load_pairs`.
        InputError: As in `load_pairs`.
    """
    return _load(CandidateSet, source, options, prompts=True)


def load_unpaired(source: DataSource, **options: Unpack[ReadArguments]) -> UnpairedSet:
    """Load responses that are labelled desirable or undesirable, one a row.

    Args:
        source: As in `load_pairs`. Of pairs, the chosen response is desirable and the
            rejected one undesirable; ties say neither, and are left out (counted).
        **options: As in `load_pairs`; ``columns={"prompt": "question", "completion":
            "answer", "label": "liked"}``.

    Returns:
        The labelled responses, with a report of what was recognised, kept and set aside.

    Raises:
        DataError: As in `load_pairs`.
        InputError: As in `load_pairs`.
    """
    return _load(UnpairedSet, source, options)


def load_conversations(source: DataSource, **options: Unpack[ReadArguments]) -> ConversationSet:
    """Load demonstrations: conversations, prompts with completions, or the chosen side of pairs.

    Args:
        source: As in `load_pairs`. Of whole conversations every assistant turn that answers
            somebody is to be learnt; of a prompt with its completion (and of pairs) only
            what follows the prompt. Ties among pairs are left out (counted).
        **options: As in `load_pairs`; ``columns={"messages": "dialog"}``, or
            ``columns={"prompt": "question", "completion": "answer"}``.

    Returns:
        The conversations, with a report of what was recognised, kept and set aside.

    Raises:
        DataError: As in `load_pairs`.
        InputError: As in `load_pairs`.
    """
    return _load(ConversationSet, source, options)


def _load(
    kind: type[_Set], source: DataSource, options: ReadArguments, *, prompts: bool = False
) -> _Set:
    # The loader behind the five. A set of the wanted kind is what it would make of it.
    if type(source) is kind and not options:
        return source
    fallback = PROMPTS if prompts else None
    reading = open_reading(
        source, kind.wanted, check_config(ReadOptions, options), fallback=fallback
    )
    return cast("_Set", _MAKERS[kind](reading, reading.new_report()))


def _pairs(reading: Reading, report: LoadReport) -> PairSet:
    pairs = PairSet.of(cast("Iterator[Pair]", reading.records(report)), report=report)
    annotators = pairs.dataset.data.column("annotator")
    return pairs if annotators.null_count == len(pairs) else merge_annotators(pairs)


def _pair_set(reading: Reading, report: LoadReport) -> PairSet:
    pairs = _pairs(reading, report)
    repeated = pairs.repeated_prompts()
    if repeated:
        report.notes.append(f"{repeated} pairs repeat the prompt of an earlier pair (all kept)")
    return pairs


def _candidate_set(reading: Reading, report: LoadReport) -> CandidateSet:
    rows = cast("Iterator[Candidates]", reading.records(report))
    merge = reading.format.kind == "pairs"
    return group_by_prompt(CandidateSet.of(rows, report=report), merge=merge)


def _unpaired_set(reading: Reading, report: LoadReport) -> UnpairedSet:
    rows = UnpairedSet.of(_untied(reading, report, Pair.unpaired), report=report)
    if reading.format.kind == "pairs":
        report.notes.append("each pair gives a desirable and an undesirable response")
        if report.ties:
            report.notes.append(f"{report.ties} ties left out: neither response is desirable")
    desirable = sum(rows.dataset["label"])
    report.notes.append(f"{desirable} desirable and {len(rows) - desirable} undesirable responses")
    return rows


def _conversation_set(reading: Reading, report: LoadReport) -> ConversationSet:
    unanswered = 0

    def counted() -> Iterator[Conversation]:
        nonlocal unanswered
        for conversation in _untied(reading, report, lambda pair: [pair.demonstration()]):
            unanswered += conversation.completion[-1]["role"] != "assistant"
            yield conversation

    rows = ConversationSet.of(counted(), report=report)
    if reading.format.kind == "pairs":
        report.notes.append("the chosen response of each pair is learnt, its prompt is not")
        if report.ties:
            report.notes.append(f"{report.ties} ties left out: neither response is the better one")
    if unanswered:
        report.notes.append(
            f"{unanswered} conversations end with a turn that nobody answers (not learnt)"
        )
    return rows


def _untied(
    reading: Reading, report: LoadReport, parts: Callable[[Pair], Iterable[Any]]
) -> Iterator[Any]:
    # Records as they are read; of pairs their parts. Votes are counted first: a tie of all
    # raters may be several rows that are none.
    if reading.format.kind != "pairs":
        yield from reading.records(report)
        return
    for pair in _pairs(reading, report):
        if not pair.tied:
            yield from parts(pair)


def _check_votes(reading: Reading) -> None:
    # Rows whose annotators' votes would have to be counted together cannot be streamed.
    voters: dict[str, str] = {}
    for pair in reading.first_pairs():
        annotator = pair.annotator
        if annotator and voters.setdefault(pair_key(pair), annotator) != annotator:
            raise DataError.of(
                saw=f"streaming=True for {reading.source.name}, where several annotators "
                "labelled the same pair",
                expected="one row for each pair",
                cure="load it without streaming, so that their votes can be counted",
            )


_MAKERS: Mapping[type[RecordSet[Any]], Callable[[Reading, LoadReport], RecordSet[Any]]] = {
    PairSet: _pair_set,
    CandidateSet: _candidate_set,
    UnpairedSet: _unpaired_set,
    ConversationSet: _conversation_set,
}
