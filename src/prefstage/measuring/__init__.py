"""Which stage is a policy in? Votes, the sequential test, and how far the answer can be trusted."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefstage.measuring.boundary import (
        Boundary,
        JudgedPrompt,
        PromptVotes,
        algorithm_1_verdict,
        boundary_score,
        count_votes,
    )
    from prefstage.measuring.measure import Reading, measure_stage
    from prefstage.measuring.reliability import (
        ScoreSummary,
        call_reliability,
        chance_above_half,
        distinctness,
        measure_distinctness,
    )
    from prefstage.measuring.sequential import ConfidenceSequence, log_capital, rejection_step
    from prefstage.measuring.settings import MeasureConfig, MeasureSettings, run_measurement
    from prefstage.measuring.stage import Stage, summarise

_MODULES = {
    "boundary": (
        *("Boundary", "JudgedPrompt", "PromptVotes"),
        *("algorithm_1_verdict", "boundary_score", "count_votes"),
    ),
    "measure": ("Reading", "measure_stage"),
    "reliability": (
        *("ScoreSummary", "call_reliability", "chance_above_half"),
        *("distinctness", "measure_distinctness"),
    ),
    "sequential": ("ConfidenceSequence", "log_capital", "rejection_step"),
    "settings": ("MeasureConfig", "MeasureSettings", "run_measurement"),
    "stage": ("Stage", "summarise"),
}

__all__ = [
    "Boundary",
    "ConfidenceSequence",
    "JudgedPrompt",
    "MeasureConfig",
    "MeasureSettings",
    "PromptVotes",
    "Reading",
    "ScoreSummary",
    "Stage",
    "algorithm_1_verdict",
    "boundary_score",
    "call_reliability",
    "chance_above_half",
    "count_votes",
    "distinctness",
    "log_capital",
    "measure_distinctness",
    "measure_stage",
    "rejection_step",
    "run_measurement",
    "summarise",
]


def __getattr__(name: str) -> Any:
    """Import on first use: the settings alone, which every help text needs, load no arrays."""
    module = next((module for module, names in _MODULES.items() if name in names), None)
    if module is None:
        raise AttributeError(f"module 'prefstage.measuring' has no attribute {name!r}")
    return getattr(import_module(f"prefstage.measuring.{module}"), name)


def __dir__() -> list[str]:
    """List the public names."""
    return list(__all__)
