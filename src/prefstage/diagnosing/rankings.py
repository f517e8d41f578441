"""Does a model order the pair rightly? Ranking accuracy in all its forms, pair by pair.

Every function gives one value a pair (or prompt), so that the caller may average, group or
resample them; the accuracy of a dataset is the mean. All compare in float64.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from prefstage.core import InputError


def exact(**tensors: Tensor) -> list[Tensor]:
    """Bring tensors of equal shape to float64, where sums of token log-probs are compared.

    Args:
        **tensors: The tensors by their names. All of one shape.

    Returns:
        The tensors in the order given, in float64, on their device, without gradient.

    Raises:
        InputError: If shapes differ, or a value is not finite.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    InputError.unless(
        len(set(shapes.values())) <= 1,
        saw=", ".join(f"{name} of shape {shape}" for name, shape in shapes.items()),
        expected="one value a pair in each",
        cure="give both sides of the same pairs",
    )
    for name, tensor in tensors.items():
        bad = ~torch.isfinite(tensor.reshape(-1))
        if bad.any():
            position = int(bad.nonzero()[0])
            raise InputError.of(
                saw=f"{name}[{position}] = {float(tensor.reshape(-1)[position])}",
                expected="finite numbers",
                cure="look at that pair: its log-probs overflowed, or the model has diverged",
            )
    return [tensor.detach().double() for tensor in tensors.values()]


def check_positive(**settings: float) -> None:
    """Check settings that must be positive.

    Args:
        **settings: The values by their names.

    Raises:
        InputError: If one is not a positive number.
    """
    for name, value in settings.items():
        InputError.unless(
            0.0 < value < float("inf"),
            saw=f"{name}={value}",
            expected="a positive number",
            cure=f"set {name} > 0",
        )


def check_some(name: str, tensor: Tensor) -> None:
    """Check that there is at least one pair.

    Args:
        name: The tensor's.
        tensor: One value a pair.

    Raises:
        InputError: If it is empty.
    """
    InputError.unless(
        tensor.numel(),
        saw=f"{name} without a pair",
        expected="at least one pair",
        cure="score pairs first",
    )


HALF = 0.5
TIE_TOLERANCE = 0.01  # ε of Definition C.1

TieScale = Literal["probability", "normalised_probability", "normalised_log_prob"]
TIE_SCALES: tuple[TieScale, ...] = get_args(TieScale)


def mean_log_probs(
    log_probs: Float[Tensor, " pairs"], lengths: Int[Tensor, " pairs"]
) -> Float[Tensor, " pairs"]:
    """Length-normalised log-probs: log of the geometric mean of the token probabilities.

    ``log π̃(y|x) = (1/L) Σ_t log π(y_t | x, y_<t)``

    Args:
        log_probs: log π(y|x), summed over the response's tokens. [pairs], nats.
        lengths: L, number of tokens of the response, end-of-turn included. [pairs], >= 1.

    Returns:
        log π̃(y|x). [pairs], nats a token, float64.

    Raises:
        InputError: If a length is below 1, shapes differ, or a log-prob is not finite.

    Source:
        Chen et al. 2024, arXiv:2405.19534, Eq. 15.
    """
    total, count = exact(log_probs=log_probs, lengths=lengths)
    if (count < 1).any():
        raise InputError.of(
            saw=f"a length of {int(count.min())} tokens",
            expected="at least 1",
            cure="leave empty responses out, and say how many there were",
        )
    return total / count


def ranking_accuracy(
    chosen: Float[Tensor, " pairs"], rejected: Float[Tensor, " pairs"]
) -> Float[Tensor, " pairs"]:
    """Whether the policy finds the chosen response at least as likely as the rejected one.

    ``R(x, y_w, y_l; π) = 1[π(y_w|x) >= π(y_l|x)]``. A tie counts as right. With
    `mean_log_probs` of both sides this is the length-normalised accuracy R̃.

    Args:
        chosen: log π(y_w|x) under the policy, summed over tokens; or its `mean_log_probs`.
            [pairs], nats.
        rejected: The same of the rejected response. [pairs], nats.

    Returns:
        1 where the order is right, otherwise 0. [pairs], float64; R of a dataset is its mean.

    Raises:
        InputError: If shapes differ or a value is not finite.

    Source:
        Chen et al. 2024, arXiv:2405.19534, Definition 2.3, Eq. 1; R̃: Remark 2.4 and Eq. 15.
    """
    first, second = exact(chosen=chosen, rejected=rejected)
    return (first >= second).double()


def reward_accuracy(
    chosen: Float[Tensor, " pairs"], rejected: Float[Tensor, " pairs"]
) -> Float[Tensor, " pairs"]:
    """Whether training has raised the chosen response more than the rejected one.

    ``1[a > b] + ½·1[a = b]``. Not the ranking accuracy: a policy that orders every pair
    wrongly can have a reward accuracy of 1.

    Args:
        chosen: a = log π(y_w|x) - log π_ref(y_w|x). [pairs], nats; any positive multiple
            (a reward β·a) gives the same.
        rejected: b, the same of the rejected response. [pairs], nats.

    Returns:
        1, ½ or 0. [pairs], float64.

    Raises:
        InputError: If shapes differ or a value is not finite.

    Source:
        Chen et al. 2024, arXiv:2405.19534, Remark 2.5. Departure: a tie counts ½, there 0,
        which shows an untrained policy (a = b = 0 on every pair) at 0 % instead of 50 %.
    """
    first, second = exact(chosen=chosen, rejected=rejected)
    return (first > second).double() + HALF * (first == second)


def ranking_accuracy_with_ties(
    first: Float[Tensor, " pairs"],
    second: Float[Tensor, " pairs"],
    agreement: Float[Tensor, " pairs"],
    *,
    lengths: tuple[Int[Tensor, " pairs"], Int[Tensor, " pairs"]] | None = None,
    scale: TieScale = "probability",
    tolerance: float = TIE_TOLERANCE,
) -> Float[Tensor, " pairs"]:
    """Ranking accuracy where raters may be split evenly.

    Where α > ½ right is ``v(y_1) > v(y_2)``, where α < ½ the opposite, and where α = ½
    ``|v(y_1) - v(y_2)| < ε``. What v is, `scale` says:

    - ``probability``: v = π(y|x), R as published. Probabilities of whole responses are so
      small that any two of more than a few tokens are tied.
    - ``normalised_probability``: v = π(y|x)^(1/L), R̃ as published.
    - ``normalised_log_prob``: v = (1/L) log π(y|x), ours: ε is then relative to the
      probability of a token, which any two responses can be apart by.

    Args:
        first: log π(y_1|x) under the policy, summed over tokens. [pairs], nats.
        second: The same of the other response. [pairs], nats.
        agreement: α, the share of raters that prefer y_1. [pairs], in [0, 1]; ½ is a tie.
        lengths: Tokens of both responses; needed by the two normalised scales.
        scale: What is compared.
        tolerance: ε, > 0; a probability, or nats a token.

    Returns:
        1 or 0. [pairs], float64.

    Raises:
        InputError: If `lengths` and `scale` do not go together, α is outside [0, 1], ε is
            not positive, shapes differ, or a value is not finite.

    Source:
        Chen et al. 2024, arXiv:2405.19534, Definition C.1, Eq. 14 (strict comparisons, while
        Eq. 1 counts equal likelihoods as right); ε = 0.01 is theirs. Erratum: from Table 4
        to Table 5 every model's R falls by the same factor 0.865, as if all ties counted as
        wrong; by Eq. 14 on probabilities they would count as right, and R would rise.
    """
    check_positive(tolerance=tolerance)
    InputError.unless(
        scale in TIE_SCALES,
        saw=f"scale={scale!r}",
        expected=f"one of {', '.join(TIE_SCALES)}",
        cure="mend the name",
    )
    InputError.unless(
        (lengths is None) == (scale == "probability"),
        saw=f"scale={scale!r} {'without' if lengths is None else 'with'} lengths",
        expected="lengths with the normalised scales, and only there",
        cure="give lengths=(tokens of first, tokens of second), or leave them out",
    )
    v_first, v_second = exact(first=first, second=second)
    if lengths is not None:
        v_first, v_second = mean_log_probs(first, lengths[0]), mean_log_probs(second, lengths[1])
    if scale != "normalised_log_prob":
        v_first, v_second = v_first.exp(), v_second.exp()
    _, alpha = exact(first=first, agreement=agreement)
    if ((alpha < 0) | (alpha > 1)).any():
        raise InputError.of(
            saw=f"agreement from {float(alpha.min())} to {float(alpha.max())}",
            expected="shares of raters in [0, 1]",
            cure="divide the votes for the first response by all votes",
        )
    tied = (v_first - v_second).abs() < tolerance
    ordered = torch.where(alpha > HALF, v_first > v_second, v_first < v_second)
    return torch.where(alpha == HALF, tied, ordered).double()


def order_accuracy(
    log_probs: Sequence[Float[Tensor, " _"]], ranks: Sequence[Int[Tensor, " _"]]
) -> Float[Tensor, " prompts"]:
    """Whether the policy puts all n responses of a prompt into the raters' order.

    ``R_{n>2} = 1[ρ = ν]``: right only if ``π(y_i|x) > π(y_j|x)`` for every i that is ranked
    before j. Two equally likely responses have no place in ν, so they count as wrong.

    Args:
        log_probs: For each prompt log π(y|x) of its responses, summed over tokens (or
            length-normalised, for R̃). [prompts] of [responses], nats.
        ranks: For each prompt the rank ρ of each response; the least is the best. Equal
            ranks ask for no order among themselves. [prompts] of [responses].

    Returns:
        1 or 0. [prompts], float64.

    Raises:
        InputError: If the numbers of prompts or responses differ, or a prompt has fewer
            than two ranks.

    Source:
        Chen et al. 2024, arXiv:2405.19534, Definition A.8, Eq. 11. Departure: equal ranks
        are allowed; the paper assumes a permutation.
    """
    InputError.unless(
        len(log_probs) == len(ranks),
        saw=f"{len(log_probs)} prompts with log-probs and {len(ranks)} with ranks",
        expected="as many of either",
        cure="give both for the same prompts",
    )
    same = []
    for values_of_prompt, ranks_of_prompt in zip(log_probs, ranks, strict=True):
        value, rank = exact(log_probs=values_of_prompt, ranks=ranks_of_prompt)
        before = rank[:, None] < rank[None, :]
        InputError.unless(
            before.any(),
            saw=f"ranks {ranks_of_prompt.tolist()}",
            expected="at least two different ranks a prompt",
            cure="leave prompts out whose responses are all ranked alike",
        )
        same.append((value[:, None] > value[None, :])[before].all())
    return torch.tensor(same, dtype=torch.float64)


BETAS = (0.01, 0.1, 1.0, 5.0, 10.0)
# ε: α = 1 is read as 1 - ε, since at α = 1 the optimum lies at infinity.
UNANIMITY = 0.001


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
    check_some("reference_chosen", reference_chosen)
    InputError.unless(
        betas,
        saw="no β",
        expected="at least one",
        cure=f"leave betas out for {BETAS}",
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
