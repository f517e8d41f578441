"""Which stage is a policy in? Votes, the sequential test, and how far the answer can be trusted."""

from typing import TYPE_CHECKING

from prefstage.core.exports import on_first_use

if TYPE_CHECKING:
    from prefstage.measuring.boundary import (
        Boundary,
        JudgedPrompt,
        PromptVotes,
        algorithm_1_verdict,
        boundary_score,
        count_votes,
    )
    from prefstage.measuring.measure import Reading, measure_stage, run_measurement
    from prefstage.measuring.reliability import (
        ScoreSummary,
        call_reliability,
        chance_above_half,
        distinctness,
        measure_distinctness,
    )
    from prefstage.measuring.sequential import ConfidenceSequence, log_capital, rejection_step
    from prefstage.measuring.settings import MeasureConfig, MeasureSettings
    from prefstage.measuring.stage import Stage, summarise

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

# Import on first use: the settings alone, which every help text needs, load no arrays.
__getattr__, __dir__ = on_first_use(
    __name__,
    {
        "boundary": (
            "Boundary JudgedPrompt PromptVotes algorithm_1_verdict boundary_score count_votes"
        ),
        "measure": "Reading measure_stage run_measurement",
        "reliability": (
            "ScoreSummary call_reliability chance_above_half distinctness measure_distinctness"
        ),
        "sequential": "ConfidenceSequence log_capital rejection_step",
        "settings": "MeasureConfig MeasureSettings",
        "stage": "Stage summarise",
    },
)
