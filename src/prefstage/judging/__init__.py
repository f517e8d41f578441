"""Who says which answer is better, and the store that never buys a judgment twice."""

from prefstage.judging.base import Comparison, Judge, Judgment, PointwiseJudge
from prefstage.judging.loading import load_judge
from prefstage.judging.store import JudgmentStore
from prefstage.judging.stored import stored

__all__ = [
    "Comparison",
    "Judge",
    "Judgment",
    "JudgmentStore",
    "PointwiseJudge",
    "load_judge",
    "stored",
]
