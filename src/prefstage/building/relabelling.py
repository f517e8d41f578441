"""Pairs judged again: whole pairs, a judge's labels, and what several aspects agree about."""

import math
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np

from prefstage.building.account import Account, Reversal, check_reversal
from prefstage.building.built import Built, Group
from prefstage.core.errors import InputError
from prefstage.data.records import Pair
from prefstage.judging.base import (
    UNDECIDED,
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
        if not all(any(map(_says, side)) for side in (pair.chosen, pair.rejected)):
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


def _says(message: object) -> bool:
    return isinstance(message, dict) and bool(
        content_of(message).strip() or message.get("tool_calls")
    )


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
    verdicts = _Verdicts(rows, judge)
    account.reversal = verdicts.reversal(rows)
    check_reversal(account.reversal.as_dict(), accepted=accept_reversal, judge=judge.name)
    return _groups(rows, verdicts, judge=judge.name, account=account)


def measure_reversal(pairs: Iterable[Pair], judge: Judge) -> Reversal:
    """Measure how often a judge reverses the labels of pairs.

    Args:
        pairs: The pairs as they are labelled.
        judge: Who is asked.

    Returns:
        The counts, with the share and its interval.
    """
    rows = list(pairs) if isinstance(pairs, Iterator) else pairs
    return _Verdicts(rows, judge).reversal(rows)


def reversal_of(judged: Iterable[tuple[Pair, Judgment]]) -> Reversal:
    """Count what judgments say of labels.

    Args:
        judged: Pairs and their judgments P(chosen ≻ rejected).

    Returns:
        The counts.
    """
    counts = dict.fromkeys(("kept", "reversed", "equal", "unreadable", "unlabelled"), 0)
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
        judgments = _judgments_of([built.pair for built in unknown], judge)
        known = {
            id(built): replace(
                built, pair=replace(built.pair, judge_probability=judgment.probability)
            )
            for built, judgment in zip(unknown, judgments, strict=True)
            if judgment.status == "decided"
        }
        for group in chunk:
            yield [known.get(id(built), built) for built in group]


def _judgments_of(pairs: list[Pair], judge: Judge) -> list[Judgment]:
    if not judge.pointwise:
        return compare_all(judge, [comparison_of(pair) for pair in pairs])
    scores = [(pair.score_chosen, pair.score_rejected) for pair in pairs]
    return [UNDECIDED if None in both else judgment_of_rewards(*both) for both in scores]  # type: ignore[arg-type]  # both known


class _Verdicts:
    """What a judge says of pairs: rewards of both sides, or P(chosen ≻ rejected) and 1 - P."""

    def __init__(self, pairs: Iterable[Pair], judge: Judge) -> None:
        self._pointwise = judge.pointwise
        # Two float64 a pair instead of a list of Judgments: 16 bytes, so that a judge's word on
        # millions of pairs fits into memory.
        self._numbers = array("d")
        rest = whole_pairs(pairs, Account())  # counted where the pairs are read again
        while chunk := list(islice(rest, _PAIRS_AT_ONCE)):
            comparisons = [comparison_of(pair) for pair in chunk]
            if judge.pointwise:
                texts = [(c.prompt, text) for c in comparisons for text in (c.a, c.b)]
                self._numbers.extend(score_all(judge, texts))
                continue
            for judgment in compare_all(judge, comparisons):
                p = judgment.probability if judgment.status == "decided" else math.nan
                self._numbers.extend((p, 1.0 - p))

    def __getitem__(self, index: int) -> tuple[Judgment, tuple[float, float]]:
        """The judgment and the scores of a pair."""
        first, second = self._numbers[2 * index], self._numbers[2 * index + 1]
        if self._pointwise or math.isnan(first):  # NaN: no readable judgment
            return judgment_of_rewards(first, second), (first, second)
        return Judgment(first), (first, second)

    def reversal(self, pairs: Iterable[Pair]) -> Reversal:
        """How often the judge reverses the labels of the pairs."""
        rows = enumerate(whole_pairs(pairs, Account()))
        return reversal_of((pair, self[index][0]) for index, pair in rows)


def _groups(
    pairs: Iterable[Pair], verdicts: _Verdicts, *, judge: str, account: Account
) -> Iterator[Group]:
    for index, pair in enumerate(whole_pairs(pairs, account)):
        judgment, scores = verdicts[index]
        account.prompts += 1
        if judgment.status == "undecided" or judgment.probability == _HALF:
            undecided = judgment.status == "undecided"
            reason = "without a readable judgment" if undecided else "that the judge finds equal"
            account.skip(f"pair {reason}", pair.prompt_id)
            continue
        flip = judgment.probability < _HALF
        account.add("labels_kept", int(not flip))
        account.add("labels_flipped", int(flip))
        account.pairs += 1
        made = replace(
            without_raters(pair),
            score_chosen=scores[0],
            score_rejected=scores[1],
            judge_probability=judgment.probability,
        )
        made = exchanged(made) if flip else made
        gap = abs(scores[0] - scores[1])
        yield [Built(made, "relabel", "relabel", gap=gap, judge=judge, label_flipped=flip)]


def aspect_margins(pairs: Iterable[Pair], judges: Mapping[str, Judge]) -> Numbers:
    """How far each aspect's judge prefers the chosen response.

    Args:
        pairs: The pairs.
        judges: One an aspect. A pointwise judge gives the difference of rewards, any other
            the log-odds of P, with P kept within [1e-6, 1 - 1e-6].

    Returns:
        The margins; positive where the judge prefers chosen. [pairs, aspects].
    """
    rest, parts = iter(pairs), list[Numbers]()
    while chunk := list(islice(rest, _PAIRS_AT_ONCE)):
        parts.append(np.stack([_margins(chunk, judge) for judge in judges.values()], 1))
    return np.concatenate(parts) if parts else np.zeros((0, len(judges)))


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
    rows: Sequence[Pair] | Iterable[Pair] = list(pairs) if isinstance(pairs, Iterator) else pairs
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
        flip = bool(total < 0)
        account.add("labels_flipped", int(flip))
        account.pairs += 1
        made = without_raters(exchanged(pair) if flip else pair)
        made = replace(made, score_chosen=None, score_rejected=None)
        name = "preference-divergence"
        yield [Built(made, name, name, gap=abs(float(total)), judge=judge_name, label_flipped=flip)]


def _standardised(margins: Numbers) -> Numbers:
    # Over the root mean square, not the standard deviation: a margin of 0 must stay "no opinion".
    scale = np.sqrt((margins**2).mean(0)) if len(margins) else np.ones(margins.shape[1])
    z: Numbers = margins / np.where(scale > 0, scale, 1.0)
    return z


def _margins(pairs: list[Pair], judge: Judge) -> Numbers:
    comparisons = [comparison_of(pair) for pair in pairs]
    if judge.pointwise:
        items = [(c.prompt, text) for c in comparisons for text in (c.a, c.b)]
        rewards = np.array(score_all(judge, items))
        return np.asarray(rewards[::2] - rewards[1::2])
    p = np.array([judgment.probability for judgment in compare_all(judge, comparisons)])
    # A judge that is certain would outweigh every other aspect with an infinite margin.
    clipped = np.clip(p, 1e-6, 1 - 1e-6)
    return np.asarray(np.log(clipped) - np.log1p(-clipped))
