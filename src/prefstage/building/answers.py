"""Pairs of a policy's own answers: mixed into others, by principle, and prompt by prompt."""

import math
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain
from pathlib import Path
from typing import Literal

from prefstage.building.account import Account, Built, Group
from prefstage.building.recipe import PRINCIPLES, Budget, Principle
from prefstage.building.relabelling import with_system_text
from prefstage.core import InputError, Ledger, read_json, seed_for
from prefstage.data import Candidates, Pair, prompt_id_of
from prefstage.data.records import generations_of
from prefstage.judging.base import Judge
from prefstage.measuring.boundary import HALF, judge_sides
from prefstage.sampling.base import (
    Sample,
    Sampler,
    SampleRequest,
    collect,
    requests_for,
    shortfalls,
    to_candidates,
)


def policy_answers(
    prompts: Sequence[Candidates],
    sampler: Sampler,
    *,
    answers: int,
    ledger: Ledger,
    account: Account,
) -> list[Candidates]:
    """Let a policy answer prompts; every answer is on disk as it arrives.

    Args:
        prompts: Each prompt once.
        sampler: The policy.
        answers: Responses a prompt, k.
        ledger: Where answers are kept; what is in it is not sampled again.
        account: Gets the counts of answers, tokens and empty answers.

    Returns:
        The prompts that have an answer with text, with their answers.
    """
    samples = list(collect(sampler, requests_for(prompts, responses=answers), ledger))
    account.figures |= {
        "answers_sampled": len(samples),
        "answer_tokens": sum(sample.response_tokens for sample in samples),
        "answers_cut": sum(sample.finish_reason == "length" for sample in samples),
        "answers_cut_in_thought": sum(sample.thought_cut for sample in samples),
    }
    account.notes += shortfalls(samples)
    answered = [
        sample
        for sample in samples
        if account.passes(
            sample.prompt_id,
            {
                "answer refused by the policy's server": bool(sample.refusal),
                "empty answer of the policy": not (sample.text.strip() or sample.refusal),
            },
        )
    ]
    return to_candidates(prompts, answered, source=sampler.name)


def principled_pairs(
    prompts: Sequence[Candidates],
    sampler: Sampler,
    *,
    principles: Sequence[Principle] = PRINCIPLES,
    seed: int = 0,
    ledger: Ledger,
    account: Account,
) -> Iterator[Group]:
    """Let the policy answer each prompt under a good and under a bad principle.

    The principle stands in the system message while sampling and not in the pair's prompt.

    Args:
        prompts: Each prompt once.
        sampler: The policy.
        principles: One is drawn a prompt.
        seed: Of the draw.
        ledger: Where the answers are kept; what is in it is not sampled again.
        account: Counts what was read, built and left out.

    Yields:
        Each pair by itself; it has no scores.

    Source:
        Xiang et al. 2024, arXiv:2410.17131, §3 (pairs from prompts with positive and
        negative principles).
    """
    asked: list[tuple[Candidates, list[Candidates]]] = []
    for row in prompts:
        draw = random.Random(seed_for(seed, "principle", row.prompt_id))
        principle = draw.choice(list(principles))
        asks = [with_system_text(row.prompt, text) for text in (principle.good, principle.bad)]
        asked.append((row, [Candidates(prompt_id_of(ask), ask, (), (), ()) for ask in asks]))
    # Two rows may ask the same: it is sampled once.
    wanted = {ask.prompt_id: ask for _, both in asked for ask in both}
    rows = policy_answers(list(wanted.values()), sampler, answers=1, ledger=ledger, account=account)
    answers = {row.prompt_id: row for row in rows}
    for row, both in asked:
        account.prompts += 1
        first, second = (answers.get(ask.prompt_id) for ask in both)
        if first is None or second is None:
            account.skip("prompt without both answers", row.prompt_id)
        elif first.responses == second.responses:
            account.skip("prompt answered alike under both principles", row.prompt_id)
        else:
            account.pairs += 1
            pair = Pair(
                row.prompt_id,
                row.prompt,
                (first.message(0),),
                (second.message(0),),
                source_chosen=sampler.name,
                source_rejected=sampler.name,
            )
            yield [Built(pair, "principled", "principled")]


Side = Literal["on", "off"]


@dataclass
class PromptTally:
    """What a prompt's comparisons said so far.

    Attributes:
        on: Votes for on-policy responses; a tie counts half.
        off: Votes for off-policy responses; likewise.
    """

    on: float
    off: float

    @property
    def clearness(self) -> float:
        """How far the votes are from even: ``|on - off| / √(on + off + 1)``."""
        return abs(self.on - self.off) / math.sqrt(self.on + self.off + 1)

    @property
    def favours(self) -> Side | None:
        """The side with more votes; None if they are even."""
        return None if self.on == self.off else "on" if self.on > self.off else "off"


@dataclass(frozen=True)
class Measured:
    """What a measurement says, prompt by prompt and overall.

    Attributes:
        tallies: The votes of each prompt that was used, by id.
        overall: The side that the whole measurement favours.
        stage: Its stage's name.
    """

    tallies: Mapping[str, PromptTally]
    overall: Side
    stage: str


def read_measurement(folder: Path) -> Measured:
    """Read what `prefstage measure --out FOLDER` left.

    Args:
        folder: The run folder.

    Returns:
        Votes a prompt, and the overall side: off in the injection stage, on in the
        fine-tuning stage; where that is undecided, the side of Algorithm 1's rule (off only
        if it has more votes).

    Raises:
        InputError: If the folder holds no finished measurement.
    """
    import pyarrow.parquet as pq

    with InputError.instead_of(
        OSError,
        ValueError,
        saw=f"measurement {folder} without stage.json and prompts.parquet",
        expected="the run folder of a finished measurement",
        cure="run `prefstage measure ... --out FOLDER` first, and name that folder",
    ):
        stage = read_json(folder / "stage.json")
        rows = pq.read_table(folder / "prompts.parquet").to_pylist()
    tallies = {
        row["prompt_id"]: PromptTally(
            on=row["votes_on"] + HALF * (row["ties"] + row["undecided"]),
            off=row["votes_off"] + HALF * (row["ties"] + row["undecided"]),
        )
        for row in rows
    }
    sides: dict[str, Side] = {"injection": "off", "fine-tuning": "on"}
    by_rule: Side = "off" if stage["votes_off"] > stage["votes_on"] else "on"
    return Measured(tallies, sides.get(stage["stage"], by_rule), stage["stage"])


def per_prompt_pairs(
    on_policy: Iterable[Group],
    off_policy: Iterable[Group],
    measured: Measured,
    *,
    account: Account,
) -> Iterator[Group]:
    """Take each prompt's pairs from the side that its comparisons favour.

    A prompt whose votes are even, or that was not measured, follows the overall stage. Where
    the side to take has no pair, the other side's is taken, and counted.

    Args:
        on_policy: Pairs of the policy's own responses.
        off_policy: Pairs of the dataset, relabelled by the same judge.
        measured: As of `read_measurement`.
        account: Counts which side each prompt took, and why.

    Yields:
        The pairs of each prompt: first those that have on-policy pairs, then the others.
    """
    sides: dict[Side, dict[str, Group]] = {"on": {}, "off": {}}
    for groups, by_prompt in ((on_policy, sides["on"]), (off_policy, sides["off"])):
        for built in chain.from_iterable(groups):
            by_prompt.setdefault(built.pair.prompt_id, []).append(built)
    for prompt_id in dict.fromkeys((*sides["on"], *sides["off"])):
        account.prompts += 1
        tally = measured.tallies.get(prompt_id)
        decided = tally.favours if tally is not None else None
        side: Side = decided or measured.overall
        why = "own votes" if decided else ("even votes" if tally else "not measured")
        if prompt_id not in sides[side]:
            side = "off" if side == "on" else "on"
            why = "other side lacks a pair"
        account.figures[f"{side}_policy: {why}"] += 1
        group = sides[side][prompt_id]
        account.pairs += len(group)
        yield [
            replace(built, method=f"per-prompt, {side}-policy", part="per-prompt")
            for built in group
        ]


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
    unclear = [
        (tally.clearness, tally.on + tally.off, seed_for(seed, "budget", prompt_id), prompt_id)
        for prompt_id, tally in tallies.items()
        if tally.clearness < clear_at
    ]
    return [prompt_id for *_, prompt_id in sorted(unclear)[:count]]


def sharpen(
    measured: Measured,
    off_policy: Mapping[str, Candidates],
    *,
    sampler: Sampler,
    judge: Judge,
    budget: Budget,
    seed: int = 0,
    ledger: Ledger,
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
        ledger: Where the new answers are kept; what is in it is not sampled again, and
            counts as spent all the same, so that a resumed run takes the same way.
        account: Gets what was spent.

    Returns:
        The measurement with the new votes (the overall stage stays), and the new responses
        of each prompt that got some.
    """
    tallies = {prompt_id: PromptTally(0.0, 0.0) for prompt_id in off_policy}
    tallies |= {i: replace(t) for i, t in measured.tallies.items() if i in off_policy}
    refused = dict[str, PromptTally]()  # by the policy's server: of no use to ask again
    tokens, judgments = 0, 0
    answers, asked = list[Sample](), Counter[str]()
    while (budget.tokens is None or tokens < budget.tokens) and (
        budget.judgments is None or judgments < budget.judgments
    ):
        chosen = least_clear(
            tallies, count=budget.prompts_a_round, clear_at=budget.clear_at, seed=seed
        )
        left = math.inf if budget.judgments is None else budget.judgments - judgments
        costs = accumulate(len(off_policy[i].responses) for i in chosen)
        chosen = [i for i, cost in zip(chosen, costs, strict=True) if cost <= left]
        if not chosen:
            break
        wanted = [SampleRequest(i, off_policy[i].prompt, asked[i]) for i in chosen]
        asked.update(chosen)
        # In the order of the requests, whatever the order of arrival: a resumed run is the same.
        samples = sorted(
            collect(sampler, wanted, ledger), key=lambda sample: chosen.index(sample.prompt_id)
        )
        tokens += sum(sample.response_tokens for sample in samples)
        refused |= {s.prompt_id: tallies.pop(s.prompt_id) for s in samples if s.refusal}
        samples = [sample for sample in samples if not sample.refusal]
        answers += [sample for sample in samples if sample.text.strip()]
        judgments += _count_votes(samples, off_policy, judge, tallies=tallies)
    account.figures |= {
        **{"budget_tokens": tokens, "budget_judgments": judgments},
        **{"budget_responses": asked.total(), "budget_prompts": len(asked)},
    }
    if refused:
        account.notes.append(f"the policy's server refused {len(refused)} prompts of the budget")
    answered = dict.fromkeys(sample.prompt_id for sample in answers)
    rows = to_candidates([off_policy[i] for i in answered], answers, source=sampler.name)
    return replace(measured, tallies={**measured.tallies, **tallies, **refused}), {
        row.prompt_id: row for row in rows
    }


def joined(row: Candidates | None, more: Candidates) -> Candidates:
    """A prompt's responses and further ones, scores left out: each keeps how it was generated."""
    if row is None:
        return more
    generations = [part.generation(n) for part in (row, more) for n in range(len(part.responses))]
    return replace(
        row,
        responses=row.responses + more.responses,
        sources=row.sources + more.sources,
        scores=(None,) * (len(row.responses) + len(more.responses)),
        generations=generations_of(generations),
    )


# Add each new response's votes to its prompt's tally; returns how many were judged.
def _count_votes(
    samples: Sequence[Sample],
    off: Mapping[str, Candidates],
    judge: Judge,
    *,
    tallies: dict[str, PromptTally],
) -> int:
    with_text = [sample for sample in samples if sample.text.strip()]
    theirs = [off[sample.prompt_id] for sample in with_text]
    ours = [
        Candidates(row.prompt_id, row.prompt, (sample.text,), (None,), (None,))
        for sample, row in zip(with_text, theirs, strict=True)
    ]
    judged = judge_sides(judge, ours, theirs)
    for row, votes in zip(theirs, judged, strict=True):
        even = HALF * (votes.ties + votes.undecided)
        tallies[row.prompt_id].on += votes.votes_on + even
        tallies[row.prompt_id].off += votes.votes_off + even
    for sample in samples:
        if not sample.text.strip():  # an empty answer loses to every other, no judge is needed
            tallies[sample.prompt_id].off += len(off[sample.prompt_id].responses)
    return sum(votes.comparisons for votes in judged)
