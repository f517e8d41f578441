"""Judging whole datasets, with progress, by any kind of judge."""

import math
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import TypeVar

from prefstage.core.progress import progress
from prefstage.data.records import Candidates, Pair
from prefstage.judging.base import Comparison, Item, Judge, Judgment, compare_by_rewards, in_order
from prefstage.judging.texts import content_of

T = TypeVar("T")


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
        One judgment per comparison, in order.
    """
    if judge.pointwise:
        return compare_by_rewards(lambda items: score_all(judge, items), comparisons)
    return _shown("judging", judge.stream(comparisons), len(comparisons))


def score_all(judge: Judge, items: Sequence[Item]) -> list[float]:
    """Score all responses by a pointwise judge, showing progress on a terminal."""
    return _shown("scoring", judge.stream_scores(items), len(items))


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
    if judge.pointwise:
        items = [(row.prompt, text) for row in candidates for text in row.responses]
        rewards = iter(score_all(judge, items))
        return [[next(rewards) for _ in row.responses] for row in candidates]
    comparisons = [
        Comparison(row.prompt_id, row.prompt, a, b)
        for row in candidates
        for a, b in combinations(row.responses, 2)
    ]
    judgments = iter(compare_all(judge, comparisons))
    return [_mean_wins(len(row.responses), judgments) for row in candidates]


def _shown(label: str, results: Iterator[tuple[int, T]], count: int) -> list[T]:
    with progress(label, count) as tick:

        def ticked() -> Iterator[tuple[int, T]]:
            for result in results:
                yield result
                tick()

        return in_order(ticked(), count)


def _mean_wins(count: int, judgments: Iterator[Judgment]) -> list[float]:
    wins: list[list[float]] = [[] for _ in range(count)]
    for a, b in combinations(range(count), 2):
        probability = next(judgments).probability
        wins[a].append(probability)
        wins[b].append(1.0 - probability)
    return [math.fsum(shares) / len(shares) if shares else 0.5 for shares in wins]
