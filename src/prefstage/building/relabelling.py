"""Pairs judged again: whole pairs, a judge's labels, and what several aspects agree about."""

import math
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np

from prefstage.building.account import Account, Built, Group, Reversal, check_reversal
from prefstage.core import InputError
from prefstage.data.records import Pair
from prefstage.judging.base import (
    Judge,
    Judgment,
    content_of,
    judgment_of_rewards,
)
from prefstage.judging.judged import TIE_AGREEMENT, compare_all, comparison_of, score_all

_PAIRS_AT_ONCE = 512
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
        scores = (pair.score_chosen, pair.score_rejected)
        sides = (pair.chosen, pair.rejected)
        says = [
            any(
                isinstance(m, dict) and (content_of(m).strip() or m.get("tool_calls")) for m in side
            )
            for side in sides
        ]
        if not all(says):
            reason = "pair without one of its sides"
        elif pair.chosen == pair.rejected:
            reason = "pair with the same text on both sides"
        elif any(score is not None and not math.isfinite(score) for score in scores):
            reason = "pair whose score is no finite number"
        else:
            yield pair
            continue
        account.prompts += 1
        account.skip(reason, pair.prompt_id)


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
    check_reversal(account.reversal.as_dict(), accepted=accept_reversal, judge=judge.name)
    return _groups(rows, numbers, judge, account)


def measure_reversal(pairs: Iterable[Pair], judge: Judge) -> tuple[Reversal, Numbers]:
    """Measure how often a judge reverses the labels of pairs.

    Args:
        pairs: The pairs as they are labelled; they are read twice.
        judge: Who is asked.

    Returns:
        The counts; the rewards of both sides of each whole pair, or P(chosen ≻ rejected) and
        1 - P, NaN if unreadable. [pairs, 2].
    """
    numbers = _numbers(whole_pairs(pairs, Account()), judge)  # counted where they are read again
    judged = zip(whole_pairs(pairs, Account()), _judgments(numbers, judge), strict=True)
    return reversal_of((pair, judgment) for pair, (judgment, *_) in judged), numbers


def reversal_of(judged: Iterable[tuple[Pair, Judgment]]) -> Reversal:
    """Count what judgments say of labels.

    Args:
        judged: Pairs and their judgments P(chosen ≻ rejected).

    Returns:
        The counts.
    """
    counts: Counter[str] = Counter()
    for pair, judgment in judged:
        if pair.agreement == TIE_AGREEMENT:
            counts["unlabelled"] += 1
        elif judgment.status == "undecided":
            counts["unreadable"] += 1
        elif judgment.probability == _HALF:
            counts["equal"] += 1
        else:
            counts["reversed" if judgment.probability < _HALF else "kept"] += 1
    return Reversal(**counts)


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
        known = {
            id(built): replace(
                built, pair=replace(built.pair, judge_probability=judgment.probability)
            )
            for built, judgment in zip(
                unknown, _judgments_of([built.pair for built in unknown], judge), strict=True
            )
            if judgment.status == "decided"
        }
        for group in chunk:
            yield [known.get(id(built), built) for built in group]


def _judgments_of(pairs: list[Pair], judge: Judge) -> list[Judgment]:
    if not judge.pointwise:
        return compare_all(judge, [comparison_of(pair) for pair in pairs])
    scores = [(pair.score_chosen, pair.score_rejected) for pair in pairs]
    # As floats, no score is NaN, of which nothing can be said.
    return [judgment_of_rewards(*both) for both in np.array(scores, dtype=float).tolist()]


def _numbers(pairs: Iterable[Pair], judge: Judge) -> Numbers:
    """Rewards of both sides, or P(chosen ≻ rejected) and 1 - P; NaN if unreadable. [pairs, 2]."""
    # Two float64 a pair instead of a list of Judgments: 16 bytes, so that a judge's word on
    # millions of pairs fits into memory.
    numbers, rest = array("d"), iter(pairs)
    while chunk := list(islice(rest, _PAIRS_AT_ONCE)):
        comparisons = [comparison_of(pair) for pair in chunk]
        if judge.pointwise:
            numbers.extend(
                score_all(judge, [(c.prompt, text) for c in comparisons for text in (c.a, c.b)])
            )
            continue
        for judgment in compare_all(judge, comparisons):
            p = judgment.probability if judgment.status == "decided" else math.nan
            numbers.extend((p, 1.0 - p))
    return np.frombuffer(numbers).reshape(-1, 2) if numbers else np.zeros((0, 2))


def _judgments(numbers: Numbers, judge: Judge) -> Iterator[tuple[Judgment, float, float]]:
    """With the scores of both sides."""
    for first, second in (row.tolist() for row in numbers):
        of_rewards = judge.pointwise or math.isnan(first)
        judgment = judgment_of_rewards(first, second) if of_rewards else Judgment(first)
        yield judgment, first, second


def _groups(
    pairs: Iterable[Pair], numbers: Numbers, judge: Judge, account: Account
) -> Iterator[Group]:
    for pair, (judgment, chosen, rejected) in zip(
        whole_pairs(pairs, account), _judgments(numbers, judge), strict=True
    ):
        account.prompts += 1
        if judgment.status == "undecided" or judgment.probability == _HALF:
            undecided = judgment.status == "undecided"
            reason = "without a readable judgment" if undecided else "that the judge finds equal"
            account.skip(f"pair {reason}", pair.prompt_id)
            continue
        flip = judgment.probability < _HALF
        account.add("labels_kept", int(not flip))
        made = replace(
            without_raters(pair),
            score_chosen=chosen,
            score_rejected=rejected,
            judge_probability=judgment.probability,
        )
        gap = abs(chosen - rejected)
        yield [_labelled(made, account, flip=flip, method="relabel", gap=gap, judge=judge.name)]


def _labelled(
    pair: Pair, account: Account, *, flip: bool, method: str, gap: float, judge: str
) -> Built:
    account.add("labels_flipped", int(flip))
    account.pairs += 1
    made = exchanged(pair) if flip else pair
    return Built(made, method, method, gap=gap, judge=judge, label_flipped=flip)


def aspect_margins(pairs: Iterable[Pair], judges: Mapping[str, Judge]) -> Numbers:
    """How far each aspect's judge prefers the chosen response.

    Args:
        pairs: The pairs.
        judges: One an aspect. A pointwise judge gives the difference of rewards, any other
            the log-odds of P, with P kept within [1e-6, 1 - 1e-6].

    Returns:
        The margins; positive where the judge prefers chosen. [pairs, aspects].
    """
    rows = list(pairs) if isinstance(pairs, Iterator) else pairs
    margins = []
    for judge in judges.values():
        first, second = _numbers(rows, judge).T
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
    if margins.ndim != _TWO or margins.shape[1] < _TWO or not np.isfinite(margins).all():
        raise InputError.of(
            saw=f"margins of shape {margins.shape}"
            + ("" if np.isfinite(margins).all() else " with values that are no finite numbers"),
            expected="a finite margin of each pair for at least two aspects",
            cure="name two or more judges under aspects",
        )
    z, aspects = _standardised(margins), margins.shape[1]
    signs = np.sign(z)
    # Σ_k Σ_{j≠k} s_k z_j as the whole double sum without its diagonal: no loop over aspects.
    total = signs.sum(1) * z.sum(1) - (signs * z).sum(1)
    result: Numbers = -total / (aspects * (aspects - 1))
    return result


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
        pairs: The pairs, in the order of `margins`.
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
    sums = _standardised(margins).sum(1)
    account.figures |= {
        "divergence_kept_below": float(divergence[kept].max()) if count else None,
        "divergence_mean": float(divergence.mean()) if len(divergence) else None,
    }
    rows = list(pairs) if isinstance(pairs, Iterator) else pairs
    account.reversal = reversal_of(
        (pair, judgment_of_rewards(float(total), 0.0))
        for pair, keep, total in zip(rows, kept, sums, strict=True)
        if keep
    )
    check_reversal(account.reversal.as_dict(), accepted=accept_reversal, judge=judge_name)
    return _kept(zip(rows, kept, sums, strict=True), judge_name=judge_name, account=account)


def _kept(
    judged: Iterable[tuple[Pair, Any, Any]], *, judge_name: str, account: Account
) -> Iterator[Group]:
    for pair, keep, total in judged:
        account.prompts += 1
        if not keep or total == 0:
            why = "that the aspects disagree about" if not keep else "whose aspects cancel out"
            account.skip(f"pair {why}", pair.prompt_id)
            continue
        yield [
            _labelled(
                replace(without_raters(pair), score_chosen=None, score_rejected=None),
                account,
                flip=bool(total < 0),
                method="preference-divergence",
                gap=abs(float(total)),
                judge=judge_name,
            )
        ]


def _standardised(margins: Numbers) -> Numbers:
    # Over the root mean square, not the standard deviation: a margin of 0 must stay "no opinion".
    scale = np.sqrt((margins**2).mean(0)) if len(margins) else np.ones(margins.shape[1])
    z: Numbers = margins / np.where(scale > 0, scale, 1.0)
    return z
