"""Log-probs of a dataset's responses under a model, every response once; orders of responses."""

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import factorial
from typing import Any, Protocol

import numpy as np
import torch

from prefstage.core.errors import InputError
from prefstage.data.disk_numbers import Numbers
from prefstage.data.records import Candidates, Pair
from prefstage.data.tokenising import ResponseEncoder, TokenTree, cause_of
from prefstage.diagnosing.config import DiagnosisConfig
from prefstage.diagnosing.numbers import bootstrap_interval
from prefstage.diagnosing.rankings import order_accuracy, ranking_accuracy
from prefstage.measuring.reliability import distinctness


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


_TWO = 2


@dataclass(frozen=True)
class OrderFigures:
    """How a model orders the responses of prompts, against their scores.

    Attributes:
        dataset: For people.
        policy: The model.
        prompts: Prompts with two or more responses that have different scores.
        responses: How many responses prompts have: number of prompts by number of responses.
        whole_order: Share of prompts whose responses all stand in the order of their scores,
            with its interval; on log-probs, and on length-normalised ones.
        pairwise: Share of the pairs of a prompt's responses with different scores that stand
            in order, over all such pairs, with its interval by prompt; likewise.
        by_chance: The whole-order accuracy that random orders have: the mean of the share of
            orders that agree with the scores.
        left_out: What was left out, and how often.
    """

    dataset: str
    policy: str
    prompts: int
    responses: dict[str, int]
    whole_order: dict[str, dict[str, Any]]
    pairwise: dict[str, dict[str, Any]]
    by_chance: float
    left_out: dict[str, int]


def diagnose_orders(
    rows: Sequence[Candidates],
    *,
    name: str = "candidates",
    policy: ScoredBy,
    config: DiagnosisConfig | None = None,
) -> OrderFigures:
    """Say how far a policy ranks scored responses as their scores do.

    Args:
        rows: Prompts with scored responses. Responses without a score are left out and
            counted, and so are prompts without two different scores.
        name: The dataset's, for tables.
        policy: The model.
        config: Its sample (`max_pairs`, here of prompts) and intervals.

    Returns:
        The figures.

    Raises:
        InputError: If no prompt has two responses with different scores.

    Source:
        arXiv:2405.19534, Definition A.8 (whole order; equal scores ask for no order) and
        Definition 2.3 for each pair.
    """
    config, left_out = config or DiagnosisConfig(), Counter[str]()
    used = [row for row in (_scored_part(row, left_out) for row in rows) if row is not None]
    used = _sampled(used, config, left_out)
    if not used:
        raise InputError.of(
            saw=f"no prompt in {name} with two responses of different scores",
            expected="candidates with scores",
            cure="score them first: prefstage judge",
        )
    scored = score_candidates(used, policy.scorer, policy.encoder)
    ranks = [_ranks(row) for row in used]
    values = {
        "log_probs": [torch.from_numpy(sums) for sums, _ in scored],
        "normalised": [torch.from_numpy(sums / lengths) for sums, lengths in scored],
    }
    return OrderFigures(
        dataset=name,
        policy=policy.name,
        prompts=len(used),
        responses=dict(sorted(Counter(str(len(row.responses)) for row in used).items())),
        whole_order={
            kind: _interval(order_accuracy(each, ranks), range(len(used)), config)
            for kind, each in values.items()
        },
        pairwise={kind: _pairwise(each, ranks, config) for kind, each in values.items()},
        by_chance=float(np.mean([_chance(each) for each in ranks])),
        left_out=dict(left_out),
    )


def _ranks(row: Candidates) -> torch.Tensor:
    """Rank of each response, the best 0; equal scores have equal ranks."""
    scores = torch.tensor([s for s in row.scores if s is not None], dtype=torch.float64)
    ranks: torch.Tensor = torch.unique(-scores, return_inverse=True)[1]
    return ranks


def _scored_part(row: Candidates, left_out: Counter[str]) -> Candidates | None:
    """The prompt's responses with a finite score, or None if two different ones are lacking."""
    kept = [
        index for index, score in enumerate(row.scores) if score is not None and np.isfinite(score)
    ]
    if len(kept) < len(row.responses):
        left_out["responses without a score"] += len(row.responses) - len(kept)
    if len({row.scores[index] for index in kept}) < _TWO:
        left_out["prompts without two different scores"] += 1
        return None
    return row.only(kept)


def _sampled(
    rows: list[Candidates], config: DiagnosisConfig, left_out: Counter[str]
) -> list[Candidates]:
    if config.max_pairs is None or config.max_pairs >= len(rows):
        return rows
    left_out["prompts beyond max_pairs"] += len(rows) - config.max_pairs
    places = np.random.default_rng(config.seed).choice(len(rows), config.max_pairs, replace=False)
    return [rows[place] for place in sorted(places)]


def _pairwise(
    values: Sequence[torch.Tensor], ranks: Sequence[torch.Tensor], config: DiagnosisConfig
) -> dict[str, Any]:
    first, second, owners = list[float](), list[float](), list[int]()
    for number, (value, rank) in enumerate(zip(values, ranks, strict=True)):
        better, worse = torch.nonzero(rank[:, None] < rank[None, :], as_tuple=True)
        first += value[better].tolist()
        second += value[worse].tolist()
        owners += [number] * len(better)
    sides = [torch.tensor(each, dtype=torch.float64) for each in (first, second)]
    return {"pairs": len(first), **_interval(ranking_accuracy(*sides), owners, config)}


def _interval(
    values: torch.Tensor, owners: Sequence[int], config: DiagnosisConfig
) -> dict[str, Any]:
    how = {"confidence": config.confidence, "resamples": config.resamples, "seed": config.seed}
    return asdict(bootstrap_interval(values, owners, **how))  # type: ignore[arg-type]  # by name


def _chance(ranks: torch.Tensor) -> float:
    """Share of the n! orders that agree with ranks, of which equal ones ask for no order."""
    counts = torch.unique(ranks, return_counts=True)[1].tolist()
    agreeing = int(np.prod([factorial(count) for count in counts], dtype=object))
    return agreeing / factorial(len(ranks))
