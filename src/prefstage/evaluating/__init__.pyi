# Public names, each imported on first use (read by lazy_loader in __init__.py).
from .answers import (
    Annotation as Annotation,
    Answer as Answer,
    Answers as Answers,
    answer_prompts as answer_prompts,
    load_answers as load_answers,
    read_annotations as read_annotations,
    read_prompt_numbers as read_prompt_numbers,
    write_annotations as write_annotations,
    write_model_outputs as write_model_outputs,
)
from .comparing import (
    CheckpointRates as CheckpointRates,
    CheckpointTable as CheckpointTable,
    Difference as Difference,
    compare_win_rates as compare_win_rates,
    rankings_against_win_rates as rankings_against_win_rates,
)
from .evaluation import evaluate as evaluate
from .leaderboards import (
    read_leaderboard as read_leaderboard,
    write_leaderboard as write_leaderboard,
)
from .mt_bench import (
    MtBench as MtBench,
    Question as Question,
    load_questions as load_questions,
    run_mt_bench as run_mt_bench,
)
from .settings import (
    EvaluateConfig as EvaluateConfig,
    EvaluateSettings as EvaluateSettings,
    MtBenchConfig as MtBenchConfig,
    WinRateConfig as WinRateConfig,
)
from .win_rates import (
    LengthControlledWinRate as LengthControlledWinRate,
    LengthWeights as LengthWeights,
    Rates as Rates,
    WinRate as WinRate,
    control_jointly as control_jointly,
    estimate_difficulty as estimate_difficulty,
    leaderboard_row as leaderboard_row,
    length_controlled_interval as length_controlled_interval,
    length_controlled_win_rate as length_controlled_win_rate,
    rates_of as rates_of,
    widened as widened,
    win_rate as win_rate,
)
