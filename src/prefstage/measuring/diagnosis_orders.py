"""Whole orders: does a model rank the n responses of a prompt as their scores do?"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import factorial
from typing import Any

import numpy as np
import torch

from prefstage.core.errors import InputError
from prefstage.data.records import Candidates
from prefstage.measuring.bootstrap import bootstrap_interval
from prefstage.measuring.diagnosis_config import DiagnosisConfig
from prefstage.measuring.diagnosis_scoring import ScoredBy, score_candidates
from prefstage.measuring.rankings import order_accuracy, ranking_accuracy

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
