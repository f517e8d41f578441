"""Log-probs of a dataset's pairs under a model, every response once."""

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from prefstage.data.disk_numbers import Numbers
from prefstage.data.records import Candidates, Pair
from prefstage.data.same_tokens import cause_of
from prefstage.data.token_trees import TokenTree
from prefstage.data.tokenising import ResponseEncoder
from prefstage.measuring.distinctness import distinctness


class ScoresTrees(Protocol):
    """A `Scorer`, or a `ReferenceCache` that remembers."""

    def score(self, trees: Sequence[TokenTree]) -> Sequence[Any]:
        """Log-probs of every response of every tree."""


@dataclass(frozen=True)
class ScoredBy:
    """A model that scores pairs.

    Attributes:
        name: For people.
        scorer: A `Scorer`, or a `ReferenceCache`, which scores nothing that it remembers.
        encoder: Its tokenizer and template.
    """

    name: str
    scorer: ScoresTrees
    encoder: ResponseEncoder


@dataclass(frozen=True)
class PairLogProbs:
    """What a model makes of pairs.

    Attributes:
        chosen: log π(y_w|x), summed over tokens. [pairs], nats.
        rejected: log π(y_l|x). [pairs], nats.
        chosen_tokens: L_w, tokens with the end-of-turn. [pairs].
        rejected_tokens: L_l. [pairs].
        same_tokens: Whether both sides became the same tokens: such a pair has no ranking.
            [pairs].
        tokens_scored: Response tokens that went through the model.
        tokens_unique: Response tokens of different (prompt, response); the same number, as
            nothing is scored twice.
        counts: Prompts, responses, truncations and the like, from the encoder.
        seconds: What the model took.
    """

    chosen: Numbers
    rejected: Numbers
    chosen_tokens: Numbers
    rejected_tokens: Numbers
    same_tokens: Numbers
    tokens_scored: int
    tokens_unique: int
    counts: dict[str, int]
    seconds: float


def score_pairs(
    pairs: Sequence[Pair], scorer: ScoresTrees, encoder: ResponseEncoder
) -> PairLogProbs:
    """Score both sides of all pairs: each prompt once, each of its different responses once.

    Args:
        pairs: The pairs.
        scorer: The model.
        encoder: Its tokenizer and template.

    Returns:
        Log-probs and lengths, pair by pair.
    """
    before = dict(vars(encoder.counts))
    trees, places = pair_trees(pairs, encoder)
    counts = {name: count - before[name] for name, count in vars(encoder.counts).items()}
    same = np.array([chosen == rejected for chosen, rejected in places])
    counts |= _causes([pair for pair, alike in zip(pairs, same, strict=True) if alike], encoder)
    started = time.perf_counter()
    scored = scorer.score(trees)
    seconds = time.perf_counter() - started
    sums = [each.sums.double().numpy() for each in scored]
    sides = list(zip(*places, strict=True))
    log_probs = [np.array([sums[tree][place] for tree, place in side]) for side in sides]
    lengths = [
        np.array([len(trees[tree].response_ids[place]) for tree, place in side]) for side in sides
    ]
    unique = {(tree.prompt_ids, ids): len(ids) for tree in trees for ids in tree.response_ids}
    return PairLogProbs(
        chosen=log_probs[0],
        rejected=log_probs[1],
        chosen_tokens=lengths[0],
        rejected_tokens=lengths[1],
        same_tokens=same,
        tokens_scored=sum(len(tokens) for each in scored for tokens in each.per_token),
        tokens_unique=sum(unique.values()),
        counts={name: count for name, count in counts.items() if count},
        seconds=seconds,
    )


_Place = tuple[int, int]


def _causes(pairs: Sequence[Pair], encoder: ResponseEncoder) -> Counter[str]:
    """Of pairs whose two sides became the same tokens, how many by which cause."""
    return Counter(
        f"same_tokens_by_{cause_of(pair.prompt, pair.chosen[0], pair.rejected[0], encoder)}"
        for pair in pairs
    )


def score_candidates(
    rows: Sequence[Candidates], scorer: ScoresTrees, encoder: ResponseEncoder
) -> list[tuple[Numbers, Numbers]]:
    """Score all responses of prompts.

    Args:
        rows: Prompts with their responses.
        scorer: The model.
        encoder: Its tokenizer and template.

    Returns:
        For each prompt log π(y|x) of its responses, nats, and their tokens. [prompts] of
        ([responses], [responses]).
    """
    trees = [encoder.encode(row.prompt, row.messages()) for row in rows]
    return [
        (scored.sums.double().numpy(), np.array([len(ids) for ids in tree.response_ids]))
        for tree, scored in zip(trees, scorer.score(trees), strict=True)
    ]


def own_distinctness(
    own: Sequence[Candidates], pairs: Sequence[Pair], scored: PairLogProbs, policy: ScoredBy
) -> dict[str, Any]:
    """Whether the policy finds its own answers likelier than the responses of the pairs.

    The pairs are not scored again.

    Args:
        own: The policy's answers, by prompt.
        pairs: The pairs.
        scored: Their log-probs under the policy.
        policy: The policy.

    Returns:
        `share` as of `distinctness` over the `prompts` in common, and how many `comparisons`.

    Source:
        arXiv:2508.10530, App. D.1, Table 7.
    """
    off: dict[str, dict[str, float]] = {}
    for pair, *values in zip(pairs, scored.chosen, scored.rejected, strict=True):
        found = off.setdefault(pair.prompt_id, {})
        for side, value in zip((pair.chosen, pair.rejected), values, strict=True):
            found[_key(side)] = value
    rows = [row for row in own if row.responses and row.prompt_id in off]
    if not rows:
        return {"prompts": 0, "comparisons": 0, "share": None}
    mine = [sums for sums, _ in score_candidates(rows, policy.scorer, policy.encoder)]
    sides = [
        (sums, np.array(list(off[row.prompt_id].values())))
        for row, sums in zip(rows, mine, strict=True)
    ]
    comparisons = sum(len(on) * len(other) for on, other in sides)
    return {"prompts": len(rows), "comparisons": comparisons, "share": distinctness(sides)}


def pair_trees(
    pairs: Sequence[Pair], encoder: ResponseEncoder
) -> tuple[list[TokenTree], list[tuple[_Place, _Place]]]:
    """One tree a prompt with its different responses, and where each pair's two stand.

    Args:
        pairs: The pairs.
        encoder: Tokenizer and template.

    Returns:
        The trees, and for each pair the (tree, response) of its chosen and rejected side.
    """
    numbers: dict[str, int] = {}
    prompts, responses = list[Any](), list[dict[str, Any]]()
    for pair in pairs:
        number = numbers.setdefault(pair.prompt_id, len(numbers))
        if number == len(prompts):
            prompts.append(pair.prompt)
            responses.append({})
        for side in (pair.chosen, pair.rejected):
            responses[number].setdefault(_key(side), side[0])
    encoded = [
        encoder.encode(prompt, list(each.values()))
        for prompt, each in zip(prompts, responses, strict=True)
    ]
    trees, where = list[TokenTree](), list[dict[str, int]]()
    for tree, each in zip(encoded, responses, strict=True):
        unique = list(dict.fromkeys(tree.response_ids))  # truncation may make two alike
        trees.append(TokenTree(tree.prompt_id, tree.prompt_ids, tuple(unique)))
        where.append(
            {key: unique.index(ids) for key, ids in zip(each, tree.response_ids, strict=True)}
        )
    places = [
        tuple(
            (numbers[pair.prompt_id], where[numbers[pair.prompt_id]][_key(side)])
            for side in (pair.chosen, pair.rejected)
        )
        for pair in pairs
    ]
    return trees, places  # type: ignore[return-value]  # each tuple has two places


def _key(side: Sequence[Any]) -> str:
    return json.dumps(side, sort_keys=True)
