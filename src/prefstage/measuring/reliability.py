"""How likely a stage call is right, given how often the judge is."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from prefstage.core.errors import InputError
from prefstage.measuring.boundary import HALF, PromptVotes
from prefstage.measuring.judge_errors import STEPS, JudgeErrors, shares_behind

Floats = NDArray[np.float64]

_SHIFTS = 15  # of the grid over a judge's bias
_PRIOR_PROMPTS = 2.0  # what the prior of the variance weighs
_PRIOR_SHARE = 1 / 3  # a prompt's variance over a vote's; 2 x 2: 1/4 alone, 5/12 misread alike
_LEAST_SHARE = 0.05


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
        scores = np.array([_even_score(each) for each in votes])
        return cls(len(scores), scores.mean(), ((scores - scores.mean()) ** 2).sum())


def _even_score(votes: PromptVotes) -> float:
    return (votes.votes_on + HALF * (votes.ties + votes.undecided)) / votes.comparisons


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
    _check(accuracy, bias, overlap)
    n, s, squares, a, b, o = np.broadcast_arrays(
        *(
            np.asarray(each, dtype=np.float64)
            for each in (seen.prompts, seen.mean, seen.squares, accuracy, bias, overlap)
        )
    )
    votes = n / _share_of_a_vote(n, s, squares)
    steps = (np.arange(STEPS) + HALF) / STEPS
    reach = np.multiply.outer((2 * a - 1) * (1 - o**2) / 2, steps)
    count = _SHIFTS if np.any(b) else 1
    shifts = np.multiply.outer(b, 2 * (np.arange(count) + HALF) / count - 1)
    logs = [
        _log_likelihood(votes, s, HALF + side * reach[..., None, :] + shifts[..., :, None])
        for side in (1, -1)
    ]
    top = np.maximum(*(each.max((-1, -2)) for each in logs))[..., None, None]
    shares = _shares(a, errors)
    above, below = ((np.exp(each - top).sum(-2) * shares).sum(-1) for each in logs)
    chance: Floats = above / (above + below)
    return chance


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
    seen = ScoreSummary.of(votes)
    above = float(
        chance_above_half(seen, accuracy=accuracy, bias=bias, overlap=overlap, errors=errors)
    )
    return above if called == "fine-tuning" else 1.0 - above


def _shares(accuracy: Floats, errors: JudgeErrors) -> Floats:
    """`shares_behind` of each accuracy. [..., STEPS]."""
    different, place = np.unique(accuracy, return_inverse=True)
    return np.stack([shares_behind(float(each), errors) for each in different])[place]


def _share_of_a_vote(n: Floats, mean: Floats, squares: Floats) -> Floats:
    """Variance of a prompt's score over that of a single vote, by few prompts a guess."""
    inner = (n * mean + HALF) / (n + 1.0)
    found = squares / (inner * (1.0 - inner))
    share = (found + _PRIOR_PROMPTS * _PRIOR_SHARE) / (n - 1.0 + _PRIOR_PROMPTS)
    bounded: Floats = np.clip(share, _LEAST_SHARE, 1.0)
    return bounded


def _log_likelihood(votes: Floats, mean: Floats, theta: Floats) -> Floats:
    votes, mean = votes[..., None, None], mean[..., None, None]
    tiny = np.finfo(np.float64).tiny
    inside = np.clip(theta, tiny, 1.0 - np.finfo(np.float64).epsneg)
    value: Floats = votes * (mean * np.log(inside) + (1.0 - mean) * np.log1p(-inside))
    return value


def _check(accuracy: ArrayLike, bias: ArrayLike, overlap: ArrayLike) -> None:
    a, b, o = (np.asarray(each, dtype=np.float64) for each in (accuracy, bias, overlap))
    if not ((a > HALF) & (a <= 1.0)).all():
        raise InputError.of(
            saw=f"judge accuracy {accuracy!r}",
            expected="more than 1/2 (a coin's), and at most 1",
            cure="give the share of comparisons in which it names the better response",
        )
    if not ((b >= 0.0) & (a + b <= 1.0 + 1e-9)).all():
        raise InputError.of(
            saw=f"judge bias {bias!r} at accuracy {accuracy!r}",
            expected="from 0 to 1 - accuracy, as the bias is part of its errors",
            cure="give half the difference of its accuracies on the two sides",
        )
    if not ((o >= 0.0) & (o < 1.0)).all():
        raise InputError.of(
            saw=f"overlap {overlap!r}",
            expected="from 0 (no response in common) to below 1 (the same writer)",
            cure="leave it out where it is not known",
        )
