"""What is in a dataset of pairs, and what training on it could do: rankings, flips, judges."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

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

_MODULES = {
    "config": ("DiagnosisConfig",),
    "diagnosis": ("Diagnosis", "diagnose"),
    "numbers": ("Interval", "bootstrap_interval"),
    "scoring": ("OrderFigures", "ScoredBy", "diagnose_orders"),
    "rankings": (
        *("IdealizedAccuracy", "alignment_gap", "idealized_log_ratio"),
        *("idealized_ranking_accuracy", "mean_log_probs", "order_accuracy"),
        *("ranking_accuracy", "ranking_accuracy_with_ties", "reward_accuracy"),
    ),
}


def __getattr__(name: str) -> Any:
    """Import what works on tensors on first use: the settings alone must not load torch."""
    if name not in __all__:
        raise AttributeError(f"module 'prefstage.diagnosing' has no attribute {name!r}")
    module = next((module for module, names in _MODULES.items() if name in names), "flips")
    return getattr(import_module(f"prefstage.diagnosing.{module}"), name)


def __dir__() -> list[str]:
    """List the public names."""
    return list(__all__)
