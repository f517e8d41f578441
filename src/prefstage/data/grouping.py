"""Pairs and single answers to candidates: each prompt once, with all its responses."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from prefstage.core.config import nearest
from prefstage.core.errors import DataError, InputError
from prefstage.data.conversions import candidates_of_pair
from prefstage.data.disk_numbers import count_different, hashes_of
from prefstage.data.faults import RowFault
from prefstage.data.records import Candidates, Generation, generations_of
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
        DataError: If a response is a tool call without text.
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
            responses, sources, scores, generations = zip(*kept, strict=True)
            yield replace(
                parts[0],
                responses=responses,
                sources=sources,
                scores=scores,
                generations=generations_of(generations),
            )

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
    return row.only([index for index, source in enumerate(row.sources) if source in sources])


def _entries(candidates: Candidates) -> list[_Entry]:
    known = candidates.generations or (None,) * len(candidates.responses)
    return list(
        zip(candidates.responses, candidates.sources, candidates.scores, known, strict=True)
    )


def _distinct(entries: list[_Entry]) -> list[_Entry]:
    """Drop repeats; a repeat without a score is the same response, with a score it is kept.

    A response that was generated in two ways is kept as it was generated first.
    """
    kept: dict[tuple[str, str | None], list[float | None]] = {}
    order: list[tuple[tuple[str, str | None], int]] = []
    generations: dict[tuple[str, str | None], Generation | None] = {}
    for text, source, score, generation in entries:
        key = (text, source)
        scores = kept.setdefault(key, [])
        generations[key] = generations.get(key) or generation
        if score in scores or (score is None and scores):
            continue
        if None in scores:
            scores[scores.index(None)] = score
            continue
        order.append((key, len(scores)))
        scores.append(score)
    return [(*key, kept[key][index], generations[key]) for key, index in order]
