"""Which stage is the policy in, and what do models make of pairs? Votes and rankings."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

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
from prefstage.measuring.reliability import ScoreSummary, call_reliability, chance_above_half
from prefstage.measuring.sequential import ConfidenceSequence, log_capital, rejection_step
from prefstage.measuring.stage import Stage
from prefstage.measuring.summary import summarise

if TYPE_CHECKING:
    from prefstage.measuring.bootstrap import Interval as Interval
    from prefstage.measuring.bootstrap import bootstrap_interval as bootstrap_interval
    from prefstage.measuring.diagnosis import Diagnosis as Diagnosis
    from prefstage.measuring.diagnosis import diagnose as diagnose
    from prefstage.measuring.diagnosis_config import DiagnosisConfig as DiagnosisConfig
    from prefstage.measuring.diagnosis_orders import OrderFigures as OrderFigures
    from prefstage.measuring.diagnosis_orders import diagnose_orders as diagnose_orders
    from prefstage.measuring.diagnosis_scoring import ScoredBy as ScoredBy
    from prefstage.measuring.diversity import IntraDiversity as IntraDiversity
    from prefstage.measuring.diversity import fluctuation_range as fluctuation_range
    from prefstage.measuring.diversity import intra_diversity as intra_diversity
    from prefstage.measuring.flips import FLIP_GROUPS as FLIP_GROUPS
    from prefstage.measuring.flips import FlipGroup as FlipGroup
    from prefstage.measuring.flips import at_threshold as at_threshold
    from prefstage.measuring.flips import dpo_losses as dpo_losses
    from prefstage.measuring.flips import flip_groups as flip_groups
    from prefstage.measuring.flips import flip_threshold as flip_threshold
    from prefstage.measuring.flips import ipo_flip_threshold as ipo_flip_threshold
    from prefstage.measuring.flips import largest_flippable as largest_flippable
    from prefstage.measuring.flips import reference_log_ratio as reference_log_ratio
    from prefstage.measuring.flips import summarise_flip_groups as summarise_flip_groups
    from prefstage.measuring.flips import threshold_violations as threshold_violations
    from prefstage.measuring.idealized import IdealizedAccuracy as IdealizedAccuracy
    from prefstage.measuring.idealized import alignment_gap as alignment_gap
    from prefstage.measuring.idealized import idealized_log_ratio as idealized_log_ratio
    from prefstage.measuring.idealized import (
        idealized_ranking_accuracy as idealized_ranking_accuracy,
    )
    from prefstage.measuring.learnability import LEARNABILITY_GROUPS as LEARNABILITY_GROUPS
    from prefstage.measuring.learnability import learnability_groups as learnability_groups
    from prefstage.measuring.learnability import right_at_loss as right_at_loss
    from prefstage.measuring.rankings import mean_log_probs as mean_log_probs
    from prefstage.measuring.rankings import order_accuracy as order_accuracy
    from prefstage.measuring.rankings import ranking_accuracy as ranking_accuracy
    from prefstage.measuring.rankings import (
        ranking_accuracy_with_ties as ranking_accuracy_with_ties,
    )
    from prefstage.measuring.rankings import reward_accuracy as reward_accuracy

_HOMES = {
    "Diagnosis": "diagnosis",
    "DiagnosisConfig": "diagnosis_config",
    "FLIP_GROUPS": "flips",
    "FlipGroup": "flips",
    "IdealizedAccuracy": "idealized",
    "Interval": "bootstrap",
    "IntraDiversity": "diversity",
    "LEARNABILITY_GROUPS": "learnability",
    "ScoredBy": "diagnosis_scoring",
    "alignment_gap": "idealized",
    "at_threshold": "flips",
    "bootstrap_interval": "bootstrap",
    "diagnose": "diagnosis",
    "diagnose_orders": "diagnosis_orders",
    "OrderFigures": "diagnosis_orders",
    "dpo_losses": "flips",
    "flip_groups": "flips",
    "flip_threshold": "flips",
    "fluctuation_range": "diversity",
    "idealized_log_ratio": "idealized",
    "idealized_ranking_accuracy": "idealized",
    "intra_diversity": "diversity",
    "ipo_flip_threshold": "flips",
    "largest_flippable": "flips",
    "learnability_groups": "learnability",
    "mean_log_probs": "rankings",
    "order_accuracy": "rankings",
    "ranking_accuracy": "rankings",
    "ranking_accuracy_with_ties": "rankings",
    "reference_log_ratio": "flips",
    "reward_accuracy": "rankings",
    "right_at_loss": "learnability",
    "summarise_flip_groups": "flips",
    "threshold_violations": "flips",
}

__all__ = [
    "FLIP_GROUPS",
    "LEARNABILITY_GROUPS",
    "Boundary",
    "ConfidenceSequence",
    "Diagnosis",
    "DiagnosisConfig",
    "FlipGroup",
    "IdealizedAccuracy",
    "Interval",
    "IntraDiversity",
    "MeasureConfig",
    "Measurement",
    "OrderFigures",
    "PromptVotes",
    "Reading",
    "ScoreSummary",
    "ScoredBy",
    "Stage",
    "algorithm_1_verdict",
    "alignment_gap",
    "at_threshold",
    "bootstrap_interval",
    "boundary_score",
    "call_reliability",
    "chance_above_half",
    "count_votes",
    "diagnose",
    "diagnose_orders",
    "distinctness",
    "dpo_losses",
    "flip_groups",
    "flip_threshold",
    "fluctuation_range",
    "idealized_log_ratio",
    "idealized_ranking_accuracy",
    "intra_diversity",
    "ipo_flip_threshold",
    "largest_flippable",
    "learnability_groups",
    "log_capital",
    "mean_log_probs",
    "measure",
    "measure_distinctness",
    "measure_stage",
    "order_accuracy",
    "ranking_accuracy",
    "ranking_accuracy_with_ties",
    "reference_log_ratio",
    "rejection_step",
    "reward_accuracy",
    "right_at_loss",
    "summarise",
    "summarise_flip_groups",
    "threshold_violations",
]


def __getattr__(name: str) -> Any:
    """Import what works on tensors on first use: votes alone must not load torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'prefstage.measuring' has no attribute {name!r}")
    return getattr(import_module(f"prefstage.measuring.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    """List the public names."""
    return list(__all__)
