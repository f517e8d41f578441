"""From a prompt's scored responses to pairs: which two meet."""

import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from prefstage.building.account import Account
from prefstage.building.built import Built, Group
from prefstage.core.seeds import seed_for
from prefstage.data.records import Candidates, Pair
from prefstage.judging.base import Judge
from prefstage.judging.running import score_candidates

_PROMPTS_AT_ONCE = 256
_TWO = 2


@dataclass(frozen=True)
class Scored:
    """One response that can be chosen.

    Attributes:
        text: The response.
        score: Its score, finite; higher is better.
        source: Who wrote it, or None.
        place: Its place among the prompt's candidates.
    """

    text: str
    score: float
    source: str | None
    place: int


Choose = Callable[[Candidates, Sequence[Scored]], list[tuple[Scored, Scored]]]
"""Picks (chosen, rejected) from a prompt's responses, best first; none to leave it out."""


def rescored(rows: Iterable[Candidates], judge: Judge | None) -> Iterator[Candidates]:
    """Give every response the judge's score, some prompts at a time.

    Args:
        rows: Prompts with their responses.
        judge: Who scores; None keeps the scores that the rows have.

    Yields:
        The rows with scores, in order.
    """
    if judge is None:
        yield from rows
        return
    for chunk in _chunks(rows):
        scores = score_candidates(judge, chunk)
        for row, each in zip(chunk, scores, strict=True):
            yield replace(row, scores=tuple(each))


def usable_responses(row: Candidates, account: Account) -> list[Scored]:
    """The prompt's responses that can be compared by score, best first.

    Responses without a score, with one that is no finite number, without text, or with the
    text of a better-scored one are left out and counted. Equal scores keep their order.

    Args:
        row: The prompt with its candidates.
        account: Where what is left out is counted.

    Returns:
        The responses, best first.
    """
    found: dict[str, Scored] = {}
    for place, (text, source, score) in enumerate(
        zip(row.responses, row.sources, row.scores, strict=True)
    ):
        reason = _why_not(text, score)
        if reason is not None or score is None:
            account.skip(reason or "response without a score", row.prompt_id)
            continue
        scored = Scored(text, float(score), source, place)
        if text in found:
            account.skip("response with the text of another of the prompt", row.prompt_id)
        if text not in found or found[text].score < scored.score:
            found[text] = scored
    return sorted(found.values(), key=lambda each: (-each.score, each.place))


def pairs_by_choice(
    rows: Iterable[Candidates],
    choose: Choose,
    *,
    method: str,
    account: Account,
    judge_name: str | None = None,
    minimum_gap: float = 0.0,
) -> Iterator[Group]:
    """Build the pairs of each prompt by one way of choosing.

    Args:
        rows: Prompts with scored responses.
        choose: Which responses meet.
        method: Its name, for the provenance.
        account: Counts what was read, built and left out.
        judge_name: Whose scores they are; None for the dataset's.
        minimum_gap: Score of chosen less score of rejected at least, >= 0; equal scores
            never make a pair, whatever it is.

    Yields:
        The pairs of each prompt that has some.
    """
    for row in rows:
        account.prompts += 1
        responses = usable_responses(row, account)
        reason = why_no_pair(responses)
        if reason is not None:
            account.skip(reason, row.prompt_id)
            continue
        chosen = choose(row, responses)
        wide = [(a, b) for a, b in chosen if a.score > b.score and a.score - b.score >= minimum_gap]
        account.skip("pair with too small a gap", row.prompt_id, len(chosen) - len(wide))
        account.pairs += len(wide)
        if wide:
            yield [built_of(row, a, b, method=method, judge=judge_name) for a, b in wide]


def why_no_pair(responses: Sequence[Scored]) -> str | None:
    """Why these responses make no pair, in a few words; None if they do."""
    if not responses:
        return "prompt without a usable response"
    if len(responses) < _TWO:
        return "prompt with one usable response"
    if responses[0].score == responses[-1].score:
        return "prompt whose scores are all equal"
    return None


def built_of(
    row: Candidates,
    chosen: Scored,
    rejected: Scored,
    *,
    method: str,
    part: str | None = None,
    judge: str | None = None,
) -> Built:
    """Make the pair of two responses to a prompt.

    Args:
        row: The prompt.
        chosen: The better response.
        rejected: The worse one.
        method: How they were chosen.
        part: Dataset of the method; None for its only one.
        judge: Whose scores they have.

    Returns:
        The pair with its provenance.
    """
    pair = Pair(
        prompt_id=row.prompt_id,
        prompt=row.prompt,
        chosen=(row.message(chosen.place),),
        rejected=(row.message(rejected.place),),
        score_chosen=chosen.score,
        score_rejected=rejected.score,
        source_chosen=chosen.source,
        source_rejected=rejected.source,
    )
    return Built(
        pair,
        method,
        part or method,
        place_chosen=chosen.place,
        place_rejected=rejected.place,
        gap=chosen.score - rejected.score,
        judge=judge,
    )


def best_vs_worst(row: Candidates, responses: Sequence[Scored]) -> list[tuple[Scored, Scored]]:
    """The best response against the worst: the largest gap that the prompt has."""
    return [(responses[0], responses[-1])]


def best_vs_second(row: Candidates, responses: Sequence[Scored]) -> list[tuple[Scored, Scored]]:
    """The best response against the next one that scores less."""
    lower = [each for each in responses if each.score < responses[0].score]
    return [(responses[0], lower[0])]


def best_vs_random(seed: int) -> Choose:
    """The best response against a random one of those that score less.

    Args:
        seed: Of the choice, which depends on it and the prompt alone.

    Returns:
        The way of choosing.
    """

    def choose(row: Candidates, responses: Sequence[Scored]) -> list[tuple[Scored, Scored]]:
        lower = [each for each in responses if each.score < responses[0].score]
        draw = random.Random(seed_for(seed, "best-vs-random", row.prompt_id))
        return [(responses[0], draw.choice(lower))]

    return choose


def all_pairs(k: int | None) -> Choose:
    """Every pair of the k best responses: k(k - 1)/2 pairs.

    Args:
        k: How many responses, >= 2; None for all.

    Returns:
        The way of choosing; equal scores make no pair and are counted by `pairs_by_choice`.
    """

    def choose(row: Candidates, responses: Sequence[Scored]) -> list[tuple[Scored, Scored]]:
        return list(combinations(responses[:k], 2))

    return choose


def _why_not(text: str, score: float | None) -> str | None:
    if not text.strip():
        return "empty response"
    if score is None:
        return "response without a score"
    if not math.isfinite(score):
        return "response whose score is no finite number"
    return None


def _chunks(rows: Iterable[Candidates]) -> Iterator[list[Candidates]]:
    chunk: list[Candidates] = []
    for row in rows:
        chunk.append(row)
        if len(chunk) == _PROMPTS_AT_ONCE:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
