"""What is in a dataset of pairs, and what training on it could do: rankings, flips, judges."""

from typing import TYPE_CHECKING

from prefstage.core.exports import on_first_use

if TYPE_CHECKING:
    from prefstage.diagnosing.config import DiagnosisConfig
    from prefstage.diagnosing.diagnosis import Diagnosis, diagnose
    from prefstage.diagnosing.flips import (
        FLIP_GROUPS,
        LEARNABILITY_GROUPS,
        FlipGroup,
        IntraDiversity,
        at_threshold,
        dpo_losses,
        flip_groups,
        flip_threshold,
        fluctuation_range,
        intra_diversity,
        ipo_flip_threshold,
        largest_flippable,
        learnability_groups,
        reference_log_ratio,
        right_at_loss,
        summarise_flip_groups,
        threshold_violations,
    )
    from prefstage.diagnosing.numbers import Interval, bootstrap_interval
    from prefstage.diagnosing.rankings import (
        IdealizedAccuracy,
        alignment_gap,
        idealized_log_ratio,
        idealized_ranking_accuracy,
        mean_log_probs,
        order_accuracy,
        ranking_accuracy,
        ranking_accuracy_with_ties,
        reward_accuracy,
    )
    from prefstage.diagnosing.scoring import OrderFigures, ScoredBy, diagnose_orders

__all__ = [
    "FLIP_GROUPS",
    "LEARNABILITY_GROUPS",
    "Diagnosis",
    "DiagnosisConfig",
    "FlipGroup",
    "IdealizedAccuracy",
    "Interval",
    "IntraDiversity",
    "OrderFigures",
    "ScoredBy",
    "alignment_gap",
    "at_threshold",
    "bootstrap_interval",
    "diagnose",
    "diagnose_orders",
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
    "mean_log_probs",
    "order_accuracy",
    "ranking_accuracy",
    "ranking_accuracy_with_ties",
    "reference_log_ratio",
    "reward_accuracy",
    "right_at_loss",
    "summarise_flip_groups",
    "threshold_violations",
]

# Import what works on tensors on first use: the settings alone must not load torch.
__getattr__, __dir__ = on_first_use(
    __name__,
    {
        "config": "DiagnosisConfig",
        "diagnosis": "Diagnosis diagnose",
        "flips": (
            "FLIP_GROUPS LEARNABILITY_GROUPS FlipGroup IntraDiversity at_threshold dpo_losses "
            "flip_groups flip_threshold fluctuation_range intra_diversity ipo_flip_threshold "
            "largest_flippable learnability_groups reference_log_ratio right_at_loss "
            "summarise_flip_groups threshold_violations"
        ),
        "numbers": "Interval bootstrap_interval",
        "rankings": (
            "IdealizedAccuracy alignment_gap idealized_log_ratio idealized_ranking_accuracy "
            "mean_log_probs order_accuracy ranking_accuracy ranking_accuracy_with_ties "
            "reward_accuracy"
        ),
        "scoring": "OrderFigures ScoredBy diagnose_orders",
    },
)
