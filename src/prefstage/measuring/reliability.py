"""How far a stage call can be trusted: the judge's errors, and the sides' distinctness."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr, ndtri, owens_t

from prefstage.core import InputError
from prefstage.measuring.boundary import HALF, JudgedPrompt, PromptVotes
from prefstage.measuring.settings import JudgeErrors

if TYPE_CHECKING:
    from prefstage.data import ResponseEncoder
    from prefstage.scoring import Scorer

Floats = NDArray[np.float64]
LogProbs = tuple[ArrayLike, ArrayLike]
"""Of one prompt, by the policy: its on-policy responses [m] and its off-policy ones [n], nats."""

STEPS = 200  # equal parts of what a judge can see, from ½ to its accuracy
_HALVINGS = 40
_SHIFTS = 15  # of the grid over a judge's bias
_PRIOR_PROMPTS = 2.0  # what the prior of the variance weighs
_PRIOR_SHARE = 1 / 3  # a prompt's variance over a vote's; 2 x 2: 1/4 alone, 5/12 misread alike
_LEAST_SHARE = 0.05


@lru_cache(maxsize=256)
def shares_behind(accuracy: float, errors: JudgeErrors) -> Floats:
    """How many of all true scores lie behind each part of the scores that a judge can see.

    A judge that is right in a share a of the comparisons sees scores from 1 - a to a. Errors in
    ``any-pair`` alike press the true score T linearly, ``½ + (2a - 1)(T - ½)``: equal parts
    hide equal shares of the T. A judge that errs in ``close-pairs`` reads each response's
    quality with an error: the difference g of two qualities is normal, the difference read is
    g plus noise, and both correlate by cos φ. If it sees ``θ = Φ(k)``, the truth is
    ``T = Φ(k / cos φ)``, and it is wrong in a share ``(1/π) ∫_0^φ exp(-k² / (2 cos² u)) du`` of
    the comparisons (2 times Owen's T function), which must be 1 - a. Close scores are pressed
    less than far ones, so that fewer truths lie behind a seen score near ½. ``unknown`` is one
    half each.

    Args:
        accuracy: a, in (½, 1].
        errors: Where it errs.

    Returns:
        The shares of the true scores on one side of ½, from ½ outwards; 1 in all. [STEPS].

    Source:
        Ours; the integral as in Owen 1956, "Tables for computing bivariate normal
        probabilities", Ann. Math. Stat. 27(4). docs/theory.md, "The decision guide".
    """
    alike = np.full(STEPS, 1.0 / STEPS)
    if errors == "any-pair" or accuracy == 1.0:
        return alike
    # T at the edges of the parts, of a judge that errs in close pairs. [STEPS + 1]. The angle φ
    # that explains the accuracy has no closed form, but the share of errors grows with φ.
    seen = ndtri(HALF + (accuracy - HALF) * np.arange(STEPS) / STEPS)
    low, high = np.zeros(STEPS), np.full(STEPS, np.pi / 2)
    for _ in range(_HALVINGS):
        middle = HALF * (low + high)
        reached = 2.0 * owens_t(seen, np.tan(middle)) >= 1.0 - accuracy
        low, high = np.where(reached, low, middle), np.where(reached, middle, high)
    close = np.diff(2.0 * np.append(ndtr(seen / np.cos(high)), 1.0) - 1.0)
    return close if errors == "close-pairs" else HALF * (alike + close)


@dataclass(frozen=True)
class ScoreSummary:
    """What the reliability takes of the prompts' scores; arrays hold many measurements.

    Attributes:
        prompts: Number of prompts used. [...].
        mean: Mean of their scores, in [0, 1]. [...].
        squares: Sum of squared distances of their scores from the mean. [...].
    """

    prompts: ArrayLike
    mean: ArrayLike
    squares: ArrayLike

    @classmethod
    def of(cls, votes: Sequence[PromptVotes]) -> "ScoreSummary":
        """Sum up judged prompts; ties count half whatever the tie rule, as they favour nobody.

        Args:
            votes: Of each prompt used.

        Returns:
            The summary of one measurement.
        """
        scores = np.array(
            [(v.votes_on + HALF * (v.ties + v.undecided)) / v.comparisons for v in votes]
        )
        return cls(len(scores), scores.mean(), ((scores - scores.mean()) ** 2).sum())


def chance_above_half(
    seen: ScoreSummary,
    *,
    accuracy: ArrayLike,
    bias: ArrayLike = 0.0,
    overlap: ArrayLike = 0.0,
    errors: JudgeErrors = "unknown",
) -> Floats:
    """P(true boundary score > ½), given the scores by an imperfect judge.

    The true boundary score T is the one that a judge without error would find on all prompts
    like these and all responses that both sides could give. Beforehand T is uniform on
    ``½ ± (1 - o²)/2``, all that an overlap o allows. A judge that is right in a share a of the
    comparisons sees a score θ between ``½ - (a - ½)(1 - o²)`` and ``½ + (a - ½)(1 - o²)``;
    how likely each θ is beforehand, `shares_behind` tells by where the judge errs. One whose
    accuracies differ by 2b between the sides sees b more; b is uniform on ``± bias``. The
    prompts' mean score s has the likelihood of ``n/d`` votes, ``[θ^s (1 - θ)^(1 - s)]^(n/d)``,
    where d is the variance of a prompt's score as a share of that of a single vote, estimated
    from the scores themselves. A rule that stops because of what it has seen changes none of
    this.

    Args:
        seen: The prompts' scores by hard votes.
        accuracy: a, in (½, 1]; a mean over the two sides. Broadcast against `seen`.
        bias: Half the largest difference between the judge's accuracy where the on-policy
            response is better and where the off-policy one is; in [0, 1 - a].
        overlap: o = Σ min(π_θ, π_off), in [0, 1).
        errors: Where the judge errs.

    Returns:
        The probability. [...].

    Raises:
        InputError: If a number is outside its range.

    Source:
        The measured score: Sun et al. 2025, arXiv:2508.10530, Algorithm 1. The rest is ours:
        docs/theory.md, "The decision guide", and its calibration.
    """
    n, s, squares, a, b, o = (
        x.astype(np.float64)
        for x in np.broadcast_arrays(
            *(seen.prompts, seen.mean, seen.squares, accuracy, bias, overlap)
        )
    )
    InputError.unless(
        ((a > HALF) & (a <= 1.0)).all(),
        saw=f"judge accuracy {accuracy!r}",
        expected="more than 1/2 (a coin's), and at most 1",
        cure="give the share of comparisons in which it names the better response",
    )
    InputError.unless(
        ((b >= 0.0) & (a + b <= 1.0 + 1e-9)).all(),
        saw=f"judge bias {bias!r} at accuracy {accuracy!r}",
        expected="from 0 to 1 - accuracy, as the bias is part of its errors",
        cure="give half the difference of its accuracies on the two sides",
    )
    InputError.unless(
        ((o >= 0.0) & (o < 1.0)).all(),
        saw=f"overlap {overlap!r}",
        expected="from 0 (no response in common) to below 1 (the same writer)",
        cure="leave it out where it is not known",
    )
    # Variance of a prompt's score over that of a single vote. A few prompts say little of a
    # variance, so a prior stands in for `_PRIOR_PROMPTS` more; + ½ keeps a mean of 0 or 1 from
    # a division by zero.
    inner = (n * s + HALF) / (n + 1.0)
    spread = squares / (inner * (1.0 - inner)) + _PRIOR_PROMPTS * _PRIOR_SHARE
    votes = n / np.clip(spread / (n - 1.0 + _PRIOR_PROMPTS), _LEAST_SHARE, 1.0)
    # The integral over θ and the bias as a sum over midpoints. [..., shifts, STEPS] on either
    # side of ½: an endpoint rule would put weight on θ = ½, which favours neither stage.
    steps = (np.arange(STEPS) + HALF) / STEPS
    reach = np.multiply.outer((2 * a - 1) * (1 - o**2) / 2, steps)[..., None, :]
    count = _SHIFTS if np.any(b) else 1
    shifts = np.multiply.outer(b, 2 * (np.arange(count) + HALF) / count - 1)[..., :, None]
    logs = [_log_likelihood(votes, s, HALF + side * reach + shifts) for side in (1, -1)]
    # Only the ratio of both sides counts; the common factor keeps exp from underflowing where
    # thousands of votes make every single likelihood smaller than float64 can hold.
    top = np.maximum(*(log.max((-1, -2)) for log in logs))[..., None, None]
    accuracies, index = np.unique(a, return_inverse=True)
    shares = np.stack([shares_behind(float(value), errors) for value in accuracies])[index]
    above, below = ((np.exp(log - top).sum(-2) * shares).sum(-1) for log in logs)
    return np.asarray(above / (above + below))


def call_reliability(
    votes: Sequence[PromptVotes],
    called: Literal["injection", "fine-tuning"],
    *,
    accuracy: float,
    bias: float = 0.0,
    overlap: float = 0.0,
    errors: JudgeErrors = "unknown",
) -> float:
    """P(the stage call is right), as `chance_above_half` of the side called.

    Args:
        votes: Of each prompt used.
        called: The stage; Algorithm 1's verdict where the measurement is undecided.
        accuracy: As in `chance_above_half`.
        bias: As in `chance_above_half`.
        overlap: As in `chance_above_half`.
        errors: As in `chance_above_half`.

    Returns:
        The reliability, in [0, 1]; about ½ where nothing is known.

    Raises:
        InputError: As `chance_above_half`.

    Source:
        As `chance_above_half`.
    """
    above = float(
        chance_above_half(
            ScoreSummary.of(votes), accuracy=accuracy, bias=bias, overlap=overlap, errors=errors
        )
    )
    return above if called == "fine-tuning" else 1.0 - above


def _log_likelihood(votes: Floats, mean: Floats, theta: Floats) -> Floats:
    votes, mean = votes[..., None, None], mean[..., None, None]
    # log1p(-θ) near θ = 1 and a clipped θ near 0: 0 · log 0 must be 0, not NaN.
    inside = np.clip(theta, np.finfo(np.float64).tiny, 1.0 - np.finfo(np.float64).epsneg)
    return np.asarray(votes * (mean * np.log(inside) + (1.0 - mean) * np.log1p(-inside)))


def distinctness(log_probs: Sequence[LogProbs]) -> float:
    """Share of comparisons in which the policy finds the on-policy response likelier.

    The mean over prompts of ``mean_ij [log π_θ(y_i|x) > log π_θ(y'_j|x)]``. The boundary
    score rests on on-policy responses being likelier than off-policy ones; the paper found
    84 to 97 %. Near ½ the "off-policy" responses are as good as the policy's own, and the
    stage says little.

    Args:
        log_probs: For each prompt the sequence log-probs under the policy of its on-policy
            responses [m] and of its off-policy responses [n]. [prompts], nats.

    Returns:
        The share, in [0, 1].

    Raises:
        InputError: If there is no prompt.

    Source:
        Sun et al. 2025, arXiv:2508.10530, App. D.1, Table 7.
    """
    _check_any(log_probs)
    return float(
        np.mean(
            [
                np.mean(np.asarray(on, np.float64)[:, None] > np.asarray(off, np.float64))
                for on, off in log_probs
            ]
        )
    )


def _check_any(rows: Sequence[Any]) -> None:
    InputError.unless(
        rows,
        saw="no prompt",
        expected="at least one prompt",
        cure="measure the stage first",
    )


def consistency(prompts: Sequence[JudgedPrompt], log_probs: Sequence[LogProbs]) -> float:
    """Preference consistency of judge and policy, before the paper simplifies it.

    The mean over prompts of ``mean_ij I[P*(y_i ≻ y'_j | x)] ⊙ I[P_θ(y_i ≻ y'_j | x)]``, where ⊙
    is 1 if both are equal, else 0. Where the policy always prefers its own response (distinctness
    1) that is the boundary score. A comparison that counted in part, as a tie does or a
    probability, agrees in that part.

    Args:
        prompts: The judged prompts, with what each comparison counted.
        log_probs: As for `distinctness`, of the same prompts in the same order.

    Returns:
        The consistency, in [0, 1].

    Raises:
        InputError: If there is no prompt.

    Source:
        Sun et al. 2025, arXiv:2508.10530, Definition 5.5 on the comparisons of Sec. 5.3: the first
        of the two unnumbered equations before Eqs. 12 and 13.
    """
    _check_any(prompts)
    agreed = []
    for row, (on, off) in zip(prompts, log_probs, strict=True):
        ahead = np.asarray(on, np.float64)[:, None] > np.asarray(off, np.float64)
        shares = np.asarray(row.votes.shares)
        agreed.append(np.where(ahead, shares, 1.0 - shares).mean())
    return float(np.mean(agreed))


def score_sides(
    prompts: Sequence[JudgedPrompt], *, scorer: "Scorer", encoder: "ResponseEncoder"
) -> list[LogProbs]:
    """Score the responses of a measurement by the policy.

    Args:
        prompts: What `measure_stage` used, `Stage.prompts`.
        scorer: The policy.
        encoder: Its tokenizer and template, as in sampling.

    Returns:
        For each prompt the sequence log-probs of its on-policy responses [m] and of its
        off-policy ones [n]. [prompts], nats.
    """
    trees = [
        encoder.encode(row.on.prompt, [*row.on.messages(), *row.off.messages()]) for row in prompts
    ]
    sums = [scored.sums.numpy() for scored in scorer.score(trees)]
    counts = [len(row.on.responses) for row in prompts]
    return [(s[:m], s[m:]) for s, m in zip(sums, counts, strict=True)]


def measure_distinctness(
    prompts: Sequence[JudgedPrompt], *, scorer: "Scorer", encoder: "ResponseEncoder"
) -> float:
    """Score the responses of a measurement by the policy and compare the two sides.

    Args:
        prompts: As for `score_sides`.
        scorer: Likewise.
        encoder: Likewise.

    Returns:
        As `distinctness`.
    """
    return distinctness(score_sides(prompts, scorer=scorer, encoder=encoder))


def by_policys_eyes(prompts: Sequence[JudgedPrompt], sampler: Any) -> dict[str, Any]:
    """Distinctness and consistency of a measurement, as fields of `Stage`.

    Args:
        prompts: What was measured.
        sampler: The policy, whose weights score both sides.

    Returns:
        "distinctness" and "consistency".

    Raises:
        InputError: If the policy does not run in this process.
    """
    # torch is loaded only for who asks for this: a measurement itself needs no tensors.
    from prefstage.scoring import Scorer

    InputError.unless(
        hasattr(sampler, "model"),
        saw="distinctness without a policy that runs in this process",
        expected="a model folder or Hub id as the sampler, whose weights score the responses",
        cure="leave distinctness out",
    )
    sides = score_sides(prompts, scorer=Scorer(sampler.model), encoder=sampler.encoder)
    return {"distinctness": distinctness(sides), "consistency": consistency(prompts, sides)}
