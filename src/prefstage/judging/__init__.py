"""Who says which answer is better; with a ledger, no judgment is bought twice."""

from typing import TYPE_CHECKING

from prefstage.core.exports import on_first_use

if TYPE_CHECKING:
    from prefstage.judging.base import Comparison, Judge, Judgment
    from prefstage.judging.judged import stored
    from prefstage.judging.loading import as_judge, load_judge
    from prefstage.judging.verdicts import JudgeConfig, Judged, JudgeSettings, judge

__all__ = [
    "Comparison",
    "Judge",
    "JudgeConfig",
    "JudgeSettings",
    "Judged",
    "Judgment",
    "as_judge",
    "judge",
    "load_judge",
    "stored",
]

# Import on first use: what compares needs arrays, what reads settings does not.
__getattr__, __dir__ = on_first_use(
    __name__,
    {
        "base": "Comparison Judge Judgment",
        "judged": "stored",
        "loading": "as_judge load_judge",
        "verdicts": "JudgeConfig JudgeSettings Judged judge",
    },
)
