"""The loaders: any dataset in, canonical records out, joined by prompt and by their raters."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal, TypeVar, Unpack, cast, overload

from prefstage.core import DataError, InputError, check_config, did_you_mean
from prefstage.data.formats import PROMPTS
from prefstage.data.formats.fields import Format
from prefstage.data.reading import CandidateStream, PairStream, Reading
from prefstage.data.records import TIE, Candidates, Pair, Vote, generations_of
from prefstage.data.rows import LoadReport, RowFault, applicable
from prefstage.data.sets import (
    CandidateSet,
    ConversationSet,
    DataSource,
    PairSet,
    RecordSet,
    UnpairedSet,
    is_names,
)
from prefstage.data.settings import ReadArguments, ReadOptions

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
        return _load(PairSet, _pair_set, source, options)
    return PairStream(source, "pairs", check_config(ReadOptions, options), streaming=True)


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
        source: As in `load_pairs`; or a list of such names, each in a format of its own, whose
            responses to one prompt are pooled (the report says what each file brought). Bad
            rows of the second file go into ``FILE-2``, and so on.
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
        return _load_pool(source, options)
    stream = CandidateStream(
        source, "candidates", check_config(ReadOptions, options), streaming=True
    )
    DataError.unless(
        stream.format.kind == "candidates",
        saw=f"streaming=True for {stream.source.name}, read as {stream.format.name}",
        expected="a format whose rows hold all responses of a prompt",
        cure="load it without streaming, so that rows can be grouped by prompt",
    )
    return stream


def load_prompts(source: DataSource, **options: Unpack[ReadArguments]) -> CandidateSet:
    """Load prompts: of pairs or candidates, or of a dataset that has nothing else.

    Args:
        source: As in `load_candidates`.
        **options: As in `load_pairs`.

    Returns:
        Each prompt once, with the responses that the dataset has, if any.

    Raises:
        DataError: As in `load_pairs`.
        InputError: As in `load_pairs`.
    """
    return _load_pool(source, options, fallback=PROMPTS)


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
    return _load(UnpairedSet, _unpaired_set, source, options)


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
    return _load(ConversationSet, _conversation_set, source, options)


def _load(
    kind: type[_Set],
    make: Callable[[Reading[Any]], _Set],
    source: DataSource,
    options: ReadArguments,
    *,
    fallback: Format | None = None,
) -> _Set:
    # The loader behind the five. A set of the wanted kind is what it would make of it.
    if type(source) is kind and not options:
        return source
    return make(Reading(source, kind.wanted, check_config(ReadOptions, options), fallback=fallback))


def _load_pool(
    source: DataSource, options: ReadArguments, *, fallback: Format | None = None
) -> CandidateSet:
    # Of one source, or of several by name, whose responses to a prompt come together.
    if not is_names(source):
        return _load(CandidateSet, _candidate_set, source, options, fallback=fallback)
    parts = list[CandidateSet]()
    for number, name in enumerate(cast("Sequence[str]", source), start=1):
        own = options.copy()
        if number > 1 and (file := options.get("quarantine_file")) is not None:
            own["quarantine_file"] = str(Path(file).with_stem(f"{Path(file).stem}-{number}"))
        parts.append(_load(CandidateSet, _candidate_set, name, own, fallback=fallback))
    reports = [part.report for part in parts]
    report = LoadReport(
        ", ".join(report.source for report in reports),
        ", ".join(dict.fromkeys(report.format for report in reports)),
        rows_read=sum(report.rows_read for report in reports),
        quarantined=sum(report.quarantined for report in reports),
        quarantine_file=reports[0].quarantine_file,
        ties=sum(report.ties for report in reports),
        notes=[
            f"{report.source}: {note}"
            for part, report in zip(parts, reports, strict=True)
            for note in (
                f"{_count_responses(part)} responses to {len(part)} prompts",
                *applicable(
                    {
                        f"{report.quarantined} bad rows in {report.quarantine_file}": (
                            report.quarantined
                        )
                    }
                ),
                *report.notes,
            )
        ],
    )
    report.rows_kept = sum(report.rows_kept for report in reports)
    return _group_by_prompt(CandidateSet.of(chain(*parts), report=report), merge=True)


def _pairs(reading: Reading[Pair]) -> PairSet:
    pairs = PairSet.of(iter(reading), report=reading.report)
    nobody_named = pairs.dataset.data.column("annotator").null_count == len(pairs)
    return pairs if nobody_named else _merge_annotators(pairs)


def _pair_set(reading: Reading[Pair]) -> PairSet:
    pairs = _pairs(reading)
    repeated = pairs.repeated_prompts()
    pairs.report.notes += applicable(
        {f"{repeated} pairs repeat the prompt of an earlier pair (all kept)": repeated}
    )
    return pairs


def _candidate_set(reading: Reading[Candidates]) -> CandidateSet:
    return _group_by_prompt(
        CandidateSet.of(iter(reading), report=reading.report),
        merge=reading.format.kind == "pairs",
    )


def _unpaired_set(reading: Reading[Any]) -> UnpairedSet:
    responses = _untied(
        *(reading, Pair.unpaired, "each pair gives a desirable and an undesirable response"),
        better="desirable",
    )
    rows = UnpairedSet.of(responses, report=reading.report)
    desirable = sum(rows.dataset["label"])
    rows.report.notes.append(
        f"{desirable} desirable and {len(rows) - desirable} undesirable responses"
    )
    return rows


def _conversation_set(reading: Reading[Any]) -> ConversationSet:
    turns = _untied(
        reading,
        lambda pair: [pair.demonstration()],
        "the chosen response of each pair is learnt, its prompt is not",
        better="the better one",
    )
    rows = ConversationSet.of(turns, report=reading.report)
    unanswered = sum(row.completion[-1]["role"] != "assistant" for row in rows)
    rows.report.notes += applicable(
        {f"{unanswered} conversations end with a turn that nobody answers (not learnt)": unanswered}
    )
    return rows


def _untied(
    reading: Reading[Any], parts: Callable[[Pair], Iterable[Any]], note: str, *, better: str
) -> Iterator[Any]:
    # Records as they are read; of pairs their parts. Votes are counted first: a tie of all
    # raters may be several rows that are none. The note says what the parts are, and
    # `better` what neither response of a tie is.
    if reading.format.kind != "pairs":
        return iter(reading)
    pairs = _pairs(reading)
    ties = pairs.report.ties
    pairs.report.notes += applicable(
        {note: True, f"{ties} ties left out: neither response is {better}": ties}
    )
    return chain.from_iterable(parts(pair) for pair in pairs if not pair.tied)


def pairs_to_candidates(pairs: PairSet) -> CandidateSet:
    """Group the pairs by prompt: every prompt once, with the responses of all its pairs.

    Responses of one prompt with the same text and source are one response, unless their
    scores differ; the report counts what was merged.

    Args:
        pairs: The pairs; their report stays as it is.

    Returns:
        The prompts in order of first appearance, with a report of their own.

    Raises:
        DataError: If a response has tool calls.
    """
    try:
        rows = CandidateSet.of(
            map(Pair.candidates, pairs),
            report=replace(pairs.report, notes=list(pairs.report.notes)),
        )
    except RowFault as fault:
        raise DataError.of(saw=fault.saw, expected=fault.expected, cure=fault.cure) from None
    return _group_by_prompt(rows, merge=True)


def keep_sources(candidates: CandidateSet, sources: Sequence[str]) -> CandidateSet:
    """Keep the responses of some writers only.

    Args:
        candidates: Prompts with responses whose `sources` say who wrote them.
        sources: The writers to keep.

    Returns:
        The prompts that have a response of theirs, with those responses; the report's notes
        count the responses and prompts left out.

    Raises:
        InputError: If a source wrote none of the responses.
    """
    wanted = frozenset(sources)
    known = {source for row in candidates.dataset["sources"] for source in row if source}
    for unknown in sorted(wanted - known):
        raise InputError.of(
            saw=f"source {unknown!r}, which wrote no response in {candidates.report.source}",
            expected=f"some of {', '.join(sorted(known))}" if known else "named sources",
            cure=did_you_mean(unknown, sorted(known), "mend the name"),
        )
    report = replace(candidates.report, notes=list(candidates.report.notes))
    parts = (
        row.only([index for index, source in enumerate(row.sources) if source in wanted])
        for row in candidates
    )
    kept = CandidateSet.of((part for part in parts if part.responses), report=report)
    after, before = _count_responses(kept), _count_responses(candidates)
    report.notes.append(
        f"kept the {after} responses of {', '.join(sorted(wanted))}; left out {before - after} "
        f"of other sources, and {len(candidates) - len(kept)} prompts without one of theirs"
    )
    return kept


def _group_by_prompt(rows: CandidateSet, *, merge: bool) -> CandidateSet:
    # The rows of every prompt joined, in order of first appearance; with `merge`, a response
    # that repeats (same text, source and score) is kept once. The rows' report gets notes.
    # Most datasets repeat no prompt: counting hashes on disk says so in flat memory, before
    # any index is built that grows with the rows.
    if not merge and rows.repeated_prompts() == 0:
        return rows
    indices = _positions(rows.dataset["prompt_id"])

    def grouped() -> Iterator[Candidates]:
        for positions in indices.values():
            parts = [rows[position] for position in positions]
            entries: list[Any] = [
                entry
                for part in parts
                for entry in zip(
                    *(part.responses, part.sources, part.scores),
                    part.generations or (None,) * len(part.responses),
                    strict=True,
                )
            ]
            kept = _distinct(entries) if merge else entries
            responses, sources, scores, generations = zip(*kept, strict=True) if kept else [()] * 4
            yield replace(
                parts[0],
                responses=responses,
                sources=sources,
                scores=scores,
                generations=generations_of(generations),
            )

    result = CandidateSet.of(grouped(), report=rows.report)
    merged = _count_responses(rows) - _count_responses(result)
    rows.report.notes += applicable(
        {
            f"{len(rows)} rows grouped into {len(indices)} prompts": len(rows) - len(indices),
            f"{merged} repeated responses of a prompt merged": merged,
        }
    )
    return result


def _count_responses(rows: CandidateSet) -> int:
    return sum(map(len, rows.dataset["responses"]))


def _positions(keys: Iterable[str | None]) -> dict[str, list[int]]:
    # Where every key stands, in order of first appearance.
    indices: dict[str, list[int]] = defaultdict(list)
    for index, key in enumerate(keys):
        if key is not None:
            indices[key].append(index)
    return indices


def _distinct(entries: Iterable[Any]) -> list[list[Any]]:
    # A repeat of which less is known is the same response as one before it. Another score, or
    # another way in which the policy wrote it, makes it another response.
    kept = list[list[Any]]()
    by_text: dict[tuple[str, str | None], list[list[Any]]] = defaultdict(list)
    for text, source, score, generation in entries:
        same = by_text[text, source]
        known = next((e for e in same if _agree(e[2], score) and _agree(e[3], generation)), None)
        if known is None:
            same.append([text, source, score, generation])
            kept.append(same[-1])
        else:
            known[2:] = score if known[2] is None else known[2], known[3] or generation
    return kept


def _agree(first: Any, second: Any) -> bool:
    return first is None or second is None or first == second


def _merge_annotators(pairs: PairSet) -> PairSet:
    # One pair of the rows of several annotators on the same pair, at the position of its first
    # row. Two rows are of the same pair if prompt, responses (in either order) and their sources
    # are equal. Every row is a vote, also a second one of the same annotator (counted in the
    # notes); α is the mean of the votes, where a tie is half a vote. The pair is turned so
    # that the majority prefers `chosen`; at ½ the first row's order stays. Scores are means
    # over the rows that have them. Rows without an annotator, and equal rows of a single one,
    # stay as they are.
    keys = [None if pair.annotator is None else pair.key for pair in pairs]
    annotators, report, indices = pairs.dataset["annotator"], pairs.report, _positions(keys)
    voters = {key: {annotators[i] for i in rows} for key, rows in indices.items()}
    several = {key: rows for key, rows in indices.items() if len(voters[key]) > 1}
    if not several:
        return pairs

    firsts = (
        (key, pair)
        for index, (key, pair) in enumerate(zip(keys, pairs, strict=True))
        if key not in several or several[key][0] == index
    )
    joined = PairSet.of(
        (
            _of_votes([pairs[row] for row in several[key]]) if key in several else pair
            for key, pair in firsts
        ),
        report=report,
    )
    report.ties = sum(value == TIE for value in joined.dataset["agreement"])
    rows = sum(map(len, several.values()))
    repeated = rows - sum(len(voters[key]) for key in several)
    report.notes += applicable(
        {
            f"{rows} rows of several annotators on the same pairs became {len(several)} "
            "pairs: agreement is the share of votes for the chosen response, votes keep who "
            "voted": rows,
            f"{repeated} votes of an annotator who had voted on that pair already count "
            "too": repeated,
        }
    )
    return joined


def _of_votes(rows: Sequence[Pair]) -> Pair:
    turned = [row if row.sides == rows[0].sides else row.swapped() for row in rows]
    votes = tuple(
        Vote(str(row.annotator), (1.0 if row is same else 0.0) if share is None else share)
        for row, same in zip(rows, turned, strict=True)
        for share in [same.agreement]
    )
    share = sum(vote.preference for vote in votes) / len(votes)
    pair = replace(
        rows[0],
        score_chosen=_mean([row.score_chosen for row in turned]),
        score_rejected=_mean([row.score_rejected for row in turned]),
        agreement=share,
        annotator=None,
        votes=votes,
    )
    return pair if share >= TIE else pair.swapped()


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
