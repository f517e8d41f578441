"""How often a judge agrees with a dataset's labels."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from prefstage.data.records import Pair
from prefstage.judging.base import Judgment
from prefstage.judging.texts import content_of

_Z_95 = 1.959963984540054


@dataclass(frozen=True)
class LabelAgreement:
    """A judge's judgments of labelled pairs, summed up.

    Attributes:
        pairs: Pairs judged.
        label_ties: Pairs that the dataset calls a tie; they count for nothing below.
        judge_ties: Of the others, those with P = ½ although decided; they count half.
        undecided: Of the others, those without a readable judgment; they count half.
        agreement: Share of labelled pairs where P(chosen ≻ rejected) > ½, in [0, 1]; NaN
            without labelled pairs.
        interval: 95 % Wilson interval of the agreement.
        longer_wins: What the rule "the longer response is better" would reach, in [0, 1].
        prefers_longer: Share of labelled pairs of unequal length (in characters) where the
            judge prefers the longer response, in [0, 1].
    """

    pairs: int
    label_ties: int
    judge_ties: int
    undecided: int
    agreement: float
    interval: tuple[float, float]
    longer_wins: float
    prefers_longer: float

    def as_dict(self) -> dict[str, Any]:
        """JSON-serialisable; unknown shares are null."""
        values = {**asdict(self), "interval": list(self.interval)}
        return {name: _null_if_nan(value) for name, value in values.items()}


def agreement_with_labels(pairs: Sequence[Pair], judgments: Sequence[Judgment]) -> LabelAgreement:
    """Compare judgments P(chosen ≻ rejected) with the labels of their pairs.

    Args:
        pairs: The labelled pairs; an `agreement` of ½ is a tie.
        judgments: One a pair, in order.

    Returns:
        The counts, the agreement with its interval, and what length alone explains.

    Source:
        Interval: Wilson 1927, JASA 22(158); pairs taken as independent.
    """
    labelled = [
        (pair, judgment)
        for pair, judgment in zip(pairs, judgments, strict=True)
        if pair.agreement != TIE_AGREEMENT
    ]
    votes = [_vote(judgment.probability - 0.5) for _, judgment in labelled]
    longer = [_vote(_length_gap(pair)) for pair, _ in labelled]
    undecided = sum(judgment.status == "undecided" for _, judgment in labelled)
    agreement = _mean(votes)
    return LabelAgreement(
        pairs=len(pairs),
        label_ties=len(pairs) - len(labelled),
        judge_ties=votes.count(_TIE_VOTE) - undecided,
        undecided=undecided,
        agreement=agreement,
        interval=wilson_interval(agreement, len(votes)),
        longer_wins=_mean(longer),
        prefers_longer=_mean(
            [
                vote if long else 1.0 - vote
                for vote, long in zip(votes, longer, strict=True)
                if long != _TIE_VOTE
            ]
        ),
    )


def wilson_interval(share: float, count: int, *, z: float = _Z_95) -> tuple[float, float]:
    """Wilson's score interval of a share.

    ``(p + z²/2n ± z·√(p(1-p)/n + z²/4n²)) / (1 + z²/n)``

    Args:
        share: Observed share p, in [0, 1].
        count: Number of observations n.
        z: Standard normal quantile; the default gives 95 %.

    Returns:
        (low, high) in [0, 1]; (0, 1) without observations.

    Source:
        Wilson 1927, Journal of the American Statistical Association 22(158):209-212.
    """
    if count == 0:
        return 0.0, 1.0
    spread = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    middle, scale = share + z * z / (2 * count), 1 + z * z / count
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)


TIE_AGREEMENT = 0.5
_TIE_VOTE = 0.5


def _vote(difference: float) -> float:
    return _TIE_VOTE if difference == 0 else float(difference > 0)


def _length_gap(pair: Pair) -> int:
    chosen, rejected = (
        sum(len(content_of(m)) for m in side) for side in (pair.chosen, pair.rejected)
    )
    return chosen - rejected


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def _null_if_nan(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value
