"""From a prompt's scored responses to pairs: which two meet."""

import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, islice

from prefstage.building.account import Account, Built, Group
from prefstage.building.recipe import ACCEPTED, BETA
from prefstage.core import InputError, seed_for
from prefstage.data.records import Candidates, Pair
from prefstage.judging.base import Judge
from prefstage.judging.judged import score_candidates

_PROMPTS_AT_ONCE = 256


@dataclass(frozen=True)
class Scored:
    """One response that can be chosen.

    Attributes:
        text: The response.
        score: Its score, finite; higher is better.
        source: Who wrote it, or None.
        position: Its position among the prompt's candidates.
    """

    text: str
    score: float
    source: str | None
    position: int


# Chosen and rejected.
Choice = tuple[Scored, Scored]
# Picks (chosen, rejected) from a prompt's responses, best first; none to leave it out.
Choose = Callable[[Candidates, Sequence[Scored]], list[Choice]]


def rescored(rows: Iterable[Candidates], judge: Judge | None) -> Iterator[Candidates]:
    """Give every response the judge's score, some prompts at a time.

    Args:
        rows: Prompts with their responses.
        judge: Who scores; None keeps the scores that the rows have.

    Yields:
        The rows with scores, in order.
    """
    rest = iter(rows)
    while judge is not None and (chunk := list(islice(rest, _PROMPTS_AT_ONCE))):
        for row, scores in zip(chunk, score_candidates(judge, chunk), strict=True):
            yield replace(row, scores=tuple(scores))
    yield from rest


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
    by_text: dict[str, Scored] = {}
    for position, (text, source, score) in enumerate(
        zip(row.responses, row.sources, row.scores, strict=True)
    ):
        if not text.strip():
            account.skip("empty response", row.prompt_id)
        elif score is None:
            account.skip("response without a score", row.prompt_id)
        elif not math.isfinite(score):
            account.skip("response whose score is no finite number", row.prompt_id)
        else:
            if text in by_text:
                account.skip("response with the text of another of the prompt", row.prompt_id)
            if text not in by_text or by_text[text].score < score:
                by_text[text] = Scored(text, float(score), source, position)
    return sorted(by_text.values(), key=lambda response: (-response.score, response.position))


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
        faults = {
            "prompt without a usable response": not responses,
            "prompt with one usable response": len(responses) == 1,
            "prompt whose scores are all equal": len({r.score for r in responses}) == 1,
        }
        if not account.passes(row.prompt_id, faults):
            continue
        chosen = choose(row, responses)
        wide = [(a, b) for a, b in chosen if a.score > b.score and a.score - b.score >= minimum_gap]
        account.skip("pair with too small a gap", row.prompt_id, len(chosen) - len(wide))
        account.pairs += len(wide)
        if wide:
            yield [built_of(row, pair, method=method, judge=judge_name) for pair in wide]


def built_of(
    row: Candidates,
    pair: Choice,
    *,
    method: str,
    part: str | None = None,
    judge: str | None = None,
) -> Built:
    """Make the pair of two responses to a prompt.

    Args:
        row: The prompt.
        pair: The better response and the worse one.
        method: How they were chosen.
        part: Dataset of the method; None for its only one.
        judge: Whose scores they have.

    Returns:
        The pair with its provenance.
    """
    chosen, rejected = pair
    return Built(
        Pair(
            prompt_id=row.prompt_id,
            prompt=row.prompt,
            chosen=(row.message(chosen.position),),
            rejected=(row.message(rejected.position),),
            score_chosen=chosen.score,
            score_rejected=rejected.score,
            source_chosen=chosen.source,
            source_rejected=rejected.source,
        ),
        method,
        part or method,
        place_chosen=chosen.position,
        place_rejected=rejected.position,
        gap=chosen.score - rejected.score,
        judge=judge,
    )


def best_vs_worst(row: Candidates, responses: Sequence[Scored]) -> list[Choice]:
    """The best response against the worst: the largest gap that the prompt has."""
    return [(responses[0], responses[-1])]


def best_vs_second(row: Candidates, responses: Sequence[Scored]) -> list[Choice]:
    """The best response against the next one that scores less."""
    return [(responses[0], next(r for r in responses if r.score < responses[0].score))]


def best_vs_random(row: Candidates, responses: Sequence[Scored], *, seed: int) -> list[Choice]:
    """The best response against a random one of those that score less.

    Args:
        row: The prompt.
        responses: Its responses, best first.
        seed: Of the choice, which depends on it and the prompt alone.

    Returns:
        The two.
    """
    lower = [response for response in responses if response.score < responses[0].score]
    draw = random.Random(seed_for(seed, "best-vs-random", row.prompt_id))
    return [(responses[0], draw.choice(lower))]


def all_pairs(row: Candidates, responses: Sequence[Scored], *, k: int | None) -> list[Choice]:
    """Every pair of the k best responses: k(k - 1)/2 pairs.

    Args:
        row: The prompt.
        responses: Its responses, best first.
        k: How many responses, >= 2; None for all.

    Returns:
        The pairs; equal scores make none, as `pairs_by_choice` counts.
    """
    return list(combinations(responses[:k], 2))


def rejection_sample(
    scores: Sequence[float], *, count: int = ACCEPTED, beta: float = BETA, draw: random.Random
) -> list[int]:
    """Accept responses by reward until there are enough.

    Round by round over those that are left: y is accepted if ``u < exp((r(y) - r_max)/β)``,
    u uniform in [0, 1) and r_max the greatest reward left, so that every round accepts.

    Args:
        scores: r of each response. [responses], finite.
        count: How many to accept, >= 1; all if there are fewer.
        beta: β > 0; small prefers the best, large takes any.
        draw: Random numbers.

    Returns:
        Positions of the accepted responses, in the order of acceptance.

    Raises:
        InputError: If a setting is out of range.

    Source:
        Liu et al. 2024, arXiv:2309.06657, §3.2 and Algorithm 1 (App. A.1).
    """
    InputError.unless(
        count >= 1 and beta > 0,
        saw=f"count={count}, beta={beta}",
        expected="count >= 1 and beta > 0",
        cure="raise them",
    )
    left, accepted = list(range(len(scores))), list[int]()
    while left and len(accepted) < count:
        greatest = max(scores[index] for index in left)
        passing = (i for i in left if draw.random() < math.exp((scores[i] - greatest) / beta))
        accepted += islice(passing, count - len(accepted))  # no number is drawn beyond the last
        left = [index for index in left if index not in accepted]
    return accepted


def rejection_pairs(
    row: Candidates,
    responses: Sequence[Scored],
    *,
    accepted: int = ACCEPTED,
    beta: float = BETA,
    seed: int = 0,
) -> list[Choice]:
    """Pairs of accepted responses: paired at random, each response once, the better chosen.

    Args:
        row: The prompt.
        responses: Its responses, best first.
        accepted: Responses accepted a prompt (the paper: 8 of 64).
        beta: As for `rejection_sample`.
        seed: Of acceptance and pairing, with the prompt.

    Returns:
        The pairs.

    Source:
        arXiv:2309.06657, §3.3, "first-round-rank".
    """
    draw = random.Random(seed_for(seed, "rejection-sampling", row.prompt_id))
    order = rejection_sample(
        [response.score for response in responses], count=accepted, beta=beta, draw=draw
    )
    draw.shuffle(order)
    return [
        (responses[min(pair)], responses[max(pair)])
        for pair in zip(order[::2], order[1::2], strict=False)
    ]
