"""Which stage is a policy in? Votes, the sequential test, and how far the answer can be trusted."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from prefstage.measuring.boundary import (
    Boundary,
    JudgedPrompt,
    PromptVotes,
    algorithm_1_verdict,
    boundary_score,
    count_votes,
)
from prefstage.measuring.measure import Reading, measure_stage
from prefstage.measuring.sequential import ConfidenceSequence, log_capital, rejection_step
from prefstage.measuring.stage import MeasureConfig, Stage, summarise

if TYPE_CHECKING:
    from prefstage.measuring.reliability import (
        ScoreSummary,
        call_reliability,
        chance_above_half,
        distinctness,
        measure_distinctness,
    )

_RELIABILITY = (
    *("ScoreSummary", "call_reliability", "chance_above_half"),
    *("distinctness", "measure_distinctness"),
)

__all__ = [
    "Boundary",
    "ConfidenceSequence",
    "JudgedPrompt",
    "MeasureConfig",
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
    "summarise",
]


def __getattr__(name: str) -> Any:
    """Import what needs scipy on first use: most measurements go without."""
    if name not in _RELIABILITY:
        raise AttributeError(f"module 'prefstage.measuring' has no attribute {name!r}")
    return getattr(import_module("prefstage.measuring.reliability"), name)


def __dir__() -> list[str]:
    """List the public names."""
    return list(__all__)
