"""Answer quality: how a random answer of one set fares against the chosen answer of another."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from prefstage.data.records import Candidates, Pair
from prefstage.diagnosing.config import DiagnosisConfig
from prefstage.diagnosing.numbers import verdicts
from prefstage.judging.base import Comparison, Judge
from prefstage.judging.judged import compare_all, comparison_of
from prefstage.measuring.boundary import prompt_order
from prefstage.measuring.length_controlled import FEWEST_CONTROLLED
from prefstage.measuring.length_interval import controlled_rate
from prefstage.measuring.rates import rates_of
from prefstage.measuring.responses import drawn_one

_FIGURES = (
    *("win_rate", "interval", "length_controlled_win_rate", "length_controlled_interval"),
    *("wins_over_both", "longer_wins"),
)


def answer_quality(
    answers: Sequence[Candidates], pairs: Sequence[Pair], judge: Judge, config: DiagnosisConfig
) -> dict[str, Any]:
    """How a random answer of the policy fares against the responses of the pairs.

    The win rates are those of ``prefstage evaluate --answers ANSWERS#random --baseline
    PAIRS#chosen`` with the same judge and seed, as shares.

    Args:
        answers: Set A, the policy's answers, by prompt.
        pairs: Set B; of a prompt with several pairs one is drawn.
        judge: The judge.
        config: Seed of the draws; confidence, resamples and seed of the intervals.

    Returns:
        `prompts` in common and how many were `undecided`; `win_rate` of A over the chosen
        responses, the mean preference, with its `interval`; the same at equal lengths,
        `length_controlled_win_rate` and `length_controlled_interval` (None of fewer than 30
        verdicts, or where the fit's penalty leaves nothing of them); `wins_over_both`, the share
        of comparisons with both responses of the pair that A wins, ties half (one answer against
        one pair: no boundary score, which `measure_stage` has); and `longer_wins`, how often the
        longer of answer and chosen response wins. None without prompts in common; intervals also
        with fewer than two verdicts.

    Source:
        arXiv:2508.10530, App. B.5.
    """
    responses = {row.prompt_id: row.responses for row in answers if row.responses}
    several: dict[str, list[Pair]] = {}
    for pair in (pair for pair in pairs if pair.prompt_id in responses):
        several.setdefault(pair.prompt_id, []).append(pair)
    figures: dict[str, Any] = {"prompts": len(several), "undecided": 0, **dict.fromkeys(_FIGURES)}
    if not several:
        return figures
    chosen, rejected = list[Comparison](), list[Comparison]()
    # As an evaluation takes them, so that its intervals are drawn alike.
    for prompt_id in prompt_order(list(several), seed=config.seed):
        answer = drawn_one(responses[prompt_id], prompt_id, seed=config.seed)
        both = comparison_of(drawn_one(several[prompt_id], prompt_id, seed=config.seed))
        chosen.append(Comparison(prompt_id, both.prompt, answer, both.a))
        rejected.append(Comparison(prompt_id, both.prompt, answer, both.b))
    judgments = compare_all(judge, [*chosen, *rejected])
    votes = verdicts(np.array([judgment.probability for judgment in judgments]))
    ours, theirs = (np.array([len(getattr(c, side)) for c in chosen]) for side in ("a", "b"))
    first, apart = votes[: len(chosen)], ours - theirs
    longer = np.where(apart > 0, first, 1 - first)[apart != 0]
    preferences = np.array(
        [
            np.nan if judgment.status == "undecided" else judgment.probability
            for judgment in judgments[: len(chosen)]
        ]
    )
    known = int((~np.isnan(preferences)).sum())
    figures |= {
        "undecided": len(chosen) - known,
        "win_rate": float(np.nanmean(preferences)) if known else None,
        "wins_over_both": float(votes.mean()),
        "longer_wins": float(longer.mean()) if len(longer) else None,
    }
    if known > 1:
        figures["interval"] = _shares(rates_of(preferences, **config.bootstrap).interval)
    if known >= FEWEST_CONTROLLED:
        rate, interval = controlled_rate(
            preferences, ours, theirs, regularise=False, **config.bootstrap
        )
        if any(vars(rate.weights).values()):
            figures["length_controlled_win_rate"] = rate.length_controlled_win_rate / 100
            figures["length_controlled_interval"] = _shares(interval)
    return figures


def _shares(percent: tuple[float, float]) -> list[float]:
    return [end / 100 for end in percent]
