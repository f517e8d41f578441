# Public names, each imported on first use (read by lazy_loader in __init__.py).
from .answers import (
    Annotation as Annotation,
    Answer as Answer,
    Answers as Answers,
    answer_prompts as answer_prompts,
    load_answers as load_answers,
    read_annotations as read_annotations,
    read_leaderboard as read_leaderboard,
    read_prompt_numbers as read_prompt_numbers,
    write_annotations as write_annotations,
    write_leaderboard as write_leaderboard,
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
from .length_controlled import (
    LengthControlledWinRate as LengthControlledWinRate,
    LengthWeights as LengthWeights,
    leaderboard_row as leaderboard_row,
    length_controlled_win_rate as length_controlled_win_rate,
)
from .length_interval import (
    estimate_difficulty as estimate_difficulty,
    length_controlled_interval as length_controlled_interval,
    widened as widened,
)
from .mt_bench import (
    MtBench as MtBench,
    Question as Question,
    load_questions as load_questions,
    run_mt_bench as run_mt_bench,
)
from .rates import Rates as Rates, rates_of as rates_of
from .settings import (
    EvaluateConfig as EvaluateConfig,
    EvaluateSettings as EvaluateSettings,
    MtBenchConfig as MtBenchConfig,
    WinRateConfig as WinRateConfig,
)
from .win_rates import (
    WinRate as WinRate,
    control_jointly as control_jointly,
    win_rate as win_rate,
)
