"""Judging whole datasets, with progress, by any kind of judge."""

import math
from collections.abc import Iterator, Sequence
from itertools import combinations

from prefstage.core.progress import progress
from prefstage.data.records import Candidates, Pair, Prompt
from prefstage.judging.base import (
    Comparison,
    Judge,
    Judgment,
    PointwiseJudge,
    StreamingJudge,
    StreamingPointwiseJudge,
    compare_by_rewards,
)
from prefstage.judging.texts import content_of

_CHUNK = 32  # asked at once of a judge that cannot stream


def comparison_of(pair: Pair) -> Comparison:
    """A pair as a comparison: chosen is `a`, rejected is `b`."""
    a, b = ("\n".join(map(content_of, side)) for side in (pair.chosen, pair.rejected))
    return Comparison(pair.prompt_id, pair.prompt, a, b)


def compare_all(judge: Judge, comparisons: Sequence[Comparison]) -> list[Judgment]:
    """Judge all comparisons, showing progress on a terminal.

    Args:
        judge: Any judge; pointwise ones score each response once.
        comparisons: What to judge.

    Returns:
        One judgment a comparison, in order.
    """
    if isinstance(judge, PointwiseJudge):
        pointwise = judge
        return compare_by_rewards(lambda items: score_all(pointwise, items), comparisons)
    found: dict[int, Judgment] = {}
    with progress("judging", len(comparisons)) as tick:
        for position, judgment in compare_each(judge, comparisons):
            found[position] = judgment
            tick()
    return [found[position] for position in range(len(comparisons))]


def score_all(judge: PointwiseJudge, items: Sequence[tuple[Prompt, str]]) -> list[float]:
    """Score all responses by a pointwise judge, showing progress on a terminal."""
    found: dict[int, float] = {}
    with progress("scoring", len(items)) as tick:
        for position, reward in score_each(judge, items):
            found[position] = reward
            tick()
    return [found[position] for position in range(len(items))]


def score_candidates(judge: Judge, candidates: Sequence[Candidates]) -> list[list[float]]:
    """Give each response a score.

    A pointwise judge's score is its reward. Any other judge compares all responses to a
    prompt with each other, and a response's score is its mean P(wins); ½ if it is alone.

    Args:
        judge: Any judge.
        candidates: Prompts with their responses.

    Returns:
        For each prompt the scores of its responses, in order. [prompts][responses].
    """
    if isinstance(judge, PointwiseJudge):
        items = [(each.prompt, text) for each in candidates for text in each.responses]
        rewards = iter(score_all(judge, items))
        return [[next(rewards) for _ in each.responses] for each in candidates]
    comparisons = [
        Comparison(each.prompt_id, each.prompt, a, b)
        for each in candidates
        for a, b in combinations(each.responses, 2)
    ]
    judgments = iter(compare_all(judge, comparisons))
    return [_mean_wins(len(each.responses), judgments) for each in candidates]


def compare_each(judge: Judge, comparisons: Sequence[Comparison]) -> Iterator[tuple[int, Judgment]]:
    """Yield (position, judgment) as they become known, by any judge."""
    if isinstance(judge, StreamingJudge):
        yield from judge.compare_each(comparisons)
        return
    for start in range(0, len(comparisons), _CHUNK):
        yield from enumerate(judge.compare(comparisons[start : start + _CHUNK]), start)


def score_each(
    judge: PointwiseJudge, items: Sequence[tuple[Prompt, str]]
) -> Iterator[tuple[int, float]]:
    """Yield (position, reward) as they become known, by any pointwise judge."""
    if isinstance(judge, StreamingPointwiseJudge):
        yield from judge.score_each(items)
        return
    for start in range(0, len(items), _CHUNK):
        yield from enumerate(judge.score(items[start : start + _CHUNK]), start)


def _mean_wins(count: int, judgments: Iterator[Judgment]) -> list[float]:
    wins: list[list[float]] = [[] for _ in range(count)]
    for a, b in combinations(range(count), 2):
        probability = next(judgments).probability
        wins[a].append(probability)
        wins[b].append(1.0 - probability)
    return [math.fsum(each) / len(each) if each else 0.5 for each in wins]
