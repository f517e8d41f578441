"""What perfect training would reach from this reference: R*, and the alignment gap."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import torch
from jaxtyping import Float
from torch import Tensor

from prefstage.core.errors import InputError
from prefstage.measuring.checks import check_positive, check_some, exact

BETAS = (0.01, 0.1, 1.0, 5.0, 10.0)
UNANIMITY = 0.001
"""ε: α = 1 is read as 1 - ε, since at α = 1 the optimum lies at infinity."""


@dataclass(frozen=True)
class IdealizedAccuracy:
    """R* over a range of β.

    Attributes:
        by_beta: R* at each β, in [0, 1].
        min: Least of them.
        median: Their median.
        max: Greatest of them.
    """

    by_beta: dict[float, float]

    @property
    def min(self) -> float:
        """Least accuracy over the range."""
        return min(self.by_beta.values())

    @property
    def median(self) -> float:
        """Median over the range; between the middle two of an even number."""
        return float(median(self.by_beta.values()))

    @property
    def max(self) -> float:
        """Greatest accuracy over the range."""
        return max(self.by_beta.values())


def idealized_log_ratio(
    reference_chosen: Float[Tensor, " pairs"],
    reference_rejected: Float[Tensor, " pairs"],
    agreement: Float[Tensor, " pairs"],
    *,
    beta: float,
    unanimity: float = UNANIMITY,
) -> Float[Tensor, " pairs"]:
    """Log-ratio of chosen over rejected under the optimum of DPO or RLHF.

    ``log π*(y_w)/π*(y_l) = log π_ref(y_w)/π_ref(y_l) + (1/β)·log(α/(1-α))``

    Args:
        reference_chosen: log π_ref(y_w|x), summed over tokens (or length-normalised, for
            R̃*). [pairs], nats.
        reference_rejected: The same of the rejected response. [pairs], nats.
        agreement: α, the share of raters that prefer y_w. [pairs], in [0, 1].
        beta: Pull towards the reference, > 0. 1/nats.
        unanimity: ε in (0, ½): α = 1 is read as 1 - ε and α = 0 as ε; others as they are.

    Returns:
        The log-ratio. [pairs], nats, float64.

    Raises:
        InputError: If α is outside [0, 1], a setting is out of range, shapes differ, or a
            value is not finite.

    Source:
        Chen et al. 2024, arXiv:2405.19534, Theorem 3.1, Eq. 2, in logs; ε: App. C.4.
    """
    check_positive(beta=beta, unanimity=unanimity)
    chosen, rejected, alpha = exact(
        reference_chosen=reference_chosen,
        reference_rejected=reference_rejected,
        agreement=agreement,
    )
    if ((alpha < 0) | (alpha > 1)).any():
        raise InputError.of(
            saw=f"agreement from {float(alpha.min())} to {float(alpha.max())}",
            expected="shares of raters in [0, 1]",
            cure="divide the votes for the chosen response by all votes",
        )
    alpha = torch.where(alpha == 1, 1 - unanimity, torch.where(alpha == 0, unanimity, alpha))
    return chosen - rejected + torch.logit(alpha) / beta


def idealized_ranking_accuracy(
    reference_chosen: Float[Tensor, " pairs"],
    reference_rejected: Float[Tensor, " pairs"],
    agreement: Float[Tensor, " pairs"],
    *,
    betas: Sequence[float] = BETAS,
    unanimity: float = UNANIMITY,
) -> IdealizedAccuracy:
    """Ranking accuracy of the policy that perfect training on perfect votes would give.

    ``R* = E 1[ (π_ref(y_w)/π_ref(y_l)) · (α/(1-α))^(1/β) > 1 ]``, in logs. Length-normalised
    log-probs give R̃*.

    Args:
        reference_chosen: As for `idealized_log_ratio`. [pairs], nats.
        reference_rejected: Likewise. [pairs], nats.
        agreement: α. [pairs], in [0, 1]. Bare labels (all 1) leave only ε to decide: without
            votes R* says little.
        betas: The values of β, each > 0.
        unanimity: As for `idealized_log_ratio`.

    Returns:
        R* at every β, with least, median and greatest.

    Raises:
        InputError: If there is no pair or no β, or as `idealized_log_ratio`.

    Source:
        Chen et al. 2024, arXiv:2405.19534, Corollary 3.3, Eq. 3; the range of β: App. C.4.
    """
    check_some({"reference_chosen": reference_chosen})
    if not betas:
        raise InputError.of(
            saw="no β", expected="at least one", cure=f"leave betas out for {BETAS}"
        )
    return IdealizedAccuracy(
        {
            float(beta): float(
                (
                    idealized_log_ratio(
                        reference_chosen,
                        reference_rejected,
                        agreement,
                        beta=beta,
                        unanimity=unanimity,
                    )
                    > 0
                )
                .double()
                .mean()
            )
            for beta in betas
        }
    )


def alignment_gap(idealized: IdealizedAccuracy, ranking_accuracy: float) -> float:
    """How far a trained policy stays behind what perfect training would reach.

    ``median_β R* - R``

    Args:
        idealized: R* (or R̃*) of the policy's reference.
        ranking_accuracy: R (or R̃) of the policy on the same pairs, in [0, 1].

    Returns:
        The gap, in [-1, 1].

    Source:
        Chen et al. 2024, arXiv:2405.19534, §3.3 ("measured to the median idealized R").
    """
    return idealized.median - ranking_accuracy
