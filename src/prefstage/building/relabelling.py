"""Pairs judged again: what a judge says of labels that others gave."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice

from prefstage.building.account import Account
from prefstage.building.built import Built, Group
from prefstage.building.whole import whole_pairs
from prefstage.data.records import Pair
from prefstage.judging.base import Judge, Judgment, PointwiseJudge, judgment_of_rewards
from prefstage.judging.running import compare_all, comparison_of, score_all

_PAIRS_AT_ONCE = 512
_HALF = 0.5


def relabelled(pairs: Iterable[Pair], judge: Judge, *, account: Account) -> Iterator[Group]:
    """Let a judge say which response of each pair is the chosen one.

    A pointwise judge's rewards become the scores; any other judge's P(chosen ≻ rejected) and
    its complement do. Pairs that it finds equal, or gives no readable answer to, are left
    out and counted. Votes of raters (`agreement`) do not outlive their labels.

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
            yield [_relabelled(pair, scores, flip=flip, judge=judge.name)]


def exchanged(pair: Pair) -> Pair:
    """The pair with its two sides exchanged, scores and sources with them; no agreement."""
    return replace(
        pair,
        chosen=pair.rejected,
        rejected=pair.chosen,
        score_chosen=pair.score_rejected,
        score_rejected=pair.score_chosen,
        source_chosen=pair.source_rejected,
        source_rejected=pair.source_chosen,
        agreement=None,
    )


def _judged(pairs: list[Pair], judge: Judge) -> list[tuple[Judgment, tuple[float, float]]]:
    comparisons = [comparison_of(pair) for pair in pairs]
    if not isinstance(judge, PointwiseJudge):
        found = compare_all(judge, comparisons)
        return [(each, (each.probability, 1.0 - each.probability)) for each in found]
    rewards = iter(score_all(judge, [(c.prompt, text) for c in comparisons for text in (c.a, c.b)]))
    scores = [(next(rewards), next(rewards)) for _ in comparisons]
    return [(judgment_of_rewards(*each), each) for each in scores]


def _relabelled(pair: Pair, scores: tuple[float, float], *, flip: bool, judge: str) -> Built:
    scored = replace(pair, score_chosen=scores[0], score_rejected=scores[1], agreement=None)
    made = exchanged(scored) if flip else scored
    gap = abs(scores[0] - scores[1])
    return Built(made, "relabel", "relabel", gap=gap, judge=judge, label_flipped=flip)
