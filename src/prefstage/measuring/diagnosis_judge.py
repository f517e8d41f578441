"""What judges say of pairs: agreement with labels, with each other, with the policy."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from prefstage.core.seeds import seed_for
from prefstage.data.records import Candidates, Pair
from prefstage.judging.agreement import agreement_with_labels
from prefstage.judging.base import Comparison, CountingJudge, Judge, Judgment, PointwiseJudge
from prefstage.judging.running import compare_all, comparison_of
from prefstage.measuring.diagnosis_numbers import Numbers, cohens_kappa, verdicts

HALF = 0.5


@dataclass(frozen=True)
class JudgeFigures:
    """A judge against the labels.

    Attributes:
        judge: Its name.
        agreement: As `agreement_with_labels` counts, over pairs that are no ties.
        kappa: Cohen's κ of judge and labels over all pairs, ties a category of their own.
        position_bias: Share of comparisons whose two orders prefer the same place; None
            where every response is scored by itself (no place to prefer) or the judge does
            not tell.
        position_note: Why it is None.
        probabilities: P(chosen ≻ rejected) of each pair; not in reports.
    """

    judge: str
    agreement: dict[str, Any]
    kappa: float | None
    position_bias: float | None
    position_note: str | None
    probabilities: Numbers


def judge_figures(pairs: Sequence[Pair], judge: Judge) -> JudgeFigures:
    """Ask a judge about every pair.

    Args:
        pairs: The pairs, ties included.
        judge: The judge.

    Returns:
        The figures.
    """
    before = _order_dependent(judge)
    judgments = compare_all(judge, [comparison_of(pair) for pair in pairs])
    after = _order_dependent(judge)
    found = np.array([each.probability for each in judgments])
    labels = np.array([HALF if pair.agreement == HALF else 1.0 for pair in pairs])
    bias, note = None, None
    if isinstance(judge, PointwiseJudge):
        note = "scores each response by itself: no place to prefer"
    elif before is None or after is None:
        note = "this judge does not tell its orders apart"
    else:
        bias = (after - before) / len(pairs)
    return JudgeFigures(
        judge=judge.name,
        agreement=agreement_with_labels(pairs, judgments).as_dict(),
        kappa=cohens_kappa(labels, verdicts(found)),
        position_bias=bias,
        position_note=note,
        probabilities=found,
    )


def preference_consistency(first: Numbers, second: Numbers) -> float:
    """How often two preferences order a pair alike.

    ``E[1(P1(y1 ≻ y2) > ½) XNOR 1(P2(y1 ≻ y2) > ½)]``

    Args:
        first: P1, or anything that is positive beyond ½ where y1 is preferred. [pairs].
        second: P2. [pairs].

    Returns:
        The share, in [0, 1].

    Source:
        arXiv:2508.10530, Definition 5.5; a policy's P_θ is σ(log π(y1|x) - log π(y2|x)),
        Eq. 10.
    """
    return float(((first > HALF) == (second > HALF)).mean())


def policy_preference(chosen: Numbers, rejected: Numbers) -> Numbers:
    """P_θ(y_w ≻ y_l | x) = σ(log π(y_w|x) - log π(y_l|x)).

    Args:
        chosen: log π(y_w|x). [pairs], nats.
        rejected: log π(y_l|x). [pairs], nats.

    Returns:
        The probabilities. [pairs].

    Source:
        arXiv:2508.10530, Eq. 10.
    """
    return np.asarray(1.0 / (1.0 + np.exp(np.clip(rejected - chosen, -700, 700))))


def answer_quality(
    own: Sequence[Candidates], pairs: Sequence[Pair], judge: Judge, *, seed: int
) -> dict[str, Any]:
    """How a random own answer fares against the chosen response of the pairs.

    Args:
        own: Answers of set A (the policy's), by prompt.
        pairs: Set B; of a prompt with several pairs one is drawn.
        judge: The judge.
        seed: Of the draws.

    Returns:
        Prompts in common, win rate of A (ties half), and how often the longer of the two
        answers wins.

    Source:
        arXiv:2508.10530, App. B.5.
    """
    answers = {row.prompt_id: row for row in own if row.responses}
    chosen: dict[str, list[Pair]] = {}
    for pair in pairs:
        if pair.prompt_id in answers:
            chosen.setdefault(pair.prompt_id, []).append(pair)
    comparisons = []
    for prompt_id, several in chosen.items():
        draw = random.Random(seed_for(seed, "answer-quality", prompt_id))
        mine = draw.choice(answers[prompt_id].responses)
        theirs = comparison_of(draw.choice(several)).a
        comparisons.append(Comparison(prompt_id, several[0].prompt, mine, theirs))
    if not comparisons:
        return {"prompts": 0, "win_rate": None, "longer_wins": None}
    found = verdicts(_probabilities(compare_all(judge, comparisons)))
    apart = np.array([len(each.a) - len(each.b) for each in comparisons])
    longer = np.where(apart > 0, found, 1 - found)[apart != 0]
    return {
        "prompts": len(comparisons),
        "win_rate": float(found.mean()),
        "longer_wins": float(longer.mean()) if len(longer) else None,
    }


def _probabilities(judgments: Sequence[Judgment]) -> Numbers:
    return np.array([each.probability for each in judgments])


def _order_dependent(judge: Judge) -> int | None:
    counts = judge.counts if isinstance(judge, CountingJudge) else {}
    return counts.get("order_dependent")
