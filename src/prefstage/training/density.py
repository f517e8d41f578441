"""How much likelier a prompt is among desirable responses than among the others."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from prefstage.core import digest
from prefstage.training.items import ItemSet

_WORDS = 256  # tokens share this many counts, so that any vocabulary makes a small problem
_RIDGE = 1.0
_NEWTON_STEPS = 25


def with_density_ratios(unpaired: ItemSet) -> ItemSet:
    """Labelled responses with the density ratio of each one's prompt.

    Args:
        unpaired: Labelled responses.

    Returns:
        The same, each item with its `density_ratio`.
    """
    ratios = density_ratios(
        [item.trees[0].prompt_ids for item in unpaired.items],
        [bool(item.desirable) for item in unpaired.items],
    )
    items = (
        replace(item, density_ratio=ratio)
        for item, ratio in zip(unpaired.items, ratios, strict=True)
    )
    return replace(
        unpaired, items=tuple(items), fingerprint=digest([unpaired.fingerprint, "density"])
    )


def density_ratios(prompts: Sequence[Sequence[int]], desirable: Sequence[bool]) -> list[float]:
    """Estimate p(x | desirable) / p(x | undesirable) by a classifier of prompts.

    A logistic regression with classes of equal weight, whose odds are the ratio. Prompts are
    halved, and each half gets the odds of the classifier fitted on the other: one that had
    seen a prompt would know its label.

    Args:
        prompts: Tokens of each response's prompt. [items].
        desirable: Whether each response is desirable. [items].

    Returns:
        The ratios, > 0; 1 where a half has one label alone. [items].

    Source:
        Jung et al. 2024, arXiv:2404.04656 (UDM). Departure: prompts are counts of tokens
        rather than embeddings by another model, which would have to be there.
    """
    texts = [tuple(prompt) for prompt in prompts]
    # By lot, and the same in any order of the data: subjects often take turns in it.
    lots = torch.randperm(len(set(texts)), generator=torch.Generator().manual_seed(0)) % 2
    halves = dict(zip(sorted(set(texts)), lots.tolist(), strict=True))
    half = torch.tensor([halves[text] for text in texts])
    labels = torch.tensor(desirable, dtype=torch.float64)
    features = torch.stack([_counts(text) for text in texts])
    odds = torch.zeros(len(texts), dtype=torch.float64)
    for side in (0, 1):
        fitted, judged = half != side, half == side
        if len({*labels[fitted].tolist()}) > 1:
            odds[judged] = features[judged] @ _fit(features[fitted], labels[fitted])
    return odds.exp().tolist()


# Shares of tokens, as a vector of length 1, and a constant.
def _counts(tokens: Sequence[int]) -> Tensor:
    counts = torch.bincount(torch.tensor([t % _WORDS for t in tokens], dtype=torch.long))
    row = torch.zeros(_WORDS + 1, dtype=torch.float64)
    row[: len(counts)] = torch.nn.functional.normalize(counts.double(), dim=0)
    row[-1] = 1.0
    return row


# Ridge logistic regression by Newton's method, whose steps of so few weights are exact.
def _fit(features: Tensor, labels: Tensor) -> Tensor:
    share = labels.mean()
    weights = torch.where(labels > 0, 0.5 / share, 0.5 / (1 - share))
    slopes = torch.zeros(features.shape[1], dtype=torch.float64)
    ridge = torch.full_like(slopes, _RIDGE)
    ridge[-1] = 1e-9  # the constant is free
    for _ in range(_NEWTON_STEPS):
        p = torch.sigmoid(features @ slopes)
        gradient = features.T @ (weights * (p - labels)) + ridge * slopes
        curvature = (features.T * (weights * p * (1 - p))) @ features + torch.diag(ridge)
        slopes -= torch.linalg.solve(curvature, gradient)
    return slopes
