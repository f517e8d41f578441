"""Pairs of a policy's own answers, and of prompts that say how to answer."""

import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, islice
from typing import NamedTuple

from prefstage.building.account import Account, Built, Group, score_gap
from prefstage.building.choosing import usable_responses
from prefstage.building.recipe import PRINCIPLES, SHARE, TEMPLATE, Principle
from prefstage.building.relabelling import exchanged, rescored, without_raters
from prefstage.core import InputError, Ledger, seed_for
from prefstage.data import Candidates, CandidateSet, Message, Pair, Prompt, prompt_id_of
from prefstage.data.storage import DiskNumbers, count_different, different, text_number
from prefstage.judging.base import Judge, content_of
from prefstage.sampling.base import Sampler, collect, cut_thoughts, requests_for, to_candidates

_KEPT = "drawn_pairs_kept"


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
    figures = {
        "answers_sampled": len(samples),
        "answer_tokens": sum(sample.response_tokens for sample in samples),
        "answers_cut": sum(sample.finish_reason == "length" for sample in samples),
        "answers_cut_in_thought": sum(sample.thought_cut for sample in samples),
    }
    for figure, count in figures.items():
        account.add(figure, count)
    account.notes += cut_thoughts(samples)
    fault = "empty answer of the policy"
    answered = [s for s in samples if account.passes(s.prompt_id, {fault: not s.text.strip()})]
    return to_candidates(prompts, answered, source=sampler.name)


class MixingPlan(NamedTuple):
    """Which prompts are mixed.

    Attributes:
        is_drawn: Whether a prompt (by id) is.
        drawn: ⌊ρN⌋, how many are.
        prompts: N, how many different prompts there are.
    """

    is_drawn: Callable[[str], bool]
    drawn: int
    prompts: int


def plan_mixing(prompt_ids: Iterable[str], *, share: float = SHARE, seed: int = 0) -> MixingPlan:
    """Draw exactly ⌊ρN⌋ of N different prompts, whatever their order, in flat memory.

    Args:
        prompt_ids: Of all pairs; those that stand twice count once.
        share: ρ, in [0, 1].
        seed: Of the draw.

    Returns:
        The plan.
    """

    def number(prompt_id: str) -> int:
        return text_number(f"{seed}\0mixing\0{prompt_id}")

    # Every prompt has a random number of its own. Those up to the count-th smallest are drawn, so
    # that one limit decides and neither the prompts nor a list of the drawn ones stay in memory.
    with DiskNumbers("uint64", map(number, prompt_ids)) as numbers:
        total = count_different(numbers)
        # 0.1 * 30 is just below 3 in binary; a share that means a whole number gives that number.
        count = math.floor(share * total + 1e-9)
        smallest = islice(chain.from_iterable(different(numbers)), count)
        limit = max(map(int, smallest), default=-1)
    return MixingPlan(lambda prompt_id: number(prompt_id) <= limit, count, total)


def mixed_pairs(
    pairs: Iterable[Pair],
    answers: CandidateSet,
    judge: Judge,
    *,
    plan: MixingPlan,
    account: Account,
) -> Iterator[Group]:
    """Put the policy's best answer into the pairs of the drawn prompts.

    With y* the best of the policy's answers by the judge's reward r: if r(y*) > r(y_w) the
    pair becomes (y*, y_w), otherwise (y_w, y*). Other prompts keep their pairs, with the
    scores of their dataset and no judge. So no chosen response ever scores less than before.

    Args:
        pairs: The off-policy pairs.
        answers: The policy's answers to the drawn prompts.
        judge: Gives r, of y_w and of the answers, each once.
        plan: Which prompts are drawn.
        account: Counts what became of every pair.

    Yields:
        The pairs, one by one, in order.

    Source:
        arXiv:2508.18312, Algorithm 1.
    """
    # The answers stay on disk; only where each prompt's row is fills memory.
    rows = {prompt_id: index for index, prompt_id in enumerate(answers.dataset["prompt_id"])}
    account.figures |= {"prompts": plan.prompts, "prompts_drawn": plan.drawn}
    for pair in pairs:
        account.prompts += 1
        account.pairs += 1
        made, asked = pair, None
        if plan.is_drawn(pair.prompt_id):
            row = rows.get(pair.prompt_id)
            made, figure = (
                (pair, f"{_KEPT}_for_want_of_an_answer")
                if row is None
                else _mixed(pair, answers[row], judge)
            )
            account.add(figure)
            asked = None if made is pair else judge.name
        if made is pair:
            account.add("pairs_kept")
        yield [Built(made, "mixing", "mixing", gap=score_gap(made), judge=asked)]


# The pair with the policy's best answer, or as it is; and the figure that counts which.
def _mixed(pair: Pair, answers: Candidates, judge: Judge) -> tuple[Pair, str]:
    chosen = "\n".join(map(content_of, pair.chosen))
    together = replace(
        answers,
        responses=(*answers.responses, chosen),
        sources=(*answers.sources, pair.source_chosen),
        scores=(None,) * (len(answers.responses) + 1),
        generations=(),  # only scores are asked for
    )
    (scored,) = rescored([together], judge)
    last = len(answers.responses)
    ranked = usable_responses(scored, Account())
    chosen_score = scored.scores[last]
    best = next((r for r in ranked if r.position != last and r.text != chosen), None)
    if chosen_score is None or not math.isfinite(chosen_score):
        return pair, f"{_KEPT}_as_the_score_of_chosen_is_no_finite_number"
    if best is None:
        return pair, f"{_KEPT}_as_no_own_answer_is_another_with_a_score"
    made = replace(
        without_raters(pair),
        rejected=(answers.message(best.position),),
        score_chosen=chosen_score,
        score_rejected=best.score,
        source_rejected=best.source,
    )
    if best.score > chosen_score:
        return exchanged(made), "pairs_with_own_chosen"
    return made, "pairs_with_own_rejected"


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
        texts = (principle.good, principle.bad)
        asks = [with_system_text(row.prompt, text) for text in texts]
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


def reward_augmented(
    groups: Iterable[Group], *, template: str = TEMPLATE, digits: int = 1, account: Account
) -> Iterator[Group]:
    """Take each pair twice, once for either score as the goal.

    With the goal g in the prompt, a response earns ``-(g - r(y))²``. With g = r(y_w) the
    order stays; with g = r(y_l) the rejected response is the right one, and the order turns.

    Args:
        groups: Built pairs with both scores; others are counted and left out.
        template: What the system message says, with ``{score}`` where the goal stands; it
            is added to a system message that is there.
        digits: Decimal places of the goal. Pairs whose scores read the same are left out.
        account: Counts what was left out.

    Yields:
        For each pair two, whose scores are those of the goal; the ids are of the new prompts.

    Raises:
        InputError: If the template has no `{score}`.

    Source:
        Zhang et al. 2024, arXiv:2410.08067, §3.
    """
    InputError.unless(
        "{score}" in template,
        saw=f"template {template!r}",
        expected="a text with {score} in it",
        cure="add {score}",
    )
    for group in groups:
        made: Group = []
        for built in group:
            high, low = built.pair.score_chosen, built.pair.score_rejected
            if high is None or low is None or not math.isfinite(high - low):
                account.skip("pair without both scores", built.pair.prompt_id)
                continue
            sides = {f"{high:.{digits}f}": built.pair, f"{low:.{digits}f}": exchanged(built.pair)}
            if len(sides) == 1:
                account.skip("pair whose scores read the same as goals", built.pair.prompt_id)
            else:
                made += [
                    _with_goal(built, pair, template.replace("{score}", goal), -((high - low) ** 2))
                    for goal, pair in sides.items()
                ]
        account.pairs += len(made) - len(group)
        if made:
            yield made


def with_system_text(prompt: Prompt, text: str) -> Prompt:
    """Add a text to a prompt's system message, or put one before it.

    Args:
        prompt: The messages.
        text: What the system message shall say (too).

    Returns:
        The new messages.
    """
    if prompt and prompt[0].get("role") == "system" and isinstance(prompt[0].get("content"), str):
        return ({**prompt[0], "content": f"{prompt[0]['content']}\n\n{text}"}, *prompt[1:])
    first: Message = {"role": "system", "content": text}
    return (first, *prompt)


def _with_goal(built: Built, pair: Pair, text: str, worse: float) -> Built:
    prompt = with_system_text(built.pair.prompt, text)
    return replace(
        built,
        pair=replace(
            pair,
            prompt=prompt,
            prompt_id=prompt_id_of(prompt),
            score_chosen=0.0,
            score_rejected=worse,
            judge_probability=None,  # of the responses as such, whatever is asked for
        ),
        method="reward-augmented",
        part="reward-augmented",
        # Both halves of a pair must land in one split: they have the same two responses.
        origin_prompt_id=built.origin_prompt_id or built.pair.prompt_id,
        gap=-worse,
    )
