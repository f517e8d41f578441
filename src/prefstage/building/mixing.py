"""On-policy mixing: the policy's best answers enter the pairs of some prompts."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, islice

from prefstage.building.account import Account, Built, Group, score_gap
from prefstage.building.choosing import usable_responses
from prefstage.building.recipe import SHARE
from prefstage.building.relabelling import exchanged, rescored, without_raters
from prefstage.data import Candidates, CandidateSet, Pair
from prefstage.data.storage import DiskNumbers, count_different, different, text_number
from prefstage.judging.base import Judge, content_of
from prefstage.judging.judged import comparison_of, score_all

_KEPT, _PAIRS_AT_ONCE = "drawn_pairs_kept", 256


def draw_prompts(
    prompt_ids: Iterable[str], *, share: float = SHARE, seed: int = 0, account: Account
) -> Callable[[str], bool]:
    """Draw exactly ⌊ρN⌋ of N different prompts, whatever their order, in flat memory.

    Args:
        prompt_ids: Of all pairs; those that stand twice count once.
        share: ρ, in [0, 1].
        seed: Of the draw.
        account: Gets N and ⌊ρN⌋.

    Returns:
        Whether a prompt, by its id, is drawn.
    """

    def number(prompt_id: str) -> int:
        return text_number(f"{seed}\0mixing\0{prompt_id}")

    # Every prompt has a random number of its own. Those up to the count-th smallest are drawn, so
    # that one limit decides and neither the prompts nor a list of the drawn ones stay in memory.
    with DiskNumbers("uint64", map(number, prompt_ids)) as numbers:
        total = count_different(numbers)
        # 0.1 * 30 is just below 3 in binary; a share that means a whole number gives that number.
        count = math.floor(share * total + 1e-9)
        limit = max(map(int, islice(chain.from_iterable(different(numbers)), count)), default=-1)
    account.figures |= {"prompts": total, "prompts_drawn": count}
    return lambda prompt_id: number(prompt_id) <= limit


def mixed_pairs(
    pairs: Iterable[Pair],
    answers: CandidateSet,
    judge: Judge,
    *,
    is_drawn: Callable[[str], bool],
    account: Account,
) -> Iterator[Group]:
    """Put the policy's best answer into the pairs of the drawn prompts.

    With y* the best of the policy's answers by the judge's reward r: if r(y*) > r(y_w) the
    pair becomes (y*, y_w), otherwise (y_w, y*). Other prompts keep their pairs; a judge that
    scores responses by themselves scores them too, so that all scores are on one scale and
    their mean cannot be below that of the pairs before. A judge that only compares leaves the
    scores of the dataset.

    Args:
        pairs: The off-policy pairs.
        answers: The policy's answers to the drawn prompts.
        judge: Gives r, of y_w and of the answers, each once.
        is_drawn: Whether a prompt, by its id, is.
        account: Counts what became of every pair.

    Yields:
        The pairs, one by one, in order.

    Source:
        arXiv:2508.18312, Algorithm 1.
    """
    # The answers stay on disk; only where each prompt's row is fills memory.
    rows = {prompt_id: index for index, prompt_id in enumerate(answers.dataset["prompt_id"])}
    rest = iter(pairs)
    while chunk := list(islice(rest, _PAIRS_AT_ONCE)):
        account.prompts += len(chunk)
        account.pairs += len(chunk)
        mixed = list[Pair | None]()
        for pair in chunk:
            made, row = None, rows.get(pair.prompt_id)
            if is_drawn(pair.prompt_id):
                made, figure = (
                    (None, f"{_KEPT}_for_want_of_an_answer")
                    if row is None
                    else _mixed(pair, answers[row], judge)
                )
                account.figures[figure] += 1
            mixed.append(made)
        kept = [pair for pair, made in zip(chunk, mixed, strict=True) if made is None]
        account.figures["pairs_kept"] += len(kept)
        rest_of_chunk = iter(_scored(kept, judge) if judge.pointwise else kept)
        for made in mixed:
            pair = next(rest_of_chunk) if made is None else made
            asked = None if made is None and not judge.pointwise else judge.name
            yield [Built(pair, "mixing", "mixing", gap=score_gap(pair), judge=asked)]


# Pairs with a pointwise judge's scores of both sides; None where it gives no finite number.
def _scored(pairs: Sequence[Pair], judge: Judge) -> Iterator[Pair]:
    both = [comparison_of(pair) for pair in pairs]
    items = [(c.prompt, text) for c in both for text in (c.a, c.b)]
    scores = [s if math.isfinite(s) else None for s in score_all(judge, items)]
    for pair, chosen, rejected in zip(pairs, scores[::2], scores[1::2], strict=True):
        yield replace(pair, score_chosen=chosen, score_rejected=rejected)


# The pair with the policy's best answer, or None if it stays; and the figure that counts which.
def _mixed(pair: Pair, answers: Candidates, judge: Judge) -> tuple[Pair | None, str]:
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
        return None, f"{_KEPT}_as_the_score_of_chosen_is_no_finite_number"
    if best is None:
        return None, f"{_KEPT}_as_no_own_answer_is_another_with_a_score"
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
