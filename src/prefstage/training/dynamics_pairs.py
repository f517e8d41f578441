"""The fixed subsample of pairs that dynamics are measured on, and how it is scored."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import torch
from jaxtyping import Float, Int
from torch import Tensor

from prefstage.core.errors import InputError
from prefstage.core.hashing import digest
from prefstage.core.seeds import seed_for
from prefstage.data import Pair, PairSet, ResponseEncoder, TokenTree
from prefstage.scoring import Scorer
from prefstage.training.items import ItemSet, TrainingItem

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
    """

    name: str
    available: int
    indices: tuple[int, ...]
    trees: tuple[TokenTree, ...]

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
) -> PairSample:
    """Choose pairs by a seed and tokenise them; the others are never read.

    Args:
        name: Of the set.
        pairs: A `PairSet`, pairs, encoded items, or token trees whose two responses are
            chosen and rejected.
        encoder: Tokenizer and template; None if `pairs` are encoded.
        subsample: Pairs at most; a smaller set is taken whole.
        seed: Of the choice. The same seed, name and size give the same places.

    Returns:
        The sample, in the order of the set.

    Raises:
        InputError: If there is no pair, a tree is no pair, or pairs come without encoder.
    """
    if len(pairs) == 0 or subsample < 1:
        raise InputError.of(
            saw=f"{len(pairs)} pairs in the set {name!r} and subsample={subsample}",
            expected="at least one pair to measure",
            cure=f"leave {name}_pairs out, or give pairs",
        )
    source = Random(seed_for(seed, "dynamics", name))
    places = sorted(source.sample(range(len(pairs)), min(subsample, len(pairs))))
    chosen = [(place, pairs[place]) for place in places]
    rows = tuple(p.index if isinstance(p, TrainingItem) else place for place, p in chosen)
    trees = tuple(_tree(pair, encoder) for _, pair in chosen)
    for index, tree in zip(rows, trees, strict=True):
        if len(tree.response_ids) != _SIDES:
            raise InputError.of(
                saw=f"item {index} of the set {name!r} has {len(tree.response_ids)} responses",
                expected="a chosen and a rejected one",
                cure="give pairs; dynamics are about pairs",
            )
    return PairSample(name, len(pairs), rows, trees)


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
