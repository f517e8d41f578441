"""`load_unpaired` and `load_conversations`: responses with labels, and demonstrations."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from prefstage.data.faults import LoadReport
from prefstage.data.loading import read_pair_set
from prefstage.data.reading import OnBadRow, Reading, open_reading
from prefstage.data.records import TIE, Conversation, Pair, Unpaired
from prefstage.data.response_sets import ConversationSet, UnpairedSet
from prefstage.data.sources import Given


def load_unpaired(
    source: Given,
    *,
    format: str | None = None,
    columns: Mapping[str, str] | None = None,
    split: str | None = None,
    on_bad_row: OnBadRow = "error",
    quarantine_file: str | Path | None = None,
) -> UnpairedSet:
    """Load responses that are labelled desirable or undesirable, each by itself.

    Args:
        source: As in `load_pairs`. Of pairs, the chosen response is desirable and the
            rejected one undesirable; ties say neither, and are left out (counted).
        format: Name of a format (see docs/data.md); None to recognise it.
        columns: Role to column name:
            ``{"prompt": "question", "completion": "answer", "label": "liked"}``.
        split: As in `load_pairs`.
        on_bad_row: As in `load_pairs`.
        quarantine_file: As in `load_pairs`.

    Returns:
        The labelled responses, with a report of what was recognised, kept and set aside.

    Raises:
        DataError: As in `load_pairs`.
        InputError: As in `load_pairs`.
    """
    reading = open_reading(
        source,
        "unpaired",
        format=format,
        columns=columns,
        labels=None,
        split=split,
        on_bad_row=on_bad_row,
        quarantine_file=quarantine_file,
        streaming=False,
    )
    report = reading.new_report()
    rows = UnpairedSet.of(_unpaired(reading, report), report=report)
    if reading.format.kind == "pairs":
        report.notes.append("each pair gives a desirable and an undesirable response")
        if report.ties:
            report.notes.append(f"{report.ties} ties left out: neither response is desirable")
    desirable = sum(rows.dataset["label"])
    report.notes.append(f"{desirable} desirable and {len(rows) - desirable} undesirable responses")
    return rows


def load_conversations(
    source: Given,
    *,
    format: str | None = None,
    columns: Mapping[str, str] | None = None,
    split: str | None = None,
    on_bad_row: OnBadRow = "error",
    quarantine_file: str | Path | None = None,
) -> ConversationSet:
    """Load demonstrations: conversations, prompts with completions, or the chosen side of pairs.

    Args:
        source: As in `load_pairs`. Of whole conversations every assistant turn that answers
            somebody is to be learnt; of a prompt with its completion (and of pairs) only
            what follows the prompt. Ties among pairs are left out (counted).
        format: Name of a format (see docs/data.md); None to recognise it.
        columns: Role to column name: ``{"messages": "dialog"}``, or
            ``{"prompt": "question", "completion": "answer"}``.
        split: As in `load_pairs`.
        on_bad_row: As in `load_pairs`.
        quarantine_file: As in `load_pairs`.

    Returns:
        The conversations, with a report of what was recognised, kept and set aside.

    Raises:
        DataError: As in `load_pairs`.
        InputError: As in `load_pairs`.
    """
    reading = open_reading(
        source,
        "conversations",
        format=format,
        columns=columns,
        labels=None,
        split=split,
        on_bad_row=on_bad_row,
        quarantine_file=quarantine_file,
        streaming=False,
    )
    report = reading.new_report()
    unanswered = 0

    def noting() -> Iterator[Conversation]:
        nonlocal unanswered
        for conversation in _conversations(reading, report):
            unanswered += conversation.completion[-1]["role"] != "assistant"
            yield conversation

    rows = ConversationSet.of(noting(), report=report)
    if reading.format.kind == "pairs":
        report.notes.append("the chosen response of each pair is learnt, its prompt is not")
        if report.ties:
            report.notes.append(f"{report.ties} ties left out: neither response is the better one")
    if unanswered:
        report.notes.append(
            f"{unanswered} conversations end with a turn that nobody answers (not learnt)"
        )
    return rows


def _unpaired(reading: Reading, report: LoadReport) -> Iterator[Unpaired]:
    if reading.format.kind == "pairs":
        for pair in read_pair_set(reading, report):
            if pair.agreement != TIE:
                yield from unpaired_of_pair(pair)
        return
    for record in reading.records(report):
        if isinstance(record, Unpaired):
            yield record


def _conversations(reading: Reading, report: LoadReport) -> Iterator[Conversation]:
    if reading.format.kind == "pairs":
        for pair in read_pair_set(reading, report):
            if pair.agreement != TIE:
                yield conversation_of_pair(pair)
        return
    for record in reading.records(report):
        if isinstance(record, Conversation):
            yield record


def conversation_of_pair(pair: Pair) -> Conversation:
    """The chosen response of a pair as a demonstration."""
    return Conversation(pair.prompt_id, pair.prompt, pair.chosen)


def unpaired_of_pair(pair: Pair) -> tuple[Unpaired, Unpaired]:
    """Both responses of a pair by themselves: a desirable and an undesirable one."""
    return (
        Unpaired(
            pair.prompt_id, pair.prompt, pair.chosen, True, pair.score_chosen, pair.source_chosen
        ),
        Unpaired(
            *(pair.prompt_id, pair.prompt, pair.rejected, False),
            *(pair.score_rejected, pair.source_rejected),
        ),
    )
