"""From responses to votes: every on-policy against every off-policy response of a prompt."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from prefstage.data.records import Candidates, Generation, Prompt
from prefstage.judging.base import Comparison, Judge, Judgment, PointwiseJudge, judgment_of_rewards
from prefstage.measuring.boundary import HALF, PromptVotes, TieRule, Votes, count_votes


@dataclass(frozen=True)
class Match:
    """One prompt with the responses that meet there.

    Attributes:
        prompt_id: Names the prompt's content.
        prompt: Messages up to and with the last user turn.
        on: On-policy responses, y_1 … y_m.
        off: Off-policy responses, y'_1 … y'_n.
        unused_on: On-policy responses that were there but not drawn.
        unused_off: Likewise off-policy.
        on_generations: How a policy wrote each of `on`, as in `Candidates`.
        off_generations: Likewise of `off`.
    """

    prompt_id: str
    prompt: Prompt
    on: tuple[str, ...]
    off: tuple[str, ...]
    unused_on: int = 0
    unused_off: int = 0
    on_generations: tuple[Generation | None, ...] = ()
    off_generations: tuple[Generation | None, ...] = ()

    def on_policy(self, source: str) -> Candidates:
        """The on-policy responses as candidates of a source; no scores."""
        return _candidates(self, self.on, self.on_generations, source)

    def off_policy(self) -> Candidates:
        """The off-policy responses as candidates; no sources, no scores."""
        return _candidates(self, self.off, self.off_generations, None)


@dataclass(frozen=True)
class JudgedPrompt:
    """One prompt that was used.

    Attributes:
        order: Its place in the random order, from 0.
        match: The prompt and the responses that met.
        votes: What their comparisons said.
    """

    order: int
    match: Match
    votes: PromptVotes

    @property
    def favours(self) -> Literal["on", "off", "neither"]:
        """The side with more than half of the score."""
        if self.votes.score == HALF:
            return "neither"
        return "on" if self.votes.score > HALF else "off"


def _candidates(
    match: Match,
    texts: tuple[str, ...],
    generations: tuple[Generation | None, ...],
    source: str | None,
) -> Candidates:
    names, scores = (source,) * len(texts), (None,) * len(texts)
    return Candidates(match.prompt_id, match.prompt, texts, names, scores, generations)


def judge_matches(
    judge: Judge, matches: Sequence[Match], *, votes: Votes, ties: TieRule
) -> list[PromptVotes]:
    """Judge all m·n comparisons of each prompt and count the votes.

    A pointwise judge scores each response once: m + n calls a prompt, not m·n.

    Args:
        judge: Gives P(y_i ≻ y'_j | x).
        matches: Prompts with their responses.
        votes: As in `count_votes`.
        ties: As in `count_votes`.

    Returns:
        The votes of each prompt, in order; each depends on its own prompt alone.
    """
    comparisons = [
        Comparison(match.prompt_id, match.prompt, on, off)
        for match in matches
        for on in match.on
        for off in match.off
    ]
    judgments = iter(_compare(judge, comparisons))
    return [_count(match, judgments, votes, ties) for match in matches]


def _compare(judge: Judge, comparisons: Sequence[Comparison]) -> list[Judgment]:
    if not isinstance(judge, PointwiseJudge):
        return judge.compare(comparisons)
    items: dict[tuple[str, str], Prompt] = {}
    for each in comparisons:
        for text in (each.a, each.b):
            items.setdefault((each.prompt_id, text), each.prompt)
    rewards = judge.score([(prompt, text) for (_, text), prompt in items.items()])
    known = dict(zip(items, rewards, strict=True))
    return [
        judgment_of_rewards(known[each.prompt_id, each.a], known[each.prompt_id, each.b])
        for each in comparisons
    ]


def _count(match: Match, judgments: Iterator[Judgment], votes: Votes, ties: TieRule) -> PromptVotes:
    found = [next(judgments) for _ in range(len(match.on) * len(match.off))]
    shape = (len(match.on), len(match.off))
    return count_votes(
        np.array([judgment.probability for judgment in found]).reshape(shape),
        undecided=np.array([judgment.status == "undecided" for judgment in found]).reshape(shape),
        votes=votes,
        ties=ties,
    )
