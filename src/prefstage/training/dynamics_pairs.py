"""The fixed subsample of pairs that dynamics are measured on, and how it is scored."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from prefstage.core.errors import InputError
from prefstage.core.hashing import digest, seed_for
from prefstage.data import Pair, PairSet, ResponseEncoder, TokenTree
from prefstage.data.records import Ties
from prefstage.data.tokenising import Cause, cause_of
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
        counts: What of the choice (of encoded pairs: of the set) was left out, by `LEFT_OUT`,
            and how many annotators there are, where the loss asks.
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
    def prompt_ids(self) -> tuple[str, ...]:
        """The prompt of each pair."""
        return tuple(tree.prompt_id for tree in self.trees)

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

    Of the choice, ties of the raters go unless they are asked for, and so do pairs whose two
    sides become the same tokens; both are counted.

    Args:
        name: Of the set.
        pairs: A `PairSet`, pairs, encoded items, or token trees whose two responses are
            chosen and rejected.
        encoder: Tokenizer and template; None if `pairs` are encoded.
        subsample: Pairs at most; a smaller set is taken whole.
        seed: Of the choice. The same seed, name and size give the same places.
        ties: Whether pairs whose raters are split evenly are followed; encoded items have
            been asked before.

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
    source = Random(seed_for(seed, "dynamics", name))
    places = sorted(source.sample(range(len(pairs)), min(subsample, len(pairs))))
    counts = Counter[str]()
    if isinstance(pairs, ItemSet):
        counts.update({k: n for k in (*LEFT_OUT, "annotators") if (n := pairs.counts.get(k))})
    kept = list[tuple[int, TokenTree, bool]]()
    for place in places:
        pair = pairs[place]
        tied = isinstance(pair, Pair | TrainingItem) and pair.tied
        if tied and isinstance(pair, Pair) and ties == "leave-out":
            counts["ties_left_out"] += 1
            continue
        row = pair.index if isinstance(pair, TrainingItem) else place
        tree = _tree(pair, encoder)
        _check_sides(name, row, tree)
        if tree.response_ids[0] == tree.response_ids[1]:
            counts[f"same_tokens_by_{_cause(pair, encoder)}"] += 1
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


def _check_sides(name: str, row: int, tree: TokenTree) -> None:
    if len(tree.response_ids) != _SIDES:
        raise InputError.of(
            saw=f"item {row} of the set {name!r} has {len(tree.response_ids)} responses",
            expected="a chosen and a rejected one",
            cure="give pairs; dynamics are about pairs",
        )


def _cause(pair: Any, encoder: ResponseEncoder | None) -> Cause:
    if isinstance(pair, Pair) and encoder is not None:
        return cause_of(pair.prompt, pair.chosen[0], pair.rejected[0], encoder)
    return "truncation"  # of tokens that are given as such nothing else is likely


def score_pairs(
    scorer: Scorer, trees: Sequence[TokenTree], *, with_adapter: bool = True
) -> PairScores:
    """Score both sides of each pair.

    Args:
        scorer: The model.
        trees: Pairs as tokens. [pairs].
        with_adapter: False scores the model beneath its PEFT adapters.

    Returns:
        Their log-probs. The tokens' float32 log-probs are added in float64.
    """
    scored = scorer.score(trees, with_adapter=with_adapter, show_progress=False)
    sums = [[tokens.double().sum() for tokens in each.per_token] for each in scored]
    chosen, rejected = torch.tensor(sums, dtype=torch.float64).unbind(1)
    return PairScores(chosen, rejected)


def _tree(pair: Pair | TokenTree | TrainingItem, encoder: ResponseEncoder | None) -> TokenTree:
    if isinstance(pair, TokenTree):
        return pair
    if isinstance(pair, TrainingItem):
        return pair.trees[0]
    if encoder is None:
        raise InputError.of(
            saw="pairs as text and no encoder",
            expected="the tokenizer that the policy is trained with",
            cure="give encoder=ResponseEncoder(tokenizer)",
        )
    return encoder.encode(pair.prompt, [pair.chosen[0], pair.rejected[0]])
