"""Rows of several annotators on one pair become one pair, with the share of their votes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from prefstage.core.hashing import digest
from prefstage.data.records import TIE, Pair, Vote
from prefstage.data.sets import PairSet


@dataclass
class _Merger:
    """Rows of one pair, and what merging them has done."""

    places: dict[str, list[int]] = field(default_factory=dict)
    rows: int = 0
    pairs: int = 0
    again: int = 0


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
        The set with each such pair once, at the place of its first row.
    """
    names = pairs.dataset.data.column("annotator")
    if names.null_count == len(names):
        return pairs
    merger = _Merger()
    several = {key for key, voters in _voters(pairs, merger).items() if len(voters) > 1}
    if not several:
        return pairs
    merged = PairSet.of(_merged(pairs, merger, several), report=pairs.report)
    report = pairs.report
    report.ties = sum(value == TIE for value in merged.dataset["agreement"])
    report.notes.append(
        f"{merger.rows} rows of several annotators on the same pairs became {merger.pairs} "
        "pairs: agreement is the share of votes for the chosen response, votes keep who voted"
    )
    if merger.again:
        report.notes.append(
            f"{merger.again} votes of an annotator who had voted on that pair already count too"
        )
    return merged


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


def _voters(pairs: PairSet, merger: _Merger) -> dict[str, set[str]]:
    voters: dict[str, set[str]] = {}
    for index, pair in enumerate(pairs):
        if pair.annotator is not None:
            key = pair_key(pair)
            voters.setdefault(key, set()).add(pair.annotator)
            merger.places.setdefault(key, []).append(index)
    return voters


def _merged(pairs: PairSet, merger: _Merger, several: set[str]) -> Iterator[Pair]:
    for index, pair in enumerate(pairs):
        key = None if pair.annotator is None else pair_key(pair)
        if key is None or key not in several:
            yield pair
        elif merger.places[key][0] == index:
            rows = [pairs[place] for place in merger.places[key]]
            merger.rows, merger.pairs = merger.rows + len(rows), merger.pairs + 1
            merger.again += len(rows) - len({row.annotator for row in rows})
            yield _of_votes(rows)


def _of_votes(rows: Sequence[Pair]) -> Pair:
    """One pair of the rows of several annotators."""
    first = rows[0]
    turned = [row if _sides(row) == _sides(first) else swapped(row) for row in rows]
    votes = tuple(
        Vote(str(row.annotator), 1.0 if row.agreement is None else row.agreement)
        if row is same
        else Vote(str(row.annotator), 0.0 if row.agreement is None else 1 - row.agreement)
        for row, same in zip(rows, turned, strict=True)
    )
    share = sum(vote.preference for vote in votes) / len(votes)
    pair = replace(
        first,
        score_chosen=_mean([row.score_chosen for row in turned]),
        score_rejected=_mean([row.score_rejected for row in turned]),
        agreement=share,
        annotator=None,
        votes=votes,
    )
    return pair if share >= TIE else swapped(pair)


def swapped(pair: Pair) -> Pair:
    """The pair with its responses exchanged, and all that belongs to them.

    Args:
        pair: The pair.

    Returns:
        The pair whose chosen response is the other one; its agreement and votes are those
        for the new chosen response.
    """
    return replace(
        pair,
        chosen=pair.rejected,
        rejected=pair.chosen,
        score_chosen=pair.score_rejected,
        score_rejected=pair.score_chosen,
        source_chosen=pair.source_rejected,
        source_rejected=pair.source_chosen,
        agreement=None if pair.agreement is None else 1 - pair.agreement,
        judge_probability=None if pair.judge_probability is None else 1 - pair.judge_probability,
        votes=tuple(replace(vote, preference=1 - vote.preference) for vote in pair.votes),
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
