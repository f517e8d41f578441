"""Which stage is the policy in? Algorithm 1 and its sequential test."""

from prefstage.measuring.boundary import (
    Boundary,
    PromptVotes,
    algorithm_1_verdict,
    boundary_score,
    count_votes,
)
from prefstage.measuring.config import MeasureConfig
from prefstage.measuring.distinctness import distinctness, measure_distinctness
from prefstage.measuring.loop import Reading
from prefstage.measuring.measure import Measurement, measure, measure_stage
from prefstage.measuring.sequential import ConfidenceSequence, log_capital, rejection_step
from prefstage.measuring.stage import Stage
from prefstage.measuring.summary import summarise

__all__ = [
    "Boundary",
    "ConfidenceSequence",
    "MeasureConfig",
    "Measurement",
    "PromptVotes",
    "Reading",
    "Stage",
    "algorithm_1_verdict",
    "boundary_score",
    "count_votes",
    "distinctness",
    "log_capital",
    "measure",
    "measure_distinctness",
    "measure_stage",
    "rejection_step",
    "summarise",
]
