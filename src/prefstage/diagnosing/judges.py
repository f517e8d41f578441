"""What judges say of pairs: agreement with labels, with each other, with the policy."""

import random
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from prefstage.core.hashing import seed_for
from prefstage.data.records import Candidates, Pair
from prefstage.data.storage import Numbers
from prefstage.diagnosing.numbers import HALF, cohens_kappa, describe, verdicts
from prefstage.judging.base import (
    Comparison,
    Judge,
    Judgment,
    judgment_of_rewards,
)
from prefstage.judging.judged import (
    agreement_with_labels,
    compare_all,
    comparison_of,
    score_all,
    wilson_interval,
)


def judge_figures(pairs: Sequence[Pair], judge: Judge) -> tuple[dict[str, Any], Numbers]:
    """Ask a judge about every pair; what scores responses scores every different one once.

    Args:
        pairs: The pairs, ties included.
        judge: The judge.

    Returns:
        The figures, and P(chosen ≻ rejected) of each pair. [pairs]. Figures: `judge`, its name;
        `agreement`, as `agreement_with_labels` counts, over pairs that are no ties; `kappa`,
        Cohen's κ of judge and labels over all pairs, ties a category of their own;
        `position_bias`, the share of comparisons whose two orders prefer the same position, None
        where every response is scored by itself or the judge does not tell; `position_note`, why
        it is None; `scores`, of a judge that scores responses by themselves, the distribution of
        its scores of the chosen and of the rejected responses, and of their gap (Table 5), else
        empty.
    """
    before = _order_dependent(judge)
    judgments, scores = _judged(judge, [comparison_of(pair) for pair in pairs])
    after = _order_dependent(judge)
    probabilities = np.array([judgment.probability for judgment in judgments])
    labels = np.array([HALF if pair.agreement == HALF else 1.0 for pair in pairs])
    bias, note = None, None
    if judge.pointwise:
        note = "scores each response by itself: no place to prefer"
    elif before is None or after is None:
        note = "this judge does not tell its orders apart"
    else:
        # The counts are of the judge's whole life: the difference is what these pairs added.
        bias = (after - before) / len(pairs)
    figures = {
        "judge": judge.name,
        "agreement": agreement_with_labels(pairs, judgments).as_dict(),
        "kappa": cohens_kappa(labels, verdicts(probabilities)),
        "position_bias": bias,
        "position_note": note,
        "scores": scores,
    }
    return figures, probabilities


def _judged(
    judge: Judge, comparisons: Sequence[Comparison]
) -> tuple[list[Judgment], dict[str, dict[str, Any]]]:
    if not judge.pointwise:
        return compare_all(judge, comparisons), {}
    items = {(c.prompt_id, text): (c.prompt, text) for c in comparisons for text in (c.a, c.b)}
    rewards = dict(zip(items, score_all(judge, list(items.values())), strict=True))
    chosen = np.array([rewards[c.prompt_id, c.a] for c in comparisons])
    rejected = np.array([rewards[c.prompt_id, c.b] for c in comparisons])
    judgments = [judgment_of_rewards(a, b) for a, b in zip(chosen, rejected, strict=True)]
    sides = {"chosen": chosen, "rejected": rejected, "gap": chosen - rejected}
    return judgments, {
        name: asdict(describe(values[np.isfinite(values)])) for name, values in sides.items()
    }


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
    # Log-probs of whole responses are hundreds of nats apart: exp would overflow at 709.
    return np.asarray(1.0 / (1.0 + np.exp(np.clip(rejected - chosen, -700, 700))))


def answer_quality(
    answers: Sequence[Candidates], pairs: Sequence[Pair], judge: Judge, *, seed: int
) -> dict[str, Any]:
    """How a random answer of the policy fares against the responses of the pairs.

    Args:
        answers: Set A, the policy's answers, by prompt.
        pairs: Set B; of a prompt with several pairs one is drawn.
        judge: The judge.
        seed: Of the draws.

    Returns:
        `prompts` in common; `win_rate` of A over the chosen responses (ties half) with its 95 %
        Wilson `interval`; `boundary_score`, the share of comparisons that A wins against both
        responses of the pair (one answer against two: `prefstage measure` decides the stage);
        and `longer_wins`, how often the longer of answer and chosen response wins.

    Source:
        arXiv:2508.10530, App. B.5 and Algorithm 1.
    """
    responses = {row.prompt_id: row.responses for row in answers if row.responses}
    several: dict[str, list[Pair]] = {}
    for pair in pairs:
        if pair.prompt_id in responses:
            several.setdefault(pair.prompt_id, []).append(pair)
    against: tuple[list[Comparison], list[Comparison]] = ([], [])
    for prompt_id, theirs in several.items():
        draw = random.Random(seed_for(seed, "answer-quality", prompt_id))
        answer = draw.choice(responses[prompt_id])
        both = comparison_of(draw.choice(theirs))
        for comparisons, text in zip(against, (both.a, both.b), strict=True):
            comparisons.append(Comparison(prompt_id, both.prompt, answer, text))
    count = len(several)
    if not count:
        names = ("win_rate", "interval", "boundary_score", "longer_wins")
        return {"prompts": 0, **dict.fromkeys(names)}
    judged = compare_all(judge, [*against[0], *against[1]])
    votes = verdicts(np.array([judgment.probability for judgment in judged]))
    apart = np.array([len(comparison.a) - len(comparison.b) for comparison in against[0]])
    longer = np.where(apart > 0, votes[:count], 1 - votes[:count])[apart != 0]
    win_rate = float(votes[:count].mean())
    return {
        "prompts": count,
        "win_rate": win_rate,
        "interval": list(wilson_interval(win_rate, count)),
        "boundary_score": float(votes.mean()),
        "longer_wins": float(longer.mean()) if len(longer) else None,
    }


def _order_dependent(judge: Judge) -> int | None:
    counts = judge.counts
    return counts.get("order_dependent")
