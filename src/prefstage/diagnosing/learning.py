"""What a model makes of pairs: rankings, what training can learn, intra-diversity."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from prefstage.data.disk_numbers import Numbers
from prefstage.data.records import Pair
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
from prefstage.diagnosing.numbers import Histogram, bootstrap_interval, describe, histogram
from prefstage.diagnosing.rankings import (
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


@dataclass(frozen=True)
class Rankings:
    """How a model orders pairs.

    Attributes:
        accuracy: R with its interval, over pairs that are no ties and whose sides are different
            tokens; None without such pairs.
        accuracy_normalised: R̃ likewise.
        with_ties: Accuracy over all pairs of different tokens where ties have to be ties, by
            scale; empty without ties.
        reward_accuracy: Of the model against its reference; None without reference.
        idealized: R* and R̃* of the reference over β, and the alignment gaps; or why not.
        intra_diversity: Mean, spread and quantiles of log π(y_w) - log π(y_l), nats.
        tokens_scored: Response tokens that went through the model.
        tokens_unique: Different ones; the same number.
        left_out: Pairs that R does not count, by why: ties of the raters, and pairs whose two
            sides became the same tokens.
        counts: Truncations and the like.
    """

    accuracy: dict[str, Any] | None
    accuracy_normalised: dict[str, Any] | None
    with_ties: dict[str, dict[str, Any]]
    reward_accuracy: dict[str, Any] | None
    idealized: dict[str, Any]
    intra_diversity: dict[str, Any]
    tokens_scored: int
    tokens_unique: int
    left_out: dict[str, int]
    counts: dict[str, int]


@dataclass(frozen=True)
class Learnability:
    """Which pairs training will learn, seen in the reference; of the pairs that R counts.

    Attributes:
        groups: How many pairs are easy, easy to flip, between and hard.
        wrong: Pairs that the reference orders wrongly (c > 0).
        flippable_at_loss: The target loss, c* that it overcomes, the share of wrong pairs it
            mends, and the share of all pairs then right.
        log_ratio: Distribution of c = log π_ref(y_l) - log π_ref(y_w), nats.
        histogram: Its counts: the figure's data.
        thresholds: At those edges the DPO loss below which a pair is right.
        examples: Of each group, the pairs furthest into it: prompt, c, and both beginnings.
    """

    groups: dict[str, int]
    wrong: int
    flippable_at_loss: dict[str, float | None]
    log_ratio: dict[str, Any]
    histogram: Histogram
    thresholds: list[float]
    examples: dict[str, list[dict[str, Any]]]


def rankings_of(
    pairs: Sequence[Pair],
    policy: PairLogProbs,
    reference: PairLogProbs | None,
    config: DiagnosisConfig,
) -> Rankings:
    """How a policy orders pairs, and how its reference could have taught it to.

    Args:
        pairs: The pairs; an `agreement` of ½ is a tie.
        policy: Their log-probs under the policy.
        reference: Under its reference; None before training, when both are the same.
        config: β and intervals.

    Returns:
        The figures.
    """
    labelled = _labelled(pairs, policy)
    ids = [pair.prompt_id for pair in pairs]
    chosen, rejected = _tensors(policy.chosen, policy.rejected)
    means = _means(policy)

    def mean(values: torch.Tensor, *, over: Numbers | None = None) -> dict[str, Any] | None:
        kept = ~policy.same_tokens if over is None else over
        if not kept.any():
            return None
        names = [name for name, keep in zip(ids, kept, strict=True) if keep]
        return asdict(
            bootstrap_interval(
                values[torch.from_numpy(kept)],
                names,
                confidence=config.confidence,
                resamples=config.resamples,
                seed=config.seed,
            )
        )

    ties = {}
    if any(pair.tied for pair in pairs):
        alpha = torch.tensor([1.0 if p.agreement is None else p.agreement for p in pairs])
        lengths = tuple(_tensors(policy.chosen_tokens, policy.rejected_tokens))
        for scale in ("probability", "normalised_probability", "normalised_log_prob"):
            how: Any = {"scale": scale} | ({} if scale == "probability" else {"lengths": lengths})
            found = ranking_accuracy_with_ties(chosen, rejected, alpha.double(), **how)
            ties[scale] = mean(found) or {}
    rewards = None
    if reference is not None:
        a, b = policy.chosen - reference.chosen, policy.rejected - reference.rejected
        rewards = mean(reward_accuracy(*_tensors(a, b)), over=labelled)
    return Rankings(
        accuracy=mean(ranking_accuracy(chosen, rejected), over=labelled),
        accuracy_normalised=mean(ranking_accuracy(*means), over=labelled),
        with_ties=ties,
        reward_accuracy=rewards,
        idealized=_idealized(pairs, policy, reference or policy),
        intra_diversity=asdict(intra_diversity(chosen, rejected)),
        tokens_scored=policy.tokens_scored + (reference.tokens_scored if reference else 0),
        tokens_unique=policy.tokens_unique + (reference.tokens_unique if reference else 0),
        left_out=_left_out(pairs, policy),
        counts=policy.counts,
    )


def _left_out(pairs: Sequence[Pair], scored: PairLogProbs) -> dict[str, int]:
    found = {
        f"rankings: same tokens on both sides ({cause})": scored.counts.get(
            f"same_tokens_by_{cause}"
        )
        for cause in CAUSES
    }
    found["rankings: ties of the raters"] = sum(pair.tied for pair in pairs)
    return {why: count for why, count in found.items() if count}


def _labelled(pairs: Sequence[Pair], scored: PairLogProbs) -> Numbers:
    """The pairs that have a right order: no ties of the raters, nor of the tokens."""
    return np.array([not pair.tied for pair in pairs]) & ~scored.same_tokens


def learnability_of(
    pairs: Sequence[Pair], reference: PairLogProbs, config: DiagnosisConfig
) -> Learnability | None:
    """Which pairs are hard, easy and easy to flip, and what a target loss would mend.

    Args:
        pairs: The pairs; those without a right order are left out, as R leaves them out.
        reference: Their log-probs under the model that training starts from.
        config: β, the target loss and the limits of the groups.

    Returns:
        The figures, with examples; None where no pair has a right order.

    Source:
        arXiv:2405.19534, Theorem 4.1 and App. F.
    """
    kept = _labelled(pairs, reference)
    if not kept.any():
        return None
    pairs = [pair for pair, keep in zip(pairs, kept, strict=True) if keep]
    ratio = reference_log_ratio(*_tensors(reference.chosen[kept], reference.rejected[kept]))
    limits = {
        "easy_below": config.easy_below,
        "flip_below": config.flip_below,
        "hard_above": config.hard_above,
    }
    groups = learnability_groups(ratio, **limits).numpy()
    right = right_at_loss(ratio, loss=config.target_loss, beta=config.beta).numpy()
    c = ratio.numpy()
    wrong = c > 0
    shown = histogram(c)
    edges = torch.tensor(shown.edges, dtype=torch.float64)
    order = {name: _furthest(name, c, groups == n) for n, name in enumerate(LEARNABILITY_GROUPS)}
    return Learnability(
        groups={name: int((groups == n).sum()) for n, name in enumerate(LEARNABILITY_GROUPS)},
        wrong=int(wrong.sum()),
        flippable_at_loss={
            "loss": config.target_loss,
            "beta": config.beta,
            "largest_log_ratio": largest_flippable(config.target_loss, beta=config.beta),
            "share_of_wrong": float(right[wrong].mean()) if wrong.any() else None,
            "share_right": float(right.mean()),
        },
        log_ratio=asdict(describe(c)),
        histogram=shown,
        thresholds=flip_threshold(edges, beta=config.beta).tolist(),
        examples={
            name: [_example(pairs[place], float(c[place])) for place in found[: config.examples]]
            for name, found in order.items()
            if name != "between"
        },
    )


def _idealized(
    pairs: Sequence[Pair], policy: PairLogProbs, reference: PairLogProbs
) -> dict[str, Any]:
    """R* and R̃* of the pairs with votes, with what it takes."""
    known = np.array([pair.agreement is not None for pair in pairs])
    votes = known & _labelled(pairs, policy)
    shares = [pair.agreement for pair, keep in zip(pairs, votes, strict=True) if keep]
    split = [share for share in shares if share is not None and share < 1]
    if not split:
        return {
            "missing": "needs votes (column agreement) that are not all unanimous; "
            "the labels here are bare"
        }
    alpha = torch.tensor(shares)
    found: dict[str, Any] = {"pairs": int(votes.sum())}
    kinds = {
        "plain": (_tensors(reference.chosen, reference.rejected), (policy.chosen, policy.rejected)),
        "normalised": (_means(reference), tuple(each.numpy() for each in _means(policy))),
    }
    for kind, (ours, theirs) in kinds.items():
        chosen, rejected = (each[torch.from_numpy(votes)] for each in ours)
        ideal = idealized_ranking_accuracy(chosen, rejected, alpha.double())
        now = float((theirs[0][votes] >= theirs[1][votes]).mean())
        found[kind] = {
            "by_beta": {str(beta): value for beta, value in ideal.by_beta.items()},
            "min": ideal.min,
            "median": ideal.median,
            "max": ideal.max,
            "ranking_accuracy": now,
            "alignment_gap": alignment_gap(ideal, now),
        }
    return found


def _tensors(*arrays: Numbers) -> list[torch.Tensor]:
    return [torch.from_numpy(np.ascontiguousarray(each)) for each in arrays]


def _means(scored: PairLogProbs) -> list[torch.Tensor]:
    return [
        mean_log_probs(*_tensors(scored.chosen, scored.chosen_tokens)),
        mean_log_probs(*_tensors(scored.rejected, scored.rejected_tokens)),
    ]


def _furthest(group: str, c: Numbers, inside: Numbers) -> list[int]:
    places = np.flatnonzero(inside)
    sign = -1.0 if group == "hard" else 1.0
    return [int(place) for place in places[np.argsort(sign * c[places], kind="stable")]]


def _example(pair: Pair, c: float) -> dict[str, Any]:
    chosen, rejected = (excerpt_of(each, length=_EXCERPT) for each in (pair.chosen, pair.rejected))
    prompt = excerpt_of(pair.prompt, length=_EXCERPT)
    told = {"prompt_id": pair.prompt_id, "log_ratio_nats": c, "prompt": prompt}
    return {**told, "chosen": chosen, "rejected": rejected}
