# Public names, each imported on first use (read by lazy_loader in __init__.py).
from .boundary import (
    Boundary as Boundary,
    ConfidenceSequence as ConfidenceSequence,
    JudgedPrompt as JudgedPrompt,
    PromptVotes as PromptVotes,
    algorithm_1_verdict as algorithm_1_verdict,
    boundary_score as boundary_score,
    count_votes as count_votes,
    log_capital as log_capital,
    rejection_step as rejection_step,
)
from .measure import (
    Reading as Reading,
    measure_stage as measure_stage,
    run_measurement as run_measurement,
)
from .reliability import (
    ScoreSummary as ScoreSummary,
    call_reliability as call_reliability,
    chance_above_half as chance_above_half,
    consistency as consistency,
    distinctness as distinctness,
    measure_distinctness as measure_distinctness,
    score_sides as score_sides,
)
from .settings import MeasureConfig as MeasureConfig, MeasureSettings as MeasureSettings
from .stage import Stage as Stage, summarise as summarise
from .track_record import TrackRecord as TrackRecord, track_record as track_record
