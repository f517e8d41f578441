"""Who says which answer is better, and the store that never buys a judgment twice."""

from prefstage.judging.base import Comparison, Judge, Judgment, PointwiseJudge
from prefstage.judging.loading import load_judge

__all__ = ["Comparison", "Judge", "Judgment", "PointwiseJudge", "load_judge"]
