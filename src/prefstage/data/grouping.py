"""Pairs and single answers to candidates: each prompt once, with all its responses."""

from collections.abc import Iterator
from dataclasses import replace

from prefstage.core.errors import DataError
from prefstage.data.conversions import candidates_of_pair
from prefstage.data.faults import RowFault
from prefstage.data.records import Candidates
from prefstage.data.sets import CandidateSet, PairSet

_Entry = tuple[str, str | None, float | None]


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
            responses, sources, scores = zip(*kept, strict=True)
            yield replace(parts[0], responses=responses, sources=sources, scores=scores)

    if len(places) == len(rows) and not merge:
        return rows
    result = CandidateSet.of(grouped(), report=rows.report)
    if len(places) < len(rows):
        rows.report.notes.append(f"{len(rows)} rows grouped into {len(places)} prompts")
    if merged:
        rows.report.notes.append(f"{merged} repeated responses of a prompt merged")
    return result


def _entries(candidates: Candidates) -> list[_Entry]:
    return list(zip(candidates.responses, candidates.sources, candidates.scores, strict=True))


def _distinct(entries: list[_Entry]) -> list[_Entry]:
    """Drop repeats; a repeat without a score is the same response, with a score it is kept."""
    kept: dict[tuple[str, str | None], list[float | None]] = {}
    order: list[tuple[tuple[str, str | None], int]] = []
    for text, source, score in entries:
        scores = kept.setdefault((text, source), [])
        if score in scores or (score is None and scores):
            continue
        if None in scores:
            scores[scores.index(None)] = score
            continue
        order.append(((text, source), len(scores)))
        scores.append(score)
    return [(*key, kept[key][index]) for key, index in order]
