# Public names, each imported on first use (read by lazy_loader in __init__.py).
from .config import DiagnosisConfig as DiagnosisConfig
from .diagnosis import Diagnosis as Diagnosis, diagnose as diagnose
from .flips import (
    FLIP_GROUPS as FLIP_GROUPS,
    LEARNABILITY_GROUPS as LEARNABILITY_GROUPS,
    FlipGroup as FlipGroup,
    IntraDiversity as IntraDiversity,
    at_threshold as at_threshold,
    dpo_losses as dpo_losses,
    flip_groups as flip_groups,
    flip_threshold as flip_threshold,
    fluctuation_range as fluctuation_range,
    intra_diversity as intra_diversity,
    ipo_flip_threshold as ipo_flip_threshold,
    largest_flippable as largest_flippable,
    learnability_groups as learnability_groups,
    reference_log_ratio as reference_log_ratio,
    right_at_loss as right_at_loss,
    summarise_flip_groups as summarise_flip_groups,
    threshold_violations as threshold_violations,
)
from .numbers import Interval as Interval, bootstrap_interval as bootstrap_interval
from .rankings import (
    IdealizedAccuracy as IdealizedAccuracy,
    alignment_gap as alignment_gap,
    idealized_log_ratio as idealized_log_ratio,
    idealized_ranking_accuracy as idealized_ranking_accuracy,
    mean_log_probs as mean_log_probs,
    order_accuracy as order_accuracy,
    ranking_accuracy as ranking_accuracy,
    ranking_accuracy_with_ties as ranking_accuracy_with_ties,
    reward_accuracy as reward_accuracy,
)
from .scoring import (
    OrderFigures as OrderFigures,
    ScoredBy as ScoredBy,
    diagnose_orders as diagnose_orders,
)
