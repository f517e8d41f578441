"""Pairs without a judge: the policy answers by a good principle and by a bad one."""

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from prefstage.building.account import Account
from prefstage.building.augmented import with_system_text
from prefstage.building.built import Built, Group
from prefstage.building.mixing import own_answers
from prefstage.core.config import Config
from prefstage.core.seeds import seed_for
from prefstage.data.records import Candidates, Pair, prompt_id_of
from prefstage.sampling.base import Sampler


class Principle(Config):
    """Two instructions that differ in one virtue.

    Attributes:
        good: What the chosen response is written by.
        bad: What the rejected response is written by.
    """

    good: str
    bad: str


PRINCIPLES = (
    Principle(
        good="Answer correctly and check every fact and every step before you write it.",
        bad="Answer quickly. Do not check facts or steps, and guess where you do not know.",
    ),
    Principle(
        good="Answer exactly what is asked, completely and with the details that help.",
        bad="Answer vaguely, leave out important parts and drift away from the question.",
    ),
    Principle(
        good="Write clearly, in good order and without needless words.",
        bad="Write confusingly, repeat yourself and mix the order of what you say.",
    ),
)


def principled_pairs(
    prompts: Sequence[Candidates],
    sampler: Sampler,
    *,
    principles: Sequence[Principle] = PRINCIPLES,
    seed: int = 0,
    store: Path,
    account: Account,
) -> Iterator[Group]:
    """Let the policy answer each prompt under a good and under a bad principle.

    The principle stands in the system message while sampling and not in the pair's prompt.

    Args:
        prompts: Each prompt once.
        sampler: The policy.
        principles: One is drawn a prompt.
        seed: Of the draw.
        store: Candidate store of the answers; what is in it is not sampled again.
        account: Counts what was read, built and left out.

    Yields:
        Each pair by itself; it has no scores.

    Source:
        Xiang et al. 2024, arXiv:2410.17131, §3 (pairs from prompts with positive and
        negative principles).
    """
    asked = [(row, *_asked(row, principles, seed)) for row in prompts]
    wanted = {each.prompt_id: each for _, good, bad in asked for each in (good, bad)}
    rows = own_answers(list(wanted.values()), sampler, answers=1, store=store, account=account)
    answers = {row.prompt_id: row for row in rows}
    for row, good, bad in asked:
        account.prompts += 1
        first, second = answers.get(good.prompt_id), answers.get(bad.prompt_id)
        if first is None or second is None:
            account.skip("prompt without both answers", row.prompt_id)
            continue
        if first.responses == second.responses:
            account.skip("prompt answered alike under both principles", row.prompt_id)
            continue
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


def _asked(
    row: Candidates, principles: Sequence[Principle], seed: int
) -> tuple[Candidates, Candidates]:
    draw = random.Random(seed_for(seed, "principle", row.prompt_id))
    principle = draw.choice(list(principles))
    prompts = [with_system_text(row.prompt, text) for text in (principle.good, principle.bad)]
    good, bad = (Candidates(prompt_id_of(each), each, (), (), ()) for each in prompts)
    return good, bad
