"""Spend sampling where the boundary is uncertain: prompt by prompt, until a budget is used up."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from prefstage.building.account import Account
from prefstage.building.per_prompt import Measured, PromptTally
from prefstage.core.config import Config
from prefstage.core.seeds import seed_for
from prefstage.data.records import Candidates
from prefstage.judging.base import Judge
from prefstage.measuring.boundary import HALF, judge_sides
from prefstage.sampling.base import Sample, Sampler, SampleRequest
from prefstage.sampling.store import CandidateStore, collect, to_candidates


class Budget(Config):
    """What may be spent on finding each prompt's side; at least one limit."""

    tokens: int | None = Field(default=None, ge=1, description="Response tokens at most.")
    judgments: int | None = Field(default=None, ge=1, description="Comparisons at most.")
    clear_at: float = Field(
        default=2.0, gt=0, description="|on - off| / sqrt(votes + 1) at which a prompt is clear."
    )
    prompts_a_round: int = Field(default=16, ge=1, description="Prompts asked between two looks.")

    @model_validator(mode="after")
    def _some_limit(self) -> Self:
        if self.tokens is None and self.judgments is None:
            raise ValueError("no limit; expected tokens or judgments; set one of them")
        return self


@dataclass
class Spent:
    """What was used of a budget.

    Attributes:
        tokens: Response tokens sampled.
        judgments: Comparisons judged.
    """

    tokens: int = 0
    judgments: int = 0

    def within(self, budget: Budget) -> bool:
        """Whether something is left of every limit."""
        return (budget.tokens is None or self.tokens < budget.tokens) and (
            budget.judgments is None or self.judgments < budget.judgments
        )


def least_clear(
    tallies: Mapping[str, PromptTally], *, count: int, clear_at: float, seed: int
) -> list[str]:
    """The prompts whose side is least certain.

    Args:
        tallies: Votes of each prompt.
        count: How many at most.
        clear_at: Prompts at or above this clearness are left alone.
        seed: Orders equally uncertain ones.

    Returns:
        Prompt ids, the least clear first; with equal clearness the one with fewer votes.
    """
    open_ones = [
        (each.clearness, each.on + each.off, seed_for(seed, "budget", prompt_id), prompt_id)
        for prompt_id, each in tallies.items()
        if each.clearness < clear_at
    ]
    return [prompt_id for *_, prompt_id in sorted(open_ones)[:count]]


def sharpen(
    measured: Measured,
    off_policy: Mapping[str, Candidates],
    *,
    sampler: Sampler,
    judge: Judge,
    budget: Budget,
    seed: int = 0,
    store: Path,
    account: Account,
) -> tuple[Measured, dict[str, Candidates]]:
    """Sample further responses where votes are even, judge them, and go on until the budget ends.

    In each round the least clear prompts get one more on-policy response, which meets every
    off-policy response of its prompt. Prompts that were not measured start from no votes.

    Args:
        measured: The votes so far.
        off_policy: The off-policy responses of each prompt that may be asked, by id.
        sampler: The policy.
        judge: Gives P(on ≻ off | x).
        budget: What may be spent; a round that was begun is finished.
        seed: Orders equally uncertain prompts.
        store: Candidate store of the new answers; what is in it is not sampled again, and
            counts as spent all the same, so that a resumed run takes the same way.
        account: Gets what was spent.

    Returns:
        The measurement with the new votes (the overall stage stays), and the new responses
        of each prompt that got some.
    """
    tallies = {prompt_id: PromptTally(0.0, 0.0) for prompt_id in off_policy}
    tallies |= {i: replace(t) for i, t in measured.tallies.items() if i in off_policy}
    spent, asked = Spent(), dict[str, int]()
    answers: dict[str, list[Sample]] = {}
    with CandidateStore(store) as kept:
        while spent.within(budget):
            chosen = least_clear(
                tallies, count=budget.prompts_a_round, clear_at=budget.clear_at, seed=seed
            )
            chosen = _affordable(chosen, off_policy, budget, spent)
            if not chosen:
                break
            requests = [
                SampleRequest(each, off_policy[each].prompt, asked.get(each, 0)) for each in chosen
            ]
            samples = {each.prompt_id: each for each in collect(sampler, requests, kept)}
            for each in chosen:
                asked[each] = asked.get(each, 0) + 1
                spent.tokens += samples[each].response_tokens
            for prompt_id in _judge(
                chosen, samples, off_policy, judge, tallies=tallies, spent=spent
            ):
                answers.setdefault(prompt_id, []).append(samples[prompt_id])
    account.figures |= {"budget_tokens": spent.tokens, "budget_judgments": spent.judgments}
    account.figures |= {"budget_responses": sum(asked.values()), "budget_prompts": len(asked)}
    rows = to_candidates(
        [off_policy[prompt_id] for prompt_id in answers],
        [sample for samples in answers.values() for sample in samples],
        source=sampler.name,
    )
    more = {row.prompt_id: row for row in rows}
    return replace(measured, tallies={**measured.tallies, **tallies}), more


def _affordable(
    chosen: list[str], off: Mapping[str, Candidates], budget: Budget, spent: Spent
) -> list[str]:
    """As many of the prompts as the judgments that are left allow."""
    if budget.judgments is None:
        return chosen
    left, fine = budget.judgments - spent.judgments, list[str]()
    for prompt_id in chosen:
        left -= len(off[prompt_id].responses)
        if left < 0:
            break
        fine.append(prompt_id)
    return fine


def _judge(
    chosen: list[str],
    samples: Mapping[str, Sample],
    off: Mapping[str, Candidates],
    judge: Judge,
    *,
    tallies: dict[str, PromptTally],
    spent: Spent,
) -> Iterator[str]:
    """Add each new response's votes; an empty one loses to every off-policy response.

    Yields:
        The prompts whose response has text.
    """
    spoken = [each for each in chosen if samples[each].text.strip()]
    answers = [
        replace(
            off[each],
            responses=(samples[each].text,),
            sources=(None,),
            scores=(None,),
            generations=(),
        )
        for each in spoken
    ]
    theirs = [off[each] for each in spoken]
    for prompt_id, votes in zip(spoken, judge_sides(judge, answers, theirs), strict=True):
        even = HALF * (votes.ties + votes.undecided)
        tallies[prompt_id].on += votes.votes_on + even
        tallies[prompt_id].off += votes.votes_off + even
        spent.judgments += votes.comparisons
        yield prompt_id
    for each in set(chosen) - set(spoken):
        tallies[each].off += len(off[each].responses)
