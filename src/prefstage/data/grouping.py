"""Rows joined: each prompt once with all its responses, and pairs with their raters' votes."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace

from prefstage.core.config import nearest
from prefstage.core.errors import DataError, InputError
from prefstage.core.hashing import digest
from prefstage.data.records import TIE, Candidates, Generation, Pair, Vote, generations_of
from prefstage.data.rows import RowFault
from prefstage.data.sets import CandidateSet, PairSet

_Entry = tuple[str, str | None, float | None, Generation | None]


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
    report = replace(pairs.report, notes=list(pairs.report.notes))
    try:
        rows = CandidateSet.of((pair.candidates() for pair in pairs), report=report)
    except RowFault as fault:
        raise DataError.of(saw=fault.saw, expected=fault.expected, cure=fault.cure) from None
    return group_by_prompt(rows, merge=True)


def group_by_prompt(rows: CandidateSet, *, merge: bool) -> CandidateSet:
    """Join the rows of every prompt, in order of first appearance.

    Args:
        rows: Candidates whose prompts may repeat. Their report gets notes.
        merge: Keep a response that repeats (same text, source and score) once.

    Returns:
        The set in which each prompt stands once.
    """
    # Most datasets repeat no prompt: counting hashes on disk says so in flat memory, before
    # any index is built that grows with the rows.
    if not merge and rows.repeated_prompts() == 0:
        return rows
    indices: dict[str, list[int]] = defaultdict(list)
    for index, prompt_id in enumerate(rows.dataset["prompt_id"]):
        indices[prompt_id].append(index)
    merged = 0

    def grouped() -> Iterator[Candidates]:
        nonlocal merged
        for positions in indices.values():
            parts = [rows[position] for position in positions]
            entries = [entry for part in parts for entry in _entries(part)]
            kept = _distinct(entries) if merge else entries
            merged += len(entries) - len(kept)
            yield _with_entries(parts[0], kept)

    result = CandidateSet.of(grouped(), report=rows.report)
    if len(indices) < len(rows):
        rows.report.notes.append(f"{len(rows)} rows grouped into {len(indices)} prompts")
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
    parts = (
        row.only([index for index, source in enumerate(row.sources) if source in wanted])
        for row in candidates
    )
    kept = CandidateSet.of((part for part in parts if part.responses), report=report)
    before, after = (sum(map(len, rows.dataset["responses"])) for rows in (candidates, kept))
    report.notes.append(
        f"kept the {after} responses of {', '.join(sorted(wanted))}; left out {before - after} "
        f"of other sources, and {len(candidates) - len(kept)} prompts without one of theirs"
    )
    return kept


def _entries(row: Candidates) -> list[_Entry]:
    generations = row.generations or (None,) * len(row.responses)
    return list(zip(row.responses, row.sources, row.scores, generations, strict=True))


def _with_entries(row: Candidates, entries: Sequence[_Entry]) -> Candidates:
    responses, sources, scores, generations = zip(*entries, strict=True) if entries else [()] * 4
    return replace(
        row,
        responses=responses,
        sources=sources,
        scores=scores,
        generations=generations_of(generations),
    )


def _distinct(entries: list[_Entry]) -> list[_Entry]:
    # A repeat of which less is known is the same response as one before it. Another score, or
    # another way in which the policy wrote it, makes it another response.
    kept: list[_Entry] = []
    by_text: dict[tuple[str, str | None], list[int]] = defaultdict(list)
    for entry in entries:
        same = by_text[entry[:2]]
        twin = next((index for index in same if _agree(kept[index], entry)), None)
        if twin is None:
            same.append(len(kept))
            kept.append(entry)
        else:
            text, source, score, generation = kept[twin]
            kept[twin] = (
                text,
                source,
                entry[2] if score is None else score,
                generation or entry[3],
            )
    return kept


def _agree(first: _Entry, second: _Entry) -> bool:
    pairs = zip(first[2:], second[2:], strict=True)
    return all(None in known or known[0] == known[1] for known in pairs)


def merge_annotators(pairs: PairSet) -> PairSet:
    """Make one pair of the rows of several annotators on the same pair.

    Two rows are of the same pair if prompt, responses (in either order) and their sources
    are equal. Every row is a vote, also a second one of the same annotator (counted in the
    notes); α is the mean of the votes, where a tie is half a vote. The pair is turned so
    that the majority prefers `chosen`; at ½ the first row's order stays. Scores are means
    over the rows that have them. Rows without an annotator, and equal rows of a single one,
    stay as they are.

    Args:
        pairs: Pairs as they were read. Their report gets notes.

    Returns:
        The set with each such pair once, at the position of its first row.
    """
    keys = [None if pair.annotator is None else pair_key(pair) for pair in pairs]
    indices: dict[str, list[int]] = defaultdict(list)
    for index, key in enumerate(keys):
        if key is not None:
            indices[key].append(index)
    annotators = pairs.dataset["annotator"]
    voters = {key: len({annotators[i] for i in rows}) for key, rows in indices.items()}
    several = {key: rows for key, rows in indices.items() if voters[key] > 1}
    if not several:
        return pairs

    def merged() -> Iterator[Pair]:
        for index, (key, pair) in enumerate(zip(keys, pairs, strict=True)):
            if key not in several:
                yield pair
            elif several[key][0] == index:
                yield _of_votes([pairs[row] for row in several[key]])

    joined, report = PairSet.of(merged(), report=pairs.report), pairs.report
    report.ties = sum(value == TIE for value in joined.dataset["agreement"])
    rows = sum(map(len, several.values()))
    report.notes.append(
        f"{rows} rows of several annotators on the same pairs became {len(several)} "
        "pairs: agreement is the share of votes for the chosen response, votes keep who voted"
    )
    repeated = rows - sum(voters[key] for key in several)
    if repeated:
        report.notes.append(
            f"{repeated} votes of an annotator who had voted on that pair already count too"
        )
    return joined


def pair_key(pair: Pair) -> str:
    """Names a pair whichever of its responses is preferred.

    Args:
        pair: The pair.

    Returns:
        A hash, equal for equal prompts, responses and sources.
    """
    return digest([pair.prompt_id, sorted(_sides(pair))])


def _sides(pair: Pair) -> tuple[str, str]:
    return (
        digest([pair.chosen, pair.source_chosen]),
        digest([pair.rejected, pair.source_rejected]),
    )


def _of_votes(rows: Sequence[Pair]) -> Pair:
    turned = [row if _sides(row) == _sides(rows[0]) else row.swapped() for row in rows]
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
