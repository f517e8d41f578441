"""What a model makes of pairs: rankings, what training can learn, intra-diversity."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from prefstage.data.records import Pair
from prefstage.data.storage import Numbers
from prefstage.data.tokenising import CAUSES
from prefstage.diagnosing.config import DiagnosisConfig
from prefstage.diagnosing.flips import (
    LEARNABILITY_GROUPS,
    flip_threshold,
    intra_diversity,
    largest_flippable,
    learnability_groups,
    reference_log_ratio,
    right_at_loss,
)
from prefstage.diagnosing.numbers import bootstrap_interval, describe, histogram
from prefstage.diagnosing.rankings import (
    TIE_SCALES,
    alignment_gap,
    idealized_ranking_accuracy,
    mean_log_probs,
    ranking_accuracy,
    ranking_accuracy_with_ties,
    reward_accuracy,
)
from prefstage.diagnosing.scoring import PairLogProbs
from prefstage.measuring.stage import excerpt_of

_EXCERPT = 100


def rankings_of(
    pairs: Sequence[Pair],
    policy: PairLogProbs,
    reference: PairLogProbs | None,
    config: DiagnosisConfig,
) -> dict[str, Any]:
    """How a policy orders pairs, and how its reference could have taught it to.

    Args:
        pairs: The pairs; an `agreement` of ½ is a tie.
        policy: Their log-probs under the policy.
        reference: Under its reference; None before training, when both are the same.
        config: β and intervals.

    Returns:
        `accuracy`: R with its interval, over pairs that are no ties and whose sides are
        different tokens, None without such pairs; `accuracy_normalised`: R̃ likewise;
        `with_ties`: accuracy over all pairs of different tokens where ties have to be ties, by
        scale, empty without ties; `reward_accuracy`: of the model against its reference, None
        without; `idealized`: R* and R̃* of the reference over β, and the alignment gaps, or why
        not; `intra_diversity`: mean, spread and quantiles of log π(y_w) - log π(y_l), nats;
        `tokens_scored` and `tokens_unique`: response tokens that went through the models, and
        different ones, the same number; `left_out`: pairs that R does not count, by why;
        `counts`: truncations and the like.
    """
    labelled = _labelled(pairs, policy)
    ids = np.array([pair.prompt_id for pair in pairs])
    chosen, rejected = _tensors(policy.chosen, policy.rejected)

    def mean(values: torch.Tensor, over: Numbers) -> dict[str, Any] | None:
        if not over.any():
            return None
        kept = values[torch.from_numpy(over)]
        return asdict(bootstrap_interval(kept, ids[over].tolist(), **config.bootstrap))

    ties = {}
    if any(pair.tied for pair in pairs):
        alpha = torch.tensor(
            [1.0 if pair.agreement is None else pair.agreement for pair in pairs],
            dtype=torch.double,
        )
        lengths = tuple(_tensors(policy.chosen_tokens, policy.rejected_tokens))
        for scale in TIE_SCALES:
            how: Any = {"scale": scale} | ({} if scale == "probability" else {"lengths": lengths})
            accuracy = ranking_accuracy_with_ties(chosen, rejected, alpha, **how)
            ties[scale] = mean(accuracy, ~policy.same_tokens) or {}
    rewards = None
    if reference is not None:
        gains = (policy.chosen - reference.chosen, policy.rejected - reference.rejected)
        rewards = mean(reward_accuracy(*_tensors(*gains)), labelled)
    scored = [policy] if reference is None else [policy, reference]
    left_out = {
        f"rankings: same tokens on both sides ({cause})": policy.counts.get(
            f"same_tokens_by_{cause}", 0
        )
        for cause in CAUSES
    }
    left_out["rankings: ties of the raters"] = sum(pair.tied for pair in pairs)
    return {
        "accuracy": mean(ranking_accuracy(chosen, rejected), labelled),
        "accuracy_normalised": mean(ranking_accuracy(*_means(policy)), labelled),
        "with_ties": ties,
        "reward_accuracy": rewards,
        "idealized": _idealized(pairs, policy, reference or policy),
        "intra_diversity": asdict(intra_diversity(chosen, rejected)),
        "tokens_scored": sum(model.tokens_scored for model in scored),
        "tokens_unique": sum(model.tokens_unique for model in scored),
        "left_out": {why: count for why, count in left_out.items() if count},
        "counts": policy.counts,
    }


def learnability_of(
    pairs: Sequence[Pair], reference: PairLogProbs, config: DiagnosisConfig
) -> dict[str, Any] | None:
    """Which pairs are hard, easy and easy to flip, and what a target loss would fix.

    Args:
        pairs: The pairs; those without a right order are left out, as R leaves them out.
        reference: Their log-probs under the model that training starts from.
        config: β, the target loss and the limits of the groups.

    Returns:
        None where no pair has a right order; otherwise `groups`: how many pairs are easy, easy
        to flip, between and hard; `wrong`: pairs that the reference orders wrongly (c > 0);
        `flippable_at_loss`: the target loss, c* that it overcomes, the share of wrong pairs it
        fixes, and the share of all pairs then right; `log_ratio`: distribution of
        c = log π_ref(y_l) - log π_ref(y_w), nats; `histogram`: its counts, the figure's data;
        `thresholds`: at those edges the DPO loss below which a pair is right; `examples`: of
        each group the pairs furthest into it, with c and the beginnings of their texts.

    Source:
        arXiv:2405.19534, Theorem 4.1 and App. F.
    """
    kept = _labelled(pairs, reference)
    if not kept.any():
        return None
    pairs = [pair for pair, keep in zip(pairs, kept, strict=True) if keep]
    ratio = reference_log_ratio(*_tensors(reference.chosen[kept], reference.rejected[kept]))
    limits = config.model_dump(include={"easy_below", "flip_below", "hard_above"})
    groups = learnability_groups(ratio, **limits).numpy()
    right = right_at_loss(ratio, loss=config.target_loss, beta=config.beta).numpy()
    c = ratio.numpy()
    wrong = c > 0
    shown = histogram(c)
    edges = torch.tensor(shown.edges, dtype=torch.float64)
    examples = {}
    for number, name in enumerate(LEARNABILITY_GROUPS):
        if name != "between":
            inside = np.flatnonzero(groups == number)
            order = inside[np.argsort(-c[inside] if name == "hard" else c[inside], kind="stable")]
            examples[name] = [_example(pairs[i], float(c[i])) for i in order[: config.examples]]
    return {
        "groups": {name: int((groups == n).sum()) for n, name in enumerate(LEARNABILITY_GROUPS)},
        "wrong": int(wrong.sum()),
        "flippable_at_loss": {
            "loss": config.target_loss,
            "beta": config.beta,
            "largest_log_ratio": largest_flippable(config.target_loss, beta=config.beta),
            "share_of_wrong": float(right[wrong].mean()) if wrong.any() else None,
            "share_right": float(right.mean()),
        },
        "log_ratio": asdict(describe(c)),
        "histogram": asdict(shown),
        "thresholds": flip_threshold(edges, beta=config.beta).tolist(),
        "examples": examples,
    }


def _labelled(pairs: Sequence[Pair], scored: PairLogProbs) -> Numbers:
    # The pairs that have a right order: no ties of the raters, nor of the tokens.
    return np.array([not pair.tied for pair in pairs]) & ~scored.same_tokens


def _idealized(
    pairs: Sequence[Pair], policy: PairLogProbs, reference: PairLogProbs
) -> dict[str, Any]:
    """R* and R̃* of the pairs with votes, with what it takes."""
    votes = np.array([pair.agreement is not None for pair in pairs]) & _labelled(pairs, policy)
    shares = [pair.agreement for pair, keep in zip(pairs, votes, strict=True) if keep]
    if not any(share is not None and share < 1 for share in shares):
        return {
            "missing": "needs votes (column agreement) that are not all unanimous; "
            "the labels here are bare"
        }
    alpha, kept = torch.tensor(shares, dtype=torch.float64), torch.from_numpy(votes)
    figures: dict[str, Any] = {"pairs": int(votes.sum())}
    plain = [_tensors(model.chosen, model.rejected) for model in (reference, policy)]
    normalised = [_means(model) for model in (reference, policy)]
    for kind, (start, trained) in (("plain", plain), ("normalised", normalised)):
        ideal = idealized_ranking_accuracy(start[0][kept], start[1][kept], alpha)
        now = float((trained[0][kept] >= trained[1][kept]).double().mean())
        figures[kind] = {
            "by_beta": {str(beta): value for beta, value in ideal.by_beta.items()},
            "min": ideal.min,
            "median": ideal.median,
            "max": ideal.max,
            "ranking_accuracy": now,
            "alignment_gap": alignment_gap(ideal, now),
        }
    return figures


def _tensors(*arrays: Numbers) -> list[torch.Tensor]:
    return [torch.from_numpy(np.ascontiguousarray(array)) for array in arrays]


def _means(scored: PairLogProbs) -> list[torch.Tensor]:
    return [
        mean_log_probs(*_tensors(scored.chosen, scored.chosen_tokens)),
        mean_log_probs(*_tensors(scored.rejected, scored.rejected_tokens)),
    ]


def _example(pair: Pair, c: float) -> dict[str, Any]:
    texts = {"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected}
    beginnings = {name: excerpt_of(text, length=_EXCERPT) for name, text in texts.items()}
    return {"prompt_id": pair.prompt_id, "log_ratio_nats": c, **beginnings}
