"""Pairs judged again: what a judge says of labels that others gave."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice

from prefstage.building.account import Account
from prefstage.building.built import Built, Group
from prefstage.building.whole import whole_pairs
from prefstage.data.records import Pair
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


def relabelled(pairs: Iterable[Pair], judge: Judge, *, account: Account) -> Iterator[Group]:
    """Let a judge say which response of each pair is the chosen one.

    A pointwise judge's rewards become the scores; any other judge's P(chosen ≻ rejected) and
    its complement do. Pairs that it finds equal, or gives no readable answer to, are left
    out and counted. What raters said (`agreement`, `annotator`, `votes`) does not outlive their
    labels; P(chosen ≻ rejected) of the judge takes its place.

    Args:
        pairs: The pairs as they are labelled.
        judge: Who labels them now.
        account: Counts what was read, flipped and left out.

    Yields:
        Each pair by itself, with `label_flipped`.

    Source:
        arXiv:2508.10530, App. B.2: off-policy pairs are relabelled by the judge that labels
        the on-policy ones.
    """
    rest = whole_pairs(pairs, account)
    while chunk := list(islice(rest, _PAIRS_AT_ONCE)):
        for pair, (judgment, scores) in zip(chunk, _judged(chunk, judge), strict=True):
            account.prompts += 1
            if judgment.status == "undecided" or judgment.probability == _HALF:
                undecided = judgment.status == "undecided"
                reason = (
                    "without a readable judgment" if undecided else "that the judge finds equal"
                )
                account.skip(f"pair {reason}", pair.prompt_id)
                continue
            flip = judgment.probability < _HALF
            account.add("labels_kept", int(not flip))
            account.add("labels_flipped", int(flip))
            account.pairs += 1
            probability = judgment.probability
            yield [_relabelled(pair, scores, probability, judge=judge.name)]


def without_raters(pair: Pair) -> Pair:
    """The pair without what raters (or an earlier judge) said of it."""
    return replace(pair, agreement=None, annotator=None, votes=(), judge_probability=None)


def exchanged(pair: Pair) -> Pair:
    """The pair with its two sides exchanged, scores and sources with them; without raters.

    A judge's probability is that of the new chosen response.
    """
    probability = pair.judge_probability
    return replace(
        without_raters(pair),
        chosen=pair.rejected,
        rejected=pair.chosen,
        score_chosen=pair.score_rejected,
        score_rejected=pair.score_chosen,
        source_chosen=pair.source_rejected,
        source_rejected=pair.source_chosen,
        judge_probability=None if probability is None else 1.0 - probability,
    )


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


def _judged(pairs: list[Pair], judge: Judge) -> list[tuple[Judgment, tuple[float, float]]]:
    comparisons = [comparison_of(pair) for pair in pairs]
    if not isinstance(judge, PointwiseJudge):
        found = compare_all(judge, comparisons)
        return [(each, (each.probability, 1.0 - each.probability)) for each in found]
    rewards = iter(score_all(judge, [(c.prompt, text) for c in comparisons for text in (c.a, c.b)]))
    scores = [(next(rewards), next(rewards)) for _ in comparisons]
    return [(judgment_of_rewards(*each), each) for each in scores]


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
