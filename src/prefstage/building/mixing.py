"""On-policy mixing: a share of the prompts takes the policy's best answer into its pair."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from prefstage.building.account import Account
from prefstage.building.built import Built, Group
from prefstage.building.choosing import rescored, usable_responses
from prefstage.building.relabelling import without_raters
from prefstage.building.selecting import draw_prompts
from prefstage.data.records import Candidates, Pair
from prefstage.data.sets import CandidateSet
from prefstage.judging.base import Judge
from prefstage.judging.texts import content_of
from prefstage.sampling.base import Sampler, cut_thoughts, requests_for
from prefstage.sampling.store import CandidateStore, collect, to_candidates

_SAME = "as_no_own_answer_is_another_with_a_score"
_UNREADABLE = "as_the_score_of_chosen_is_no_finite_number"

SHARE, ANSWERS = 0.1, 8
"""ρ and k of the paper."""


def own_answers(
    prompts: Sequence[Candidates], sampler: Sampler, *, answers: int, store: Path, account: Account
) -> list[Candidates]:
    """Let a policy answer prompts; every answer is on disk as it arrives.

    Args:
        prompts: Each prompt once.
        sampler: The policy.
        answers: Responses a prompt, k.
        store: The candidate store's file; what is in it is not sampled again.
        account: Gets the counts of answers, tokens and empty answers.

    Returns:
        The prompts that have an answer with text, with their answers.
    """
    requests = requests_for(prompts, responses=answers)
    with CandidateStore(store) as kept:
        samples = list(collect(sampler, requests, kept))
    spoken = [each for each in samples if each.text.strip()]
    account.add("answers_sampled", len(samples))
    account.add("answer_tokens", sum(each.response_tokens for each in samples))
    account.add("answers_cut", sum(each.finish_reason == "length" for each in samples))
    account.add("answers_cut_in_thought", sum(each.thought_cut for each in samples))
    account.notes += cut_thoughts(samples)
    for each in samples:
        account.skip("empty answer of the policy", each.prompt_id, int(not each.text.strip()))
    return to_candidates(prompts, spoken, source=sampler.name)


@dataclass(frozen=True)
class MixingPlan:
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
    """Draw exactly ⌊ρN⌋ of N different prompts.

    Args:
        prompt_ids: Of all pairs.
        share: ρ, in [0, 1].
        seed: Of the draw.

    Returns:
        The plan.
    """
    return MixingPlan(*draw_prompts(prompt_ids, share=share, seed=seed, name="mixing"))


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
    places = {prompt_id: place for place, prompt_id in enumerate(answers.dataset["prompt_id"])}
    account.figures |= {"prompts": plan.prompts, "prompts_drawn": plan.drawn}
    for pair in pairs:
        account.prompts += 1
        account.pairs += 1
        drawn = plan.is_drawn(pair.prompt_id)
        if not drawn or pair.prompt_id not in places:
            if drawn:
                account.add("drawn_pairs_kept_for_want_of_an_answer")
            account.add("pairs_kept")
            yield [Built(pair, "mixing", "mixing", gap=_gap(pair))]
            continue
        yield [_mixed(pair, answers[places[pair.prompt_id]], judge, account)]


def _mixed(pair: Pair, own: Candidates, judge: Judge, account: Account) -> Built:
    chosen = "\n".join(map(content_of, pair.chosen))
    together = replace(
        own,
        responses=(*own.responses, chosen),
        sources=(*own.sources, pair.source_chosen),
        scores=(None,) * (len(own.responses) + 1),
        generations=(),  # only scores are asked for
    )
    (scored,) = rescored([together], judge)
    last = len(own.responses)
    ranked = usable_responses(scored, Account())
    theirs = scored.scores[last]
    best = next((each for each in ranked if each.place != last and each.text != chosen), None)
    if best is None or theirs is None or not math.isfinite(theirs):
        alike = theirs is not None and math.isfinite(theirs)
        account.add(f"drawn_pairs_kept_{_SAME if alike else _UNREADABLE}")
        account.add("pairs_kept")
        return Built(pair, "mixing", "mixing", gap=_gap(pair))
    ours = without_raters(pair)
    if best.score > theirs:
        account.add("pairs_with_own_chosen")
        made = replace(
            ours,
            chosen=(own.message(best.place),),
            rejected=pair.chosen,
            score_chosen=best.score,
            score_rejected=theirs,
            source_chosen=best.source,
            source_rejected=pair.source_chosen,
        )
    else:
        account.add("pairs_with_own_rejected")
        made = replace(
            ours,
            rejected=(own.message(best.place),),
            score_chosen=theirs,
            score_rejected=best.score,
            source_rejected=best.source,
        )
    return Built(made, "mixing", "mixing", gap=_gap(made), judge=judge.name)


def _gap(pair: Pair) -> float | None:
    if pair.score_chosen is None or pair.score_rejected is None:
        return None
    return pair.score_chosen - pair.score_rejected
