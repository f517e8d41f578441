"""The fixed subsample of pairs that dynamics follow: chosen, scored, measured, summarised."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

from prefstage.core import InputError, digest, seed_for
from prefstage.data import Pair, PairSet, ResponseEncoder, TokenTree
from prefstage.data.records import Ties
from prefstage.diagnosing.flips import (
    at_threshold,
    flip_groups,
    intra_diversity,
    reference_log_ratio,
    summarise_flip_groups,
)
from prefstage.diagnosing.rankings import mean_log_probs, ranking_accuracy, reward_accuracy
from prefstage.scoring import Scorer
from prefstage.training.dynamics.criterion import Criterion
from prefstage.training.items import (
    LEFT_OUT,
    Encoding,
    ItemSet,
    TrainingItem,
    left_out,
    pair_items,
)

_SIDES = 2

# What dynamics can follow: loaded, encoded, or made in memory.
Pairs = PairSet | ItemSet | Sequence[Pair] | Sequence[TokenTree]


@dataclass(frozen=True)
class PairSample:
    """Pairs of one set, as tokens.

    Attributes:
        name: Of the set, such as "train" or "eval".
        available: Pairs in the whole set.
        items: The pairs, by their row in it; the chosen response of each comes first.
        counts: What of the sample (of encoded pairs: of the set) was left out, by `LEFT_OUT`,
            and how many annotators there are, where the loss reads them.
    """

    name: str
    available: int
    items: tuple[TrainingItem, ...]
    counts: Mapping[str, int]

    @property
    def trees(self) -> list[TokenTree]:
        """Each pair's prompt with the chosen and the rejected response, in this order."""
        return [item.trees[0] for item in self.items]

    @property
    def fingerprint(self) -> str:
        """Hash of which pairs they are and of their tokens."""
        return digest(
            [
                [item.index for item in self.items],
                [[tree.prompt_ids, tree.response_ids] for tree in self.trees],
            ]
        )


# Log π(y_w|x) and log π(y_l|x) of the pairs of a sample under one model, each summed over tokens
# in float64. [pairs], nats.
PairScores = tuple[Float[Tensor, " pairs"], Float[Tensor, " pairs"]]


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
    InputError.unless(
        len(pairs) > 0 and subsample >= 1,
        saw=f"{len(pairs)} pairs in the set {name!r} and subsample={subsample}",
        expected="at least one pair to measure",
        cure=f"leave {name}_pairs out, or give pairs",
    )
    # Seeded by the set's name as well, so that adding an evaluation set does not change which
    # pairs of the others are followed.
    source = Random(seed_for(seed, "dynamics", name))
    work = Encoding(cast("ResponseEncoder", encoder), ties)
    if isinstance(pairs, ItemSet):
        work.counts.update(pairs.counts)
    items = list[TrainingItem]()
    for row in sorted(source.sample(range(len(pairs)), min(subsample, len(pairs)))):
        items += _items_of(row, pairs[row], work, name)
    counts = {what: work.counts[what] for what in (*LEFT_OUT, "annotators") if work.counts[what]}
    InputError.unless(
        items,
        saw=f"no pair left in the set {name!r} ({'; '.join(left_out(counts))})",
        expected="at least one pair to measure",
        cure=f"leave {name}_pairs out, keep ties, or give longer responses",
    )
    return PairSample(name, len(pairs), tuple(items), counts)


# No item for a pair that has nothing to rank.
def _items_of(
    row: int, pair: Pair | TokenTree | TrainingItem, work: Encoding, name: str
) -> Iterable[TrainingItem]:
    if isinstance(pair, Pair):
        InputError.unless(
            work.encoder is not None,
            saw="pairs as text and no encoder",
            expected="the tokenizer that the policy is trained with",
            cure="give encoder=ResponseEncoder(tokenizer)",
        )
        return pair_items(row, pair, work)
    item = pair if isinstance(pair, TrainingItem) else TrainingItem(row, (pair,))
    responses = item.trees[0].response_ids
    InputError.unless(
        len(responses) == _SIDES,
        saw=f"item {item.index} of the set {name!r} has {len(responses)} responses",
        expected="a chosen and a rejected one",
        cure="give pairs; dynamics are about pairs",
    )
    # Truncation is the likely cause where nothing but tokens is known.
    work.counts["same_tokens_by_truncation"] += responses[0] == responses[1]
    return [item] if responses[0] != responses[1] else []


def score_pairs(
    scorer: Scorer, trees: Sequence[TokenTree], *, with_adapter: bool = True
) -> PairScores:
    """Score both sides of each pair.

    Args:
        scorer: The model.
        trees: Pairs as tokens. [pairs].
        with_adapter: False scores the model beneath its PEFT adapters.

    Returns:
        Their log-probs, of the chosen and of the rejected responses.
    """
    # Summed in float64: a margin is a small difference of two sums of hundreds of float32 values,
    # and the flip theorem is checked exactly below.
    sums = [
        [tokens.double().sum() for tokens in pair.per_token]
        for pair in scorer.score(trees, with_adapter=with_adapter, show_progress=False)
    ]
    chosen, rejected = torch.tensor(sums, dtype=torch.float64).unbind(1)
    return chosen, rejected


def measure_pairs(
    sample: PairSample, policy: PairScores, reference: PairScores, *, criterion: Criterion
) -> dict[str, Tensor]:
    """Work out where each pair stands at one step of training.

    Args:
        sample: The pairs.
        policy: Their log-probs under the policy now, as of `score_pairs`.
        reference: Likewise under the reference.
        criterion: The loss that they are followed by.

    Returns:
        By the names of records' columns, each [pairs]: tokens of the responses, end-of-turn
        included; log-probs; "reference_log_ratio", c; the criterion's "loss" and "threshold",
        the loss at or below which the ranking is right, nats (of IPO nats²); "margin", βΔ;
        "correct", whether the policy ranks the pair rightly; "group", index into `FLIP_GROUPS`;
        and "tied", whether raters are split evenly, so that it has no right order.

    Raises:
        InputError: If a log-prob is not finite.
        PrefstageError: If a pair stands on the wrong side of its threshold; see `Criterion`.
    """
    lengths = torch.tensor([[len(ids) for ids in tree.response_ids] for tree in sample.trees])
    loss, threshold = criterion.measure(policy, reference, lengths)
    c, correct = reference_log_ratio(*reference), ranking_accuracy(*policy).bool()
    return {
        "chosen_tokens": lengths[:, 0],
        "rejected_tokens": lengths[:, 1],
        "chosen_log_prob": policy[0],
        "rejected_log_prob": policy[1],
        "reference_chosen_log_prob": reference[0],
        "reference_rejected_log_prob": reference[1],
        "reference_log_ratio": c,
        "loss": loss,
        "threshold": threshold,
        "margin": criterion.scale * (policy[0] - policy[1] + c),
        "correct": correct,
        "group": flip_groups(ranking_accuracy(*reference).bool(), correct),
        "tied": torch.tensor([item.tied for item in sample.items]),
    }


def summarise_pairs(measured: Mapping[str, Tensor], *, criterion: Criterion) -> dict[str, float]:
    """The figures of one set at one step, as trackers take them.

    Args:
        measured: As of `measure_pairs`.
        criterion: The loss that they are followed by; its β scales rewards.

    Returns:
        Means over pairs by name: TRL's names where TRL has the metric, ours elsewhere. What
        has no value (the loss of an empty group) is left out. Accuracies and flips are over
        the pairs that are no ties of their raters, which have no right order.
    """
    chosen, rejected = measured["chosen_log_prob"], measured["rejected_log_prob"]
    beta = criterion.scale
    chosen_change = chosen - measured["reference_chosen_log_prob"]
    rejected_change = rejected - measured["reference_rejected_log_prob"]
    lengths = measured["chosen_tokens"], measured["rejected_tokens"]
    means = {
        "loss": measured["loss"],
        "logps/chosen": chosen,
        "logps/rejected": rejected,
        "rewards/chosen": beta * chosen_change,
        "rewards/rejected": beta * rejected_change,
        "rewards/margins": measured["margin"],
        "displacement/chosen": chosen_change,
        "displacement/rejected": rejected_change,
        "displacement/both_fell": (chosen_change < 0) & (rejected_change < 0),
        "lengths/chosen": lengths[0],
        "lengths/rejected": lengths[1],
    }
    figures = dict[str, float]()
    decided = ~measured["tied"]
    if decided.any():
        means |= {
            name: values[decided]
            for name, values in {
                "rewards/accuracies": reward_accuracy(beta * chosen_change, beta * rejected_change),
                "rankings/accuracy": measured["correct"],
                "rankings/normalised_accuracy": ranking_accuracy(
                    *map(mean_log_probs, (chosen, rejected), lengths)
                ),
            }.items()
        }
        if criterion.name == "DPO":  # where the threshold decides, and not only guarantees
            at = at_threshold(measured["loss"], measured["threshold"])
            means["rankings/at_threshold"] = at[decided]
        figures = {
            f"flips/{name}/{kind}": value
            for name, group in summarise_flip_groups(
                *(measured[name][decided] for name in ("group", "loss", "margin"))
            ).items()
            for kind, value in (
                ("share", group.share),
                ("loss", group.loss),
                ("margins", group.reward_margin),
            )
            if value is not None
        }
    figures |= {name: float(values.double().mean()) for name, values in means.items()}
    diversity = intra_diversity(chosen, rejected)
    figures |= {
        f"intra_diversity/q{round(100 * level):02d}": value
        for level, value in diversity.quantiles.items()
    }
    together = torch.stack([(lengths[0] - lengths[1]).double(), measured["margin"]])
    correlation = float(torch.corrcoef(together)[0, 1]) if len(chosen) > 1 else math.nan
    if math.isfinite(correlation):  # constant lengths or margins have none
        figures["lengths/margin_correlation"] = correlation
    return figures | {"intra_diversity/mean": diversity.mean, "intra_diversity/std": diversity.std}


def metric_key(set_name: str, *parts: str) -> str:
    """The name of a figure of a set, in a form that trackers accept."""
    # transformers puts "eval_..." among evaluation, others under train/.
    start = "" if set_name == "train" else f"{set_name}_"
    return "/".join([f"{start}dynamics", *parts]).replace("->", "_to_")
