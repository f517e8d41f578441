"""The fixed subsample of pairs that dynamics follow: chosen, scored, measured, summarised."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from prefstage.core.errors import InputError, PrefstageError
from prefstage.core.hashing import digest, seed_for
from prefstage.data import Pair, PairSet, ResponseEncoder, TokenTree
from prefstage.data.records import Ties
from prefstage.data.tokenising import cause_of
from prefstage.diagnosing.flips import (
    FLIP_GROUPS,
    at_threshold,
    dpo_losses,
    flip_groups,
    flip_threshold,
    intra_diversity,
    reference_log_ratio,
    summarise_flip_groups,
    threshold_violations,
)
from prefstage.diagnosing.rankings import mean_log_probs, ranking_accuracy, reward_accuracy
from prefstage.scoring import Scorer
from prefstage.training.items import LEFT_OUT, ItemSet, TrainingItem, left_out

_SIDES = 2

Pairs = PairSet | ItemSet | Sequence[Pair] | Sequence[TokenTree]
"""What dynamics can follow: loaded, encoded, or made in memory."""


@dataclass(frozen=True)
class PairSample:
    """Pairs of one set, as tokens.

    Attributes:
        name: Of the set, such as "train" or "eval".
        available: Pairs in the whole set.
        indices: Row of each pair in it, ascending.
        trees: Each pair's prompt with the chosen and the rejected response, in this order.
        tied: Whether the raters of each pair are split evenly, so that it has no right order.
        counts: What of the sample (of encoded pairs: of the set) was left out, by `LEFT_OUT`,
            and how many annotators there are, where the loss reads them.
    """

    name: str
    available: int
    indices: tuple[int, ...]
    trees: tuple[TokenTree, ...]
    tied: tuple[bool, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)

    @property
    def decided(self) -> Bool[Tensor, " pairs"]:
        """Pairs that have a right order."""
        return ~torch.tensor(self.tied or (False,) * len(self.trees))

    @property
    def lengths(self) -> tuple[Int[Tensor, " pairs"], Int[Tensor, " pairs"]]:
        """Tokens of the chosen and of the rejected responses, end-of-turn included."""
        sides = [[len(ids) for ids in tree.response_ids] for tree in self.trees]
        chosen, rejected = torch.tensor(sides).unbind(1)
        return chosen, rejected

    @property
    def fingerprint(self) -> str:
        """Hash of which pairs they are and of their tokens."""
        return digest([self.indices, [[t.prompt_ids, t.response_ids] for t in self.trees]])


@dataclass(frozen=True)
class PairScores:
    """Log-probs of the pairs of a sample under one model.

    Attributes:
        chosen: log π(y_w|x), summed over tokens in float64. [pairs], nats.
        rejected: log π(y_l|x), likewise. [pairs], nats.
    """

    chosen: Float[Tensor, " pairs"]
    rejected: Float[Tensor, " pairs"]


@dataclass(frozen=True)
class PairDynamics:
    """Where each pair of a sample stands at one step of training.

    Attributes:
        sample: The pairs.
        policy: Their log-probs under the policy now.
        reference: Their log-probs under the reference.
        beta: β of losses and rewards, 1/nats.
        log_ratio: c, the reference log-ratio. [pairs], nats.
        loss: DPO loss. [pairs], nats.
        threshold: The loss at or below which the ranking is right. [pairs], nats.
        margin: Reward margin βΔ. [pairs].
        correct: Whether the policy ranks the pair rightly. [pairs].
        group: Index into `FLIP_GROUPS`. [pairs].
    """

    sample: PairSample
    policy: PairScores
    reference: PairScores
    beta: float
    log_ratio: Float[Tensor, " pairs"]
    loss: Float[Tensor, " pairs"]
    threshold: Float[Tensor, " pairs"]
    margin: Float[Tensor, " pairs"]
    correct: Bool[Tensor, " pairs"]
    group: Int[Tensor, " pairs"]


def sample_pairs(
    name: str,
    pairs: Pairs,
    *,
    encoder: ResponseEncoder | None,
    subsample: int,
    seed: int,
    ties: Ties = "leave-out",
) -> PairSample:
    """Choose pairs by a seed and tokenise them; the others are never read.

    Of the choice, ties of the raters are left out unless they are kept, and so are pairs whose
    two sides become the same tokens; both are counted.

    Args:
        name: Of the set.
        pairs: A `PairSet`, pairs, encoded items, or token trees whose two responses are
            chosen and rejected.
        encoder: Tokenizer and template; None if `pairs` are encoded.
        subsample: Pairs at most; a smaller set is taken whole.
        seed: Of the choice. The same seed, name and size give the same rows.
        ties: Whether pairs whose raters are split evenly are followed; of encoded items
            that has been decided before.

    Returns:
        The sample, in the order of the set.

    Raises:
        InputError: If there is no pair (left), a tree is no pair, or pairs come without encoder.
    """
    if len(pairs) == 0 or subsample < 1:
        raise InputError.of(
            saw=f"{len(pairs)} pairs in the set {name!r} and subsample={subsample}",
            expected="at least one pair to measure",
            cure=f"leave {name}_pairs out, or give pairs",
        )
    # Seeded by the set's name as well, so that adding an evaluation set does not change which
    # pairs of the others are followed.
    source = Random(seed_for(seed, "dynamics", name))
    counts = Counter[str]()
    if isinstance(pairs, ItemSet):
        counts.update({k: n for k in (*LEFT_OUT, "annotators") if (n := pairs.counts.get(k))})
    kept = list[tuple[int, TokenTree, bool]]()
    for position in sorted(source.sample(range(len(pairs)), min(subsample, len(pairs)))):
        pair = pairs[position]
        tied = isinstance(pair, Pair | TrainingItem) and pair.tied
        if tied and isinstance(pair, Pair) and ties == "leave-out":
            counts["ties_left_out"] += 1
            continue
        row = pair.index if isinstance(pair, TrainingItem) else position
        tree = _tree(pair, encoder, f"item {row} of the set {name!r}")
        if tree.response_ids[0] == tree.response_ids[1]:
            cause = "truncation"  # the likely one where nothing but tokens is known
            if isinstance(pair, Pair) and encoder is not None:
                cause = cause_of(pair.prompt, pair.chosen[0], pair.rejected[0], encoder)
            counts[f"same_tokens_by_{cause}"] += 1
            continue
        kept.append((row, tree, tied))
    if not kept:
        raise InputError.of(
            saw=f"no pair left in the set {name!r} ({'; '.join(left_out(counts))})",
            expected="at least one pair to measure",
            cure=f"leave {name}_pairs out, keep ties, or give longer responses",
        )
    rows, trees, tied_rows = zip(*kept, strict=True)
    return PairSample(name, len(pairs), rows, trees, tied_rows, dict(counts))


def _tree(
    pair: Pair | TokenTree | TrainingItem, encoder: ResponseEncoder | None, what: str
) -> TokenTree:
    if isinstance(pair, Pair):
        if encoder is None:
            raise InputError.of(
                saw="pairs as text and no encoder",
                expected="the tokenizer that the policy is trained with",
                cure="give encoder=ResponseEncoder(tokenizer)",
            )
        return encoder.encode(pair.prompt, [pair.chosen[0], pair.rejected[0]])
    tree = pair.trees[0] if isinstance(pair, TrainingItem) else pair
    if len(tree.response_ids) != _SIDES:
        raise InputError.of(
            saw=f"{what} has {len(tree.response_ids)} responses",
            expected="a chosen and a rejected one",
            cure="give pairs; dynamics are about pairs",
        )
    return tree


def score_pairs(
    scorer: Scorer, trees: Sequence[TokenTree], *, with_adapter: bool = True
) -> PairScores:
    """Score both sides of each pair.

    Args:
        scorer: The model.
        trees: Pairs as tokens. [pairs].
        with_adapter: False scores the model beneath its PEFT adapters.

    Returns:
        Their log-probs.
    """
    scored = scorer.score(trees, with_adapter=with_adapter, show_progress=False)
    # Summed in float64: a margin is a small difference of two sums of hundreds of float32 values,
    # and the flip theorem is checked exactly below.
    sums = [[tokens.double().sum() for tokens in pair.per_token] for pair in scored]
    return PairScores(*torch.tensor(sums, dtype=torch.float64).unbind(1))


def measure_pairs(
    sample: PairSample, policy: PairScores, reference: PairScores, *, beta: float
) -> PairDynamics:
    """Work out where each pair stands.

    Args:
        sample: The pairs.
        policy: Their log-probs under the policy now.
        reference: Their log-probs under the reference.
        beta: β of DPO, > 0. 1/nats.

    Returns:
        Losses, thresholds, margins and groups.

    Raises:
        InputError: If a log-prob is not finite.
        PrefstageError: If a pair stands on the wrong side of its threshold, which Theorem
            4.1 of arXiv:2405.19534 rules out.
    """
    c = reference_log_ratio(reference.chosen, reference.rejected)
    loss = dpo_losses(policy.chosen, policy.rejected, c, beta=beta)
    threshold = flip_threshold(c, beta=beta)
    correct = ranking_accuracy(policy.chosen, policy.rejected).bool()
    broken = int(threshold_violations(loss, threshold, correct).sum())
    if broken:
        raise PrefstageError.of(
            saw=f"{broken} of {len(loss)} pairs of {sample.name!r} on the wrong side of their "
            "flip threshold",
            expected="none: the theorem is exact",
            cure="report it; losses, rankings and reference are not of the same pairs",
        )
    was_correct = ranking_accuracy(reference.chosen, reference.rejected).bool()
    return PairDynamics(
        sample=sample,
        policy=policy,
        reference=reference,
        beta=beta,
        log_ratio=c,
        loss=loss,
        threshold=threshold,
        margin=beta * (policy.chosen - policy.rejected + c),
        correct=correct,
        group=flip_groups(was_correct, correct),
    )


def summarise_pairs(dynamics: PairDynamics) -> dict[str, float]:
    """The figures of one set at one step, as trackers take them.

    Args:
        dynamics: The pairs.

    Returns:
        Means over pairs by name: TRL's names where TRL has the metric, ours elsewhere. What
        has no value (the loss of an empty group) is left out. Accuracies and flips are over
        the pairs that are no ties of their raters, which have no right order.
    """
    policy, reference, beta = dynamics.policy, dynamics.reference, dynamics.beta
    chosen_change = policy.chosen - reference.chosen
    rejected_change = policy.rejected - reference.rejected
    means = {
        "loss": dynamics.loss,
        "logps/chosen": policy.chosen,
        "logps/rejected": policy.rejected,
        "rewards/chosen": beta * chosen_change,
        "rewards/rejected": beta * rejected_change,
        "rewards/margins": dynamics.margin,
        "displacement/chosen": chosen_change,
        "displacement/rejected": rejected_change,
        "displacement/both_fell": (chosen_change < 0) & (rejected_change < 0),
    }
    decided = dynamics.sample.decided
    if decided.any():
        lengths = dynamics.sample.lengths
        orders = {
            "rewards/accuracies": reward_accuracy(beta * chosen_change, beta * rejected_change),
            "rankings/accuracy": dynamics.correct,
            "rankings/normalised_accuracy": ranking_accuracy(
                mean_log_probs(policy.chosen, lengths[0]),
                mean_log_probs(policy.rejected, lengths[1]),
            ),
            "rankings/at_threshold": at_threshold(dynamics.loss, dynamics.threshold),
        }
        means |= {name: values[decided] for name, values in orders.items()}
    return {
        **{name: float(values.double().mean()) for name, values in means.items()},
        **_flips(dynamics, decided),
        **_diversity(policy),
        **_lengths(dynamics),
    }


def metric_name(group: str) -> str:
    """A flip group's name as trackers accept it."""
    return group.replace("->", "_to_")


def _flips(dynamics: PairDynamics, decided: Bool[Tensor, " pairs"]) -> dict[str, float]:
    if not decided.any():
        return {}
    groups = summarise_flip_groups(
        dynamics.group[decided], dynamics.loss[decided], dynamics.margin[decided]
    )
    figures = {
        f"flips/{metric_name(name)}/{kind}": value
        for name in FLIP_GROUPS
        for kind, value in (
            ("share", groups[name].share),
            ("loss", groups[name].loss),
            ("margins", groups[name].reward_margin),
        )
    }
    return {name: value for name, value in figures.items() if value is not None}


def _diversity(policy: PairScores) -> dict[str, float]:
    diversity = intra_diversity(policy.chosen, policy.rejected)
    levels = {
        f"intra_diversity/q{round(100 * level):02d}": value
        for level, value in diversity.quantiles.items()
    }
    return {"intra_diversity/mean": diversity.mean, "intra_diversity/std": diversity.std, **levels}


def _lengths(dynamics: PairDynamics) -> dict[str, float]:
    chosen, rejected = (side.double() for side in dynamics.sample.lengths)
    figures = {"lengths/chosen": float(chosen.mean()), "lengths/rejected": float(rejected.mean())}
    together = torch.stack([chosen - rejected, dynamics.margin])
    correlation = float(torch.corrcoef(together)[0, 1]) if len(chosen) > 1 else math.nan
    if math.isfinite(correlation):  # constant lengths or margins have none
        figures["lengths/margin_correlation"] = correlation
    return figures
