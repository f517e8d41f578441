"""Pairs judged again: what a judge says of labels that others gave."""

import math
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice

from prefstage.building.account import Account
from prefstage.building.built import Built, Group
from prefstage.building.reversal import Reversal, check_reversal
from prefstage.building.whole import whole_pairs
from prefstage.data.records import Pair
from prefstage.judging.agreement import TIE_AGREEMENT
from prefstage.judging.base import (
    UNDECIDED,
    Judge,
    Judgment,
    PointwiseJudge,
    judgment_of_rewards,
)
from prefstage.judging.running import compare_all, comparison_of, score_all

_PAIRS_AT_ONCE = 512
_HALF = 0.5


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
    scores = _scores(rows, judge)
    verdicts = _Verdicts(scores, pointwise=isinstance(judge, PointwiseJudge))
    account.reversal = _reversal(rows, verdicts)
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
    verdicts = _Verdicts(_scores(rows, judge), pointwise=isinstance(judge, PointwiseJudge))
    return _reversal(rows, verdicts)


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
    """Tell of each pair that a judge's scores made what the judge says of the two together.

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
        open_ = [
            b for group in chunk for b in group if b.judge and b.pair.judge_probability is None
        ]
        judgments = _judgments_of([built.pair for built in open_], judge)
        known = {
            id(built): replace(built, pair=replace(built.pair, judge_probability=each.probability))
            for built, each in zip(open_, judgments, strict=True)
            if each.status == "decided"
        }
        for group in chunk:
            yield [known.get(id(built), built) for built in group]


def _judgments_of(pairs: list[Pair], judge: Judge) -> list[Judgment]:
    if not isinstance(judge, PointwiseJudge):
        return compare_all(judge, [comparison_of(pair) for pair in pairs])
    scores = [(pair.score_chosen, pair.score_rejected) for pair in pairs]
    return [UNDECIDED if None in each else judgment_of_rewards(*each) for each in scores]  # type: ignore[arg-type]  # both known


class _Verdicts:
    """Two numbers a pair, so that a judge's word on millions of pairs fits into memory."""

    def __init__(self, numbers: Sequence[float], *, pointwise: bool) -> None:
        self._numbers = numbers
        self._pointwise = pointwise

    def __getitem__(self, place: int) -> tuple[Judgment, tuple[float, float]]:
        """The judgment and the scores of a pair."""
        first, second = self._numbers[2 * place], self._numbers[2 * place + 1]
        if self._pointwise or math.isnan(first):  # NaN: no readable judgment
            return judgment_of_rewards(first, second), (first, second)
        return Judgment(first), (first, second)


def _scores(pairs: Iterable[Pair], judge: Judge) -> "array[float]":
    """Rewards of both sides, or P(chosen ≻ rejected) and its complement, pair after pair."""
    numbers = array("d")
    rest = whole_pairs(pairs, Account())  # counted where the pairs are read again
    while chunk := list(islice(rest, _PAIRS_AT_ONCE)):
        comparisons = [comparison_of(pair) for pair in chunk]
        if isinstance(judge, PointwiseJudge):
            texts = [(c.prompt, text) for c in comparisons for text in (c.a, c.b)]
            numbers.extend(score_all(judge, texts))
            continue
        for judgment in compare_all(judge, comparisons):
            readable = judgment.status == "decided"
            p = judgment.probability if readable else math.nan
            numbers.extend((p, 1.0 - p))
    return numbers


def _reversal(pairs: Iterable[Pair], verdicts: _Verdicts) -> Reversal:
    rows = enumerate(whole_pairs(pairs, Account()))
    return reversal_of((pair, verdicts[place][0]) for place, pair in rows)


def _groups(
    pairs: Iterable[Pair], verdicts: _Verdicts, *, judge: str, account: Account
) -> Iterator[Group]:
    for place, pair in enumerate(whole_pairs(pairs, account)):
        judgment, scores = verdicts[place]
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
        yield [_relabelled(pair, scores, judgment.probability, judge=judge)]


def _relabelled(
    pair: Pair, scores: tuple[float, float], probability: float, *, judge: str
) -> Built:
    scored = replace(
        without_raters(pair),
        score_chosen=scores[0],
        score_rejected=scores[1],
        judge_probability=probability,
    )
    flip = probability < _HALF
    made = exchanged(scored) if flip else scored
    gap = abs(scores[0] - scores[1])
    return Built(made, "relabel", "relabel", gap=gap, judge=judge, label_flipped=flip)
