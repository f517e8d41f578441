"""Per-prompt stage: each prompt takes the side that its votes favour; a budget sharpens them."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain
from pathlib import Path
from typing import Literal

from prefstage.building.account import Account, Group
from prefstage.building.recipe import Budget
from prefstage.core import InputError, Ledger, seed_for
from prefstage.data.records import Candidates, generations_of
from prefstage.judging.base import Judge
from prefstage.measuring.boundary import HALF, judge_sides
from prefstage.sampling.base import Sample, Sampler, SampleRequest, collect, to_candidates

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
        stage = json.loads((folder / "stage.json").read_text(encoding="utf-8"))
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
        account.add(f"{side}_policy: {why}")
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
        answers += [sample for sample in samples if sample.text.strip()]
        judgments += _count_votes(samples, off_policy, judge, tallies=tallies)
    account.figures |= {
        **{"budget_tokens": tokens, "budget_judgments": judgments},
        **{"budget_responses": asked.total(), "budget_prompts": len(asked)},
    }
    answered = dict.fromkeys(sample.prompt_id for sample in answers)
    rows = to_candidates([off_policy[i] for i in answered], answers, source=sampler.name)
    return replace(measured, tallies={**measured.tallies, **tallies}), {
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
