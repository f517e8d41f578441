"""Pairs and single answers to candidates: each prompt once, with all its responses."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from prefstage.core.config import nearest
from prefstage.core.errors import DataError, InputError
from prefstage.data.conversions import candidates_of_pair
from prefstage.data.disk_numbers import count_different, hashes_of
from prefstage.data.faults import RowFault
from prefstage.data.records import Candidates, Generation
from prefstage.data.sets import CandidateSet, PairSet

_Entry = tuple[str, str | None, float | None, Generation | None]


def pairs_to_candidates(pairs: PairSet) -> CandidateSet:
    """Group the pairs by prompt: every prompt once, with the responses of all its pairs.

    Responses of one prompt with the same text and source are one response, unless their
    scores differ; the report counts what was merged.

    Args:
        pairs: The pairs; their own report stays as it is.

    Returns:
        The prompts in order of first appearance, with a report of their own.

    Raises:
        DataError: If a response has tool calls.
    """
    report = replace(pairs.report, notes=list(pairs.report.notes))
    try:
        rows = CandidateSet.of(map(candidates_of_pair, pairs), report=report)
    except RowFault as fault:
        raise DataError.of(saw=fault.saw, expected=fault.expected, cure=fault.cure) from None
    return group_by_prompt(rows, merge=True)


def group_by_prompt(rows: CandidateSet, *, merge: bool) -> CandidateSet:
    """Join the rows of each prompt, in order of first appearance.

    Args:
        rows: Candidates whose prompts may repeat. Their report gets notes.
        merge: Keep a response that appears again (same text, source and score) once.

    Returns:
        The set in which each prompt stands once.
    """
    with hashes_of(rows.dataset["prompt_id"]) as hashes:
        if count_different(hashes) == len(rows) and not merge:
            return rows
    places: dict[str, list[int]] = {}
    for index, prompt_id in enumerate(rows.dataset["prompt_id"]):
        places.setdefault(prompt_id, []).append(index)
    merged = 0

    def grouped() -> Iterator[Candidates]:
        nonlocal merged
        for indices in places.values():
            parts = [rows[index] for index in indices]
            entries = [entry for part in parts for entry in _entries(part)]
            kept = _distinct(entries) if merge else entries
            merged += len(entries) - len(kept)
            yield _with_entries(parts[0], kept)

    result = CandidateSet.of(grouped(), report=rows.report)
    if len(places) < len(rows):
        rows.report.notes.append(f"{len(rows)} rows grouped into {len(places)} prompts")
    if merged:
        rows.report.notes.append(f"{merged} repeated responses of a prompt merged")
    return result


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
    unknown = sorted(wanted - known)
    if unknown:
        guess = nearest(unknown[0], sorted(known))
        raise InputError.of(
            saw=f"source {unknown[0]!r}, which wrote no response in {candidates.report.source}",
            expected=f"some of {', '.join(sorted(known))}" if known else "named sources",
            cure=f"did you mean {guess!r}?" if guess else "mend the name",
        )
    report = replace(candidates.report, notes=list(candidates.report.notes))
    kept = CandidateSet.of(
        (row for row in (_only(row, wanted) for row in candidates) if row.responses),
        report=report,
    )
    before, after = (sum(map(len, each.dataset["responses"])) for each in (candidates, kept))
    report.notes.append(
        f"kept the {after} responses of {', '.join(sorted(wanted))}; left out {before - after} "
        f"of other sources, and {len(candidates) - len(kept)} prompts without one of theirs"
    )
    return kept


def _only(row: Candidates, sources: frozenset[str]) -> Candidates:
    entries = [entry for entry in _entries(row) if entry[1] in sources]
    return _with_entries(row, entries)


def _entries(candidates: Candidates) -> list[_Entry]:
    generations = candidates.generations or (None,) * len(candidates.responses)
    columns = candidates.responses, candidates.sources, candidates.scores, generations
    return list(zip(*columns, strict=True))


def _with_entries(row: Candidates, entries: Sequence[_Entry]) -> Candidates:
    """The prompt of a row with other responses."""
    columns = tuple(zip(*entries, strict=True)) if entries else ((), (), (), ())
    responses, sources, scores, generations = columns
    known = any(generation is not None for generation in generations)
    return replace(
        row,
        responses=responses,
        sources=sources,
        scores=scores,
        generations=generations if known else (),
    )


def _distinct(entries: list[_Entry]) -> list[_Entry]:
    """Drop repeats: a repeat of which less is known is the same response as one before it.

    Another score, or another way in which the policy wrote it, makes it another response.
    """
    kept: list[_Entry] = []
    by_text: dict[tuple[str, str | None], list[int]] = {}
    for entry in entries:
        same = by_text.setdefault(entry[:2], [])
        twin = next((index for index in same if _agree(kept[index], entry)), None)
        if twin is None:
            same.append(len(kept))
            kept.append(entry)
            continue
        text, source, score, generation = kept[twin]
        score = entry[2] if score is None else score
        kept[twin] = (text, source, score, generation or entry[3])
    return kept


def _agree(first: _Entry, second: _Entry) -> bool:
    """Whether what is known of two equal texts is the same, as far as it is known of both."""
    pairs = zip(first[2:], second[2:], strict=True)
    return all(None in known or known[0] == known[1] for known in pairs)
