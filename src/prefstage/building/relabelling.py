"""Judged again: responses by score, pairs by label, and what several aspects agree about."""

import math
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np

from prefstage.building.account import (
    Account,
    Built,
    Group,
    check_reversal,
    first_of,
    reversal_figures,
)
from prefstage.building.recipe import TEMPLATE
from prefstage.core import InputError
from prefstage.data.records import Candidates, Message, Pair, Prompt, prompt_id_of
from prefstage.judging.base import (
    Judge,
    Judgment,
    check_decided,
    content_of,
    judgment_of_rewards,
)
from prefstage.judging.judged import compare_all, comparison_of, score_all, score_candidates

_PAIRS_AT_ONCE, _PROMPTS_AT_ONCE = 512, 256
_HALF, _TWO = 0.5, 2

Numbers = np.ndarray[Any, Any]


def whole_pairs(pairs: Iterable[Pair], account: Account) -> Iterator[Pair]:
    """Leave out pairs that no method can use, counted.

    Args:
        pairs: The pairs; those that are read from files have both sides.
        account: Where what is left out is counted, also as read.

    Yields:
        Pairs with text or a tool call on both sides, not twice the same, whose scores (if
        any) are finite numbers.
    """
    for pair in pairs:
        says = [any(map(_says_something, side)) for side in (pair.chosen, pair.rejected)]
        scores = [score or 0.0 for score in (pair.score_chosen, pair.score_rejected)]
        if account.passes(
            pair.prompt_id,
            {
                "pair without one of its sides": not all(says),
                "pair with the same text on both sides": pair.chosen == pair.rejected,
                "pair whose score is no finite number": not all(map(math.isfinite, scores)),
            },
        ):
            yield pair
        else:
            account.prompts += 1


def _says_something(message: Any) -> bool:
    return isinstance(message, dict) and bool(
        content_of(message).strip() or message.get("tool_calls")
    )


def rescored(rows: Iterable[Candidates], judge: Judge) -> Iterator[Candidates]:
    """Give every response the judge's score, some prompts at a time.

    Args:
        rows: Prompts with their responses.
        judge: Who scores.

    Yields:
        The rows with scores, in order.
    """
    rest = iter(rows)
    while chunk := list(islice(rest, _PROMPTS_AT_ONCE)):
        for row, scores in zip(chunk, score_candidates(judge, chunk, part=True), strict=True):
            yield replace(row, scores=tuple(scores))


def relabelled(
    pairs: Iterable[Pair], judge: Judge, *, account: Account, accept_reversal: bool = False
) -> Iterator[Group]:
    """Let a judge say which response of each pair is the chosen one.

    All pairs are judged first, so that how often the labels are reversed is known before any
    is replaced. A pointwise judge's rewards become the scores; any other judge's
    P(chosen ≻ rejected) and its complement do. Pairs that it finds equal, or gives no readable
    answer to, are left out and counted. What raters said (`agreement`, `annotator`, `votes`) does
    not outlive their labels; P(chosen ≻ rejected) of the judge takes its place.

    Args:
        pairs: The pairs as they are labelled; they are read twice.
        judge: Who labels them now.
        account: Counts what was read, flipped and left out; gets the `reversal`.
        accept_reversal: Whether any share of reversed labels is accepted.

    Returns:
        Each pair by itself, with `label_flipped`.

    Raises:
        InputError: If more than 40 % of the labels are reversed, and that is not accepted.

    Source:
        arXiv:2508.10530, App. B.2: off-policy pairs are relabelled by the judge that labels
        the on-policy ones.
    """
    rows = list(pairs) if isinstance(pairs, Iterator) else pairs
    account.reversal, numbers = measure_reversal(rows, judge)
    check_reversal(account.reversal, accepted=accept_reversal, judge=judge.name)
    judged = (
        (
            replace(
                without_raters(pair),
                score_chosen=chosen,
                score_rejected=rejected,
                judge_probability=judgment.probability,
            ),
            judgment,
            abs(chosen - rejected),
        )
        for pair, (judgment, chosen, rejected) in zip(
            whole_pairs(rows, account), _judgments(numbers, judge), strict=True
        )
    )
    return _labelled(judged, method="relabel", judge=judge.name, account=account)


def measure_reversal(pairs: Iterable[Pair], judge: Judge) -> tuple[dict[str, Any], Numbers]:
    """Measure how often a judge reverses the labels of pairs.

    Args:
        pairs: The pairs as they are labelled; they are read twice.
        judge: Who is asked.

    Returns:
        As `reversal_figures`; the rewards of both sides of each whole pair, or
        P(chosen ≻ rejected) and 1 - P, NaN if unreadable. [pairs, 2].
    """
    numbers = _numbers(whole_pairs(pairs, Account()), judge)  # counted where they are read again
    known = int(np.isfinite(numbers).all(axis=1).sum())
    check_decided(judge, decided=known, asked=len(numbers))
    judgments = (judgment for judgment, *_ in _judgments(numbers, judge))
    return reversal_of(zip(whole_pairs(pairs, Account()), judgments, strict=True)), numbers


def reversal_of(judged: Iterable[tuple[Pair, Judgment]]) -> dict[str, Any]:
    """Count what judgments say of labels.

    Args:
        judged: Pairs and their judgments P(chosen ≻ rejected).

    Returns:
        As `reversal_figures`.
    """
    words = (
        first_of(
            {
                "unlabelled": pair.tied,
                "unreadable": judgment.status == "undecided",
                "equal": judgment.probability == _HALF,
                "reversed": judgment.probability < _HALF,
            }
        )
        for pair, judgment in judged
    )
    return reversal_figures(**Counter(word or "kept" for word in words))


def without_raters(pair: Pair) -> Pair:
    """The pair without what raters (or an earlier judge) said of it."""
    return replace(pair, agreement=None, annotator=None, votes=(), judge_probability=None)


def exchanged(pair: Pair) -> Pair:
    """The pair with its two sides exchanged, scores and sources with them; without raters.

    A judge's probability is that of the new chosen response.
    """
    return replace(pair.swapped(), agreement=None, annotator=None, votes=())


def with_judge_probability(groups: Iterable[Group], judge: Judge) -> Iterator[Group]:
    """Add to each pair that a judge's scores made what the judge says of the two together.

    A pointwise judge's P is that of its rewards. Any other judge has compared all responses of
    a prompt with one another to score them, so that one with a store is asked nothing new.

    Args:
        groups: Built pairs.
        judge: Whose scores they have, where they name a judge.

    Yields:
        The groups, in order; P is unknown where the judge is undecided.
    """
    rest = iter(groups)
    while chunk := list(islice(rest, _PAIRS_AT_ONCE)):
        unknown = [
            built
            for group in chunk
            for built in group
            if built.judge and built.pair.judge_probability is None
        ]
        pairs = [built.pair for built in unknown]
        numbers = (
            # Its rewards are the scores. As floats, no score is NaN: nothing can be said of it.
            np.array([(pair.score_chosen, pair.score_rejected) for pair in pairs], dtype=float)
            if judge.pointwise
            else _numbers(pairs, judge)
        )
        known = {
            id(built): replace(
                built, pair=replace(built.pair, judge_probability=judgment.probability)
            )
            for built, (judgment, *_) in zip(unknown, _judgments(numbers, judge), strict=True)
            if judgment.status == "decided"
        }
        for group in chunk:
            yield [known.get(id(built), built) for built in group]


# Rewards of both sides, or P(chosen ≻ rejected) and 1 - P; NaN if unreadable. [pairs, 2].
def _numbers(pairs: Iterable[Pair], judge: Judge) -> Numbers:
    # Two float64 a pair instead of a list of Judgments: 16 bytes, so that a judge's word on
    # millions of pairs fits into memory.
    numbers, rest = array("d"), iter(pairs)
    while chunk := list(islice(rest, _PAIRS_AT_ONCE)):
        comparisons = [comparison_of(pair) for pair in chunk]
        if judge.pointwise:
            numbers.extend(
                score_all(judge, [(c.prompt, text) for c in comparisons for text in (c.a, c.b)])
            )
        else:
            decided = (
                judgment.probability if judgment.status == "decided" else math.nan
                for judgment in compare_all(judge, comparisons, part=True)
            )
            numbers.extend(number for p in decided for number in (p, 1.0 - p))
    return np.frombuffer(numbers).reshape(-1, 2) if numbers else np.zeros((0, 2))


# With the scores of both sides.
def _judgments(numbers: Numbers, judge: Judge) -> Iterator[tuple[Judgment, float, float]]:
    for first, second in (row.tolist() for row in numbers):
        of_rewards = judge.pointwise or math.isnan(first)
        yield judgment_of_rewards(first, second) if of_rewards else Judgment(first), first, second


# Of each method: why a pair is left out whose judgment is undecided, and whose is a tie.
_REASONS = {
    "relabel": ("pair without a readable judgment", "pair that the judge finds equal"),
    "preference-divergence": (
        *("pair that the aspects disagree about", "pair whose aspects cancel out"),
    ),
}


# Pairs as they were labelled, their judgments and gaps: each decided one as it is judged.
def _labelled(
    judged: Iterable[tuple[Pair, Judgment, float]], *, method: str, judge: str, account: Account
) -> Iterator[Group]:
    undecided, equal = _REASONS[method]
    for pair, judgment, gap in judged:
        account.prompts += 1
        lean = judgment.probability - _HALF
        if not account.passes(
            pair.prompt_id, {undecided: judgment.status == "undecided", equal: lean == 0}
        ):
            continue
        flip = lean < 0
        if method == "relabel":
            account.figures["labels_kept"] += int(not flip)
        account.figures["labels_flipped"] += int(flip)
        account.pairs += 1
        made = exchanged(pair) if flip else pair
        yield [Built(made, method, method, gap=gap, judge=judge, label_flipped=flip)]


def aspect_margins(pairs: Iterable[Pair], judges: Mapping[str, Judge]) -> Numbers:
    """How far each aspect's judge prefers the chosen response.

    Args:
        pairs: The pairs, read once a judge.
        judges: One an aspect. A pointwise judge gives the difference of rewards, any other
            the log-odds of P, with P kept within [1e-6, 1 - 1e-6].

    Returns:
        The margins; positive where the judge prefers chosen. [pairs, aspects].
    """
    margins = []
    for judge in judges.values():
        first, second = _numbers(pairs, judge).T
        # A judge that is certain would outweigh every other aspect with an infinite margin; one
        # that gave no readable answer has no opinion.
        p = np.clip(np.nan_to_num(first, nan=_HALF), 1e-6, 1 - 1e-6)
        margins.append(first - second if judge.pointwise else np.log(p) - np.log1p(-p))
    return np.stack(margins, 1)


def preference_divergence(margins: Numbers) -> Numbers:
    """How far the aspects contradict each other about each pair; negative where they agree.

    With z_k the margin of aspect k over its root mean square and s_k its sign,
    ``PD = -1/(M(M-1)) Σ_k Σ_{j≠k} s_k z_j``: what the other aspects say against each one.
    Where all agree it is minus the mean of |z|. Exchanging a pair's sides changes nothing.

    Args:
        margins: As of `aspect_margins`. [pairs, aspects], at least two aspects, finite.

    Returns:
        PD. [pairs].

    Raises:
        InputError: If there are fewer than two aspects, or a margin is not finite.

    Source:
        Zhang et al. 2025, arXiv:2508.07638: the pairs of most negative divergence are kept.
        This estimate of the term from rewards is ours.
    """
    finite = np.isfinite(margins).all()
    InputError.unless(
        margins.ndim == _TWO and margins.shape[1] >= _TWO and finite,
        saw=f"margins of shape {margins.shape}"
        + ("" if finite else " with values that are no finite numbers"),
        expected="a finite margin of each pair for at least two aspects",
        cure="name two or more judges under aspects",
    )
    z, aspects = _standardised(margins), margins.shape[1]
    signs = np.sign(z)
    # Σ_k Σ_{j≠k} s_k z_j as the whole double sum without its diagonal: no loop over aspects.
    total = signs.sum(1) * z.sum(1) - (signs * z).sum(1)
    return np.asarray(-total / (aspects * (aspects - 1)))


def least_divergent(
    pairs: Iterable[Pair],
    margins: Numbers,
    *,
    share: float,
    judge_name: str,
    account: Account,
    accept_reversal: bool = False,
) -> Iterator[Group]:
    """Keep the share of pairs with the most negative divergence, labelled by the aspects.

    Args:
        pairs: The pairs, in the order of `margins`; read twice.
        margins: As of `aspect_margins`. [pairs, aspects].
        share: How many to keep, ⌊share·N⌋, in (0, 1].
        judge_name: Names the aspects' judges.
        account: Counts what was read, flipped and left out; gets the `reversal`.
        accept_reversal: Whether any share of reversed labels is accepted.

    Returns:
        Each kept pair by itself, its sides exchanged where the aspects' sum says so; the
        pair's `gap` is the absolute sum of the margins over their root mean squares.

    Raises:
        InputError: If more than 40 % of the kept labels are reversed, and that is not accepted.
    """
    divergence = preference_divergence(margins)
    count = int(np.floor(share * len(divergence) + 1e-9))
    kept = np.zeros(len(divergence), dtype=bool)
    kept[np.argsort(divergence, kind="stable")[:count]] = True
    # What is not kept is as if the aspects had given no readable judgment.
    sums = np.where(kept, _standardised(margins).sum(1), math.nan)
    account.figures |= {
        "divergence_kept_below": float(divergence[kept].max()) if count else None,
        "divergence_mean": float(divergence.mean()) if len(divergence) else None,
    }

    def judged() -> Iterator[tuple[Pair, Judgment, float]]:
        for pair, total in zip(pairs, map(float, sums), strict=True):
            yield pair, judgment_of_rewards(total, 0.0), abs(total)

    account.reversal = reversal_of(
        (pair, judgment) for pair, judgment, _ in judged() if judgment.status == "decided"
    )
    check_reversal(account.reversal, accepted=accept_reversal, judge=judge_name)
    bare = (
        (replace(without_raters(pair), score_chosen=None, score_rejected=None), judgment, gap)
        for pair, judgment, gap in judged()
    )
    return _labelled(bare, method="preference-divergence", judge=judge_name, account=account)


def _standardised(margins: Numbers) -> Numbers:
    # Over the root mean square, not the standard deviation: a margin of 0 must stay "no opinion".
    scale = np.sqrt((margins**2).mean(0)) if len(margins) else np.ones(margins.shape[1])
    return np.asarray(margins / np.where(scale > 0, scale, 1.0))


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
