"""How good is the policy: win rates one can trust, and benchmarks that users expect."""

from typing import TYPE_CHECKING

from prefstage.core.exports import on_first_use

if TYPE_CHECKING:
    from prefstage.evaluating.alpaca_files import (
        Annotation,
        read_annotations,
        read_leaderboard,
        read_prompt_numbers,
        write_annotations,
        write_leaderboard,
    )
    from prefstage.evaluating.answers import (
        Answer,
        Answers,
        answer_prompts,
        load_answers,
        write_model_outputs,
    )
    from prefstage.evaluating.comparing import (
        CheckpointRates,
        CheckpointTable,
        Difference,
        compare_win_rates,
        rankings_against_win_rates,
    )
    from prefstage.evaluating.difficulty import (
        absorbed_shares,
        control_jointly,
        estimate_difficulty,
    )
    from prefstage.evaluating.evaluation import evaluate
    from prefstage.evaluating.length_controlled import (
        LengthControlledWinRate,
        LengthWeights,
        leaderboard_row,
        length_controlled_win_rate,
    )
    from prefstage.evaluating.length_interval import length_controlled_interval, widened
    from prefstage.evaluating.mt_bench import MtBench, Question, load_questions, run_mt_bench
    from prefstage.evaluating.rates import Rates, rates_of
    from prefstage.evaluating.settings import (
        EvaluateConfig,
        EvaluateSettings,
        MtBenchConfig,
        WinRateConfig,
    )
    from prefstage.evaluating.win_rates import JudgedAnswer, WinRate, win_rate

__all__ = [
    "Annotation",
    "Answer",
    "Answers",
    "CheckpointRates",
    "CheckpointTable",
    "Difference",
    "EvaluateConfig",
    "EvaluateSettings",
    "JudgedAnswer",
    "LengthControlledWinRate",
    "LengthWeights",
    "MtBench",
    "MtBenchConfig",
    "Question",
    "Rates",
    "WinRate",
    "WinRateConfig",
    "absorbed_shares",
    "answer_prompts",
    "compare_win_rates",
    "control_jointly",
    "estimate_difficulty",
    "evaluate",
    "leaderboard_row",
    "length_controlled_interval",
    "length_controlled_win_rate",
    "load_answers",
    "load_questions",
    "rankings_against_win_rates",
    "rates_of",
    "read_annotations",
    "read_leaderboard",
    "read_prompt_numbers",
    "run_mt_bench",
    "widened",
    "win_rate",
    "write_annotations",
    "write_leaderboard",
    "write_model_outputs",
]

# Import on first use: the settings alone, which help texts need, load no arrays.
__getattr__, __dir__ = on_first_use(
    __name__,
    {
        "alpaca_files": (
            "Annotation read_annotations read_leaderboard read_prompt_numbers write_annotations "
            "write_leaderboard"
        ),
        "answers": "Answer Answers answer_prompts load_answers write_model_outputs",
        "comparing": (
            "CheckpointRates CheckpointTable Difference compare_win_rates "
            "rankings_against_win_rates"
        ),
        "difficulty": "absorbed_shares control_jointly estimate_difficulty",
        "evaluation": "evaluate",
        "length_controlled": (
            "LengthControlledWinRate LengthWeights leaderboard_row length_controlled_win_rate"
        ),
        "length_interval": "length_controlled_interval widened",
        "mt_bench": "MtBench Question load_questions run_mt_bench",
        "rates": "Rates rates_of",
        "settings": "EvaluateConfig EvaluateSettings MtBenchConfig WinRateConfig",
        "win_rates": "JudgedAnswer WinRate win_rate",
    },
)
