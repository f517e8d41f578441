"""Intra-diversity: how far apart a policy sees the two responses of a pair."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from torch import Tensor

from prefstage.core.errors import InputError
from prefstage.measuring.checks import check_some, exact

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class IntraDiversity:
    """Log-probability of chosen over rejected, over the pairs of a set.

    Attributes:
        mean: Of log π(y_w|x) - log π(y_l|x), nats.
        std: Over the pairs (population), nats.
        quantiles: Value at each of `QUANTILES`, nats.
        pairs: How many.
    """

    mean: float
    std: float
    quantiles: dict[float, float]
    pairs: int


def intra_diversity(
    chosen: Float[Tensor, " pairs"], rejected: Float[Tensor, " pairs"]
) -> IntraDiversity:
    """Mean log-probability of chosen over rejected under the policy, and its spread.

    ``E[log π_θ(y_w|x) - log π_θ(y_l|x)]``. On-policy pairs stay near a constant while a
    policy trains on them; off-policy pairs wander. See `fluctuation_range`.

    Args:
        chosen: log π_θ(y_w|x), summed over tokens. [pairs], nats.
        rejected: log π_θ(y_l|x), likewise. [pairs], nats.

    Returns:
        Mean, standard deviation and quantiles over the pairs.

    Raises:
        InputError: If there is no pair, shapes differ, or a value is not finite.

    Source:
        Sun et al. 2025, arXiv:2508.10530, Eq. 14; the spread is ours.
    """
    check_some({"chosen": chosen})
    first, second = exact(chosen=chosen, rejected=rejected)
    apart = (first - second).cpu().numpy()
    levels = np.quantile(apart, QUANTILES)
    return IntraDiversity(
        mean=float(apart.mean()),
        std=float(apart.std()),
        quantiles=dict(zip(QUANTILES, levels.tolist(), strict=True)),
        pairs=len(apart),
    )


def fluctuation_range(means: Sequence[float]) -> float:
    """How far intra-diversity wandered over training.

    Args:
        means: `IntraDiversity.mean` at each evaluation, in order. Nats.

    Returns:
        Greatest less least, nats.

    Raises:
        InputError: If there is no value.

    Source:
        Sun et al. 2025, arXiv:2508.10530, Figure 3.
    """
    if not means:
        raise InputError.of(
            saw="no evaluation", expected="at least one", cure="evaluate during training"
        )
    return max(means) - min(means)
