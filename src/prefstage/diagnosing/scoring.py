"""Log-probs of a dataset's responses under a model, every response once; orders of responses."""

import json
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from math import factorial, isfinite, prod
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prefstage.core import InputError
from prefstage.data import Candidates, Pair, load_tokenizer
from prefstage.data.storage import Numbers
from prefstage.data.tokenising import ResponseEncoder, TokenTree, cause_of
from prefstage.diagnosing.config import DiagnosisConfig
from prefstage.diagnosing.numbers import bootstrap_interval
from prefstage.diagnosing.rankings import order_accuracy, ranking_accuracy
from prefstage.measuring.reliability import distinctness
from prefstage.scoring import ReferenceCache, Scorer


@dataclass(frozen=True)
class ScoredBy:
    """A model that scores pairs.

    Attributes:
        name: For people.
        scorer: A `Scorer`, or a `ReferenceCache`, which scores nothing that it remembers.
        encoder: Its tokenizer and template.
    """

    name: str
    scorer: Scorer | ReferenceCache
    encoder: ResponseEncoder


def as_scored_by(
    model: ScoredBy | str | Path, *, dtype: str = "auto", cache: Path | None = None, **encoding: Any
) -> ScoredBy:
    """The model that scores: itself, or a checkpoint loaded with its tokenizer.

    Args:
        model: The model, or its folder or Hub id.
        dtype: Of a checkpoint: auto, float32, bfloat16 or float16.
        cache: Folder for log-probs, of which none is computed again; None for no cache.
        **encoding: Arguments of its `ResponseEncoder`.

    Returns:
        The model.

    Raises:
        InputError: If it is neither.
        ModelError: If there is no such checkpoint.
    """
    if isinstance(model, ScoredBy):
        return model
    InputError.unless(
        isinstance(model, str | Path),
        saw=f"a model as a {type(model).__name__}",
        expected="a model folder, a Hub id, or ScoredBy(name, scorer, encoder)",
        cure="pass one of these",
    )
    scorer = Scorer.load(str(model), dtype=dtype)
    return ScoredBy(
        Path(model).name or str(model),
        scorer if cache is None else ReferenceCache(cache, scorer),
        ResponseEncoder(load_tokenizer(str(model)), **encoding),
    )


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


def score_pairs(pairs: Sequence[Pair], model: ScoredBy) -> PairLogProbs:
    """Score both sides of all pairs: each prompt once, each of its different responses once.

    Args:
        pairs: The pairs.
        model: Who scores.

    Returns:
        Log-probs and lengths, pair by pair.
    """
    encoder = model.encoder
    before = dict(vars(encoder.counts))
    trees, positions = pair_trees(pairs, encoder)
    counts = Counter({n: count - before[n] for n, count in vars(encoder.counts).items()})
    same = np.array([chosen == rejected for chosen, rejected in positions])
    for number in np.flatnonzero(same):
        pair = pairs[int(number)]
        cause = cause_of(pair.prompt, pair.chosen[0], pair.rejected[0], encoder)
        counts[f"same_tokens_by_{cause}"] += 1
    started = time.perf_counter()
    scored = model.scorer.score(trees)
    seconds = time.perf_counter() - started
    sums = [tree.sums.double().numpy() for tree in scored]
    lengths = [[len(ids) for ids in tree.response_ids] for tree in trees]
    chosen, rejected = (
        [np.array([numbers[t][r] for t, r in side]) for numbers in (sums, lengths)]
        for side in zip(*positions, strict=True)
    )
    unique = {(tree.prompt_ids, ids): len(ids) for tree in trees for ids in tree.response_ids}
    return PairLogProbs(
        chosen=chosen[0],
        rejected=rejected[0],
        chosen_tokens=chosen[1],
        rejected_tokens=rejected[1],
        same_tokens=same,
        tokens_scored=sum(len(tokens) for tree in scored for tokens in tree.per_token),
        tokens_unique=sum(unique.values()),
        counts={name: count for name, count in counts.items() if count},
        seconds=seconds,
    )


def score_candidates(rows: Sequence[Candidates], model: ScoredBy) -> list[tuple[Numbers, Numbers]]:
    """Score all responses of prompts.

    Args:
        rows: Prompts with their responses.
        model: Who scores.

    Returns:
        For each prompt log π(y|x) of its responses, nats, and their tokens. [prompts] of
        ([responses], [responses]).
    """
    trees = [model.encoder.encode(row.prompt, row.messages()) for row in rows]
    return [
        (scored.sums.double().numpy(), np.array([len(ids) for ids in tree.response_ids]))
        for tree, scored in zip(trees, model.scorer.score(trees), strict=True)
    ]


def distinct_answers(
    answers: Sequence[Candidates], pairs: Sequence[Pair], scored: PairLogProbs, policy: ScoredBy
) -> dict[str, Any]:
    """Whether the policy finds its answers likelier than the responses of the pairs.

    The pairs are not scored again.

    Args:
        answers: The policy's answers, by prompt.
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
        off.setdefault(pair.prompt_id, {}).update(
            zip(map(_key, (pair.chosen, pair.rejected)), values, strict=True)
        )
    rows = [row for row in answers if row.responses and row.prompt_id in off]
    if not rows:
        return {"prompts": 0, "comparisons": 0, "share": None}
    sides = [
        (sums, np.array(list(off[row.prompt_id].values())))
        for row, (sums, _) in zip(rows, score_candidates(rows, policy), strict=True)
    ]
    return {
        "prompts": len(rows),
        "comparisons": sum(len(on) * len(other) for on, other in sides),
        "share": distinctness(sides),
    }


_Position = tuple[int, int]


def pair_trees(
    pairs: Sequence[Pair], encoder: ResponseEncoder
) -> tuple[list[TokenTree], list[tuple[_Position, _Position]]]:
    """One tree a prompt with its different responses, and the positions of each pair's two.

    Args:
        pairs: The pairs.
        encoder: Tokenizer and template.

    Returns:
        The trees, and for each pair the (tree, response) of its chosen and rejected side.
    """
    prompts: dict[str, tuple[Any, dict[str, Any]]] = {}
    for pair in pairs:
        _, responses = prompts.setdefault(pair.prompt_id, (pair.prompt, {}))
        for side in (pair.chosen, pair.rejected):
            responses.setdefault(_key(side), side[0])
    trees, where = list[TokenTree](), dict[str, dict[str, _Position]]()
    for prompt_id, (prompt, responses) in prompts.items():
        tree = encoder.encode(prompt, list(responses.values()))
        unique = list(dict.fromkeys(tree.response_ids))  # truncation may make two alike
        where[prompt_id] = {
            key: (len(trees), unique.index(ids))
            for key, ids in zip(responses, tree.response_ids, strict=True)
        }
        trees.append(TokenTree(tree.prompt_id, tree.prompt_ids, tuple(unique)))
    return trees, [
        (where[pair.prompt_id][_key(pair.chosen)], where[pair.prompt_id][_key(pair.rejected)])
        for pair in pairs
    ]


def _key(side: Sequence[Any]) -> str:
    return json.dumps(side, sort_keys=True)


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
    rows: Iterable[Candidates],
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
    used = list[Candidates]()
    for row in rows:
        kept = [n for n, score in enumerate(row.scores) if score is not None and isfinite(score)]
        if len(kept) < len(row.responses):
            left_out["responses without a score"] += len(row.responses) - len(kept)
        if len({row.scores[n] for n in kept}) > 1:
            used.append(row.only(kept))
        else:
            left_out["prompts without two different scores"] += 1
    if config.max_pairs is not None and config.max_pairs < len(used):
        left_out["prompts beyond max_pairs"] += len(used) - config.max_pairs
        rng = np.random.default_rng(config.seed)
        used = [used[i] for i in sorted(rng.choice(len(used), config.max_pairs, replace=False))]
    InputError.unless(
        used,
        saw=f"no prompt in {name} with two responses of different scores",
        expected="candidates with scores",
        cure="score them first: prefstage judge",
    )
    scored = score_candidates(used, policy)
    # Ranks from 0, the best; equal scores have equal ranks, which ask for no order.
    orders = [
        torch.unique(
            -torch.tensor(row.scores, dtype=torch.float64), return_inverse=True, return_counts=True
        )[1:]
        for row in used
    ]
    ranks = [rank for rank, _ in orders]
    # Share of the n! orders that agree with ranks: equal ones may stand in any order.
    chances = [prod(map(factorial, n.tolist())) / factorial(int(n.sum())) for _, n in orders]
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
            kind: asdict(
                bootstrap_interval(
                    order_accuracy(numbers, ranks), range(len(used)), **config.bootstrap
                )
            )
            for kind, numbers in values.items()
        },
        pairwise={kind: _pairwise(numbers, ranks, config) for kind, numbers in values.items()},
        by_chance=float(np.mean(chances)),
        left_out=dict(left_out),
    )


def _pairwise(
    values: Sequence[torch.Tensor], ranks: Sequence[torch.Tensor], config: DiagnosisConfig
) -> dict[str, Any]:
    orders = [torch.nonzero(r[:, None] < r[None, :], as_tuple=True) for r in ranks]
    better, worse = (
        torch.cat([value[order[side]] for value, order in zip(values, orders, strict=True)])
        for side in (0, 1)
    )
    # The prompt of each pair: pairs of one prompt are drawn together by the bootstrap.
    prompts = list(chain.from_iterable([n] * len(order[0]) for n, order in enumerate(orders)))
    return {
        "pairs": len(prompts),
        **asdict(bootstrap_interval(ranking_accuracy(better, worse), prompts, **config.bootstrap)),
    }
