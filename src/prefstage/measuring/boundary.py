"""Algorithm 1, votes between on-policy and off-policy responses, and its sequential test.

The test is a confidence sequence, which allows looking at any time, and says when to look.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from prefstage.core import InputError, seed_for
from prefstage.data.records import Candidates
from prefstage.judging.base import Comparison, Judge, compare_by_rewards
from prefstage.measuring.settings import TieRule, Votes

HALF = 0.5
# P within this distance of ½ is a tie; it absorbs the rounding of symmetrised judges.
TIE_WIDTH = 1e-9

Floats = NDArray[np.float64]

_BETS = (np.arange(16, dtype=np.float64) + 0.5) / 16  # shares of the capital at stake
_PRIOR = _BETS * (1.0 - _BETS) ** 2  # Beta(2, 3): most of the capital on moderate bets
_LOG_PRIOR = np.log(_PRIOR / _PRIOR.sum())
_TINY = 1e-12
_ROUNDING = 1e-9  # per score: sums of probabilities are not exact
_SEARCH_STEPS = 24  # halves [0, 1] to below 1e-7
_LARGEST_CHUNK = 256


@dataclass(frozen=True)
class PromptVotes:
    """What the m·n comparisons of one prompt say.

    Attributes:
        score: Share of the prompt's comparisons won by the on-policy responses, in [0, 1].
        votes_on: Comparisons with P(y_i ≻ y'_j | x) > ½.
        votes_off: Comparisons with P < ½.
        ties: Comparisons with P = ½.
        undecided: Comparisons that the judge gave no readable answer to.
        shares: What each comparison counted for the on-policy response. [m, n], in [0, 1]; None
            of a sum.
    """

    score: float
    votes_on: int
    votes_off: int
    ties: int
    undecided: int
    shares: Floats | None = field(default=None, kw_only=True, compare=False, repr=False)

    @property
    def comparisons(self) -> int:
        """m·n, the number of comparisons of one prompt; of several prompts the sum."""
        return self.votes_on + self.votes_off + self.ties + self.undecided


@dataclass(frozen=True)
class Boundary(PromptVotes):
    """The votes of a set of prompts, summed; its `score` is BS, the mean of the prompts' scores.

    Attributes:
        prompts: Number of prompts.
    """

    prompts: int


def count_votes(
    probabilities: ArrayLike,
    *,
    undecided: ArrayLike | None = None,
    votes: Votes = "hard",
    ties: TieRule = "half",
) -> PromptVotes:
    """Score one prompt from the judge's preferences between its responses.

    ``hard``: each comparison is one vote, ``[P(y_i ≻ y'_j | x) > ½]``, and the score is the
    share of votes for on-policy responses. ``probability``: the score is the mean of P, which
    has the lower variance and needs fewer prompts, but trusts the judge's calibration.

    Args:
        probabilities: P(y_i ≻ y'_j | x), on-policy response i against off-policy response j.
            [m, n], in [0, 1].
        undecided: True where the judge gave no readable answer; such a comparison counts ½
            under every rule. [m, n]; None means nowhere.
        votes: Hard votes (as in the paper) or probabilities.
        ties: What P = ½ counts with hard votes: ``half`` a vote for each side, or a vote for
            ``off`` (the `else` of the paper's algorithm).

    Returns:
        The prompt's score and its votes. Ties and undecided comparisons are counted apart,
        whatever they counted for in the score.

    Raises:
        InputError: If the matrix is empty, or holds something else than probabilities.

    Source:
        Sun et al. 2025, arXiv:2508.10530, Algorithm 1, for any m and n (there 2 and 2).
    """
    p = np.asarray(probabilities, dtype=np.float64)
    blank = np.zeros(p.shape, dtype=bool) if undecided is None else np.asarray(undecided, bool)
    InputError.unless(
        p.ndim == 2  # noqa: PLR2004 - m × n
        and p.size > 0
        and blank.shape == p.shape
        and ((p >= 0) & (p <= 1)).all(),
        saw=f"preferences of shape {p.shape} with values {p.ravel()[:4].tolist()}",
        expected="an m × n matrix of probabilities, m and n at least 1",
        cure="give P(y_i ≻ y'_j | x) of every on-policy against every off-policy response",
    )
    tied = (np.abs(p - HALF) <= TIE_WIDTH) & ~blank
    on, off = (p > HALF) & ~tied & ~blank, (p < HALF) & ~tied & ~blank
    share = on + HALF * blank + (HALF * tied if ties == "half" else 0.0)
    if votes == "probability":
        share = np.where(blank, HALF, p)
    return PromptVotes(
        score=float(share.mean()),
        votes_on=int(on.sum()),
        votes_off=int(off.sum()),
        ties=int(tied.sum()),
        undecided=int(blank.sum()),
        shares=np.asarray(share, dtype=np.float64),
    )


def boundary_score(prompts: Iterable[PromptVotes]) -> Boundary:
    """BS of a set of prompts: the mean of their scores.

    ``BS = V_on / (V_on + V_off)``, below ½ in the injection stage. Equal to the mean over
    prompts when every prompt has the same number of comparisons, as in the paper. Where m and
    n vary, the mean over prompts is kept, since prompts (not votes) are the independent unit.

    Args:
        prompts: The votes of each prompt.

    Returns:
        The boundary score and the summed votes.

    Raises:
        InputError: If there is no prompt.

    Source:
        Sun et al. 2025, arXiv:2508.10530, Algorithm 1 and Table 3. Erratum: the caption of
        Table 3 prints V_off in the numerator; the numbers of Tables 3, 4 and 8 and the
        algorithm need V_on, which stands here.
    """
    counted = list(prompts)
    InputError.unless(
        counted,
        saw="no prompt",
        expected="at least one judged prompt",
        cure="check that both sides have responses to common prompts",
    )
    return Boundary(
        score=float(np.mean([votes.score for votes in counted])),
        votes_on=sum(votes.votes_on for votes in counted),
        votes_off=sum(votes.votes_off for votes in counted),
        ties=sum(votes.ties for votes in counted),
        undecided=sum(votes.undecided for votes in counted),
        prompts=len(counted),
    )


def algorithm_1_verdict(
    boundary: Boundary, *, ties: TieRule = "half"
) -> Literal["injection", "fine-tuning"]:
    """The paper's plain verdict, without an interval: injection if V_off > V_on.

    It goes by the votes of all prompts together, as printed. With as many comparisons a prompt
    everywhere and hard votes that is BS < ½; where m and n vary, prompts with more comparisons
    weigh more here than in the score.

    Args:
        boundary: The votes of a fixed set of prompts.
        ties: As of `count_votes`; a vote for each side changes nothing.

    Returns:
        The stage by Algorithm 1.

    Source:
        Sun et al. 2025, arXiv:2508.10530, Algorithm 1, lines 14 to 18.
    """
    votes_off = boundary.votes_off + (boundary.ties if ties == "off" else 0)
    return "injection" if votes_off > boundary.votes_on else "fine-tuning"


@dataclass(frozen=True)
class JudgedPrompt:
    """One prompt that was used.

    Attributes:
        order: Its position in the random order, from 0.
        on: The on-policy responses that took part, y_1 … y_m.
        off: The off-policy responses that took part, y'_1 … y'_n.
        votes: What their m·n comparisons said.
        unused_on: On-policy responses that were there but not drawn.
        unused_off: Likewise off-policy.
    """

    order: int
    on: Candidates
    off: Candidates
    votes: PromptVotes
    unused_on: int = 0
    unused_off: int = 0

    @property
    def favours(self) -> Literal["on", "off", "neither"]:
        """The side with more than half of the score."""
        if self.votes.score == HALF:
            return "neither"
        return "on" if self.votes.score > HALF else "off"


def judge_sides(
    judge: Judge,
    on_policy: Sequence[Candidates],
    off_policy: Sequence[Candidates],
    *,
    votes: Votes = "hard",
    ties: TieRule = "half",
) -> list[PromptVotes]:
    """Judge all m·n comparisons of each prompt and count the votes.

    A pointwise judge scores each response once: m + n calls a prompt, not m·n.

    Args:
        judge: Gives P(y_i ≻ y'_j | x).
        on_policy: For each prompt its on-policy responses. [prompts].
        off_policy: Its off-policy responses, in the same order of prompts. [prompts].
        votes: As in `count_votes`.
        ties: As in `count_votes`.

    Returns:
        The votes of each prompt, in order; each depends on its own prompt alone.
    """
    sides = list(zip(on_policy, off_policy, strict=True))
    comparisons = [
        Comparison(on.prompt_id, on.prompt, y, other)
        for on, off in sides
        for y in on.responses
        for other in off.responses
    ]
    counts = []
    rest = iter(
        compare_by_rewards(judge.score, comparisons)
        if judge.pointwise
        else judge.compare(comparisons)
    )
    for on, off in sides:
        shape = (len(on.responses), len(off.responses))
        block = list(islice(rest, shape[0] * shape[1]))
        counts.append(
            count_votes(
                np.reshape([judgment.probability for judgment in block], shape),
                undecided=np.reshape([judgment.status == "undecided" for judgment in block], shape),
                votes=votes,
                ties=ties,
            )
        )
    return counts


# --- The sequential test ---------------------------------------------------------------------


def log_capital(scores: ArrayLike, mean: ArrayLike, *, available: int | None) -> Floats:
    """Log capital of a gambler who bets that the mean is larger than `mean`.

    ``K_t = Σ_f w_f Π_{i≤t} (1 + f (x_i / m_i - 1))``: the capital is split once over fixed
    shares f in (0, 1) with weights w_f, and each part always stakes its share. If the mean
    is m, every game is fair, ``E[x_i | past] = m_i``, with m_i = m for independent scores and
    ``m_i = (N m - Σ_{j<i} x_j) / (N - i + 1)`` for scores drawn without replacement from N.
    So K is a nonnegative martingale that starts at 1 and ever reaches 1/α with probability at
    most α (Ville). K falls in m, so one test of m covers all smaller means.

    Args:
        scores: Scores in random order. [..., steps], in [0, 1].
        mean: The mean m to bet against. [...], in (0, 1); broadcast against the leading axes.
        available: N, the size of the finite set they are drawn from without replacement;
            None for independent scores.

    Returns:
        log K after each step. [..., steps], nats; ∞ from where m has become impossible,
        because the scores so far sum to more than N m.

    Source:
        Waudby-Smith & Ramdas 2024, "Estimating means of bounded random variables by betting",
        J. R. Stat. Soc. B 86(1), arXiv:2010.09686: capital process (Sec. 4), sampling
        without replacement (Sec. 5); splitting the capital over fixed stakes is the
        diversified Kelly strategy of their appendix, here with Beta(2, 3) weights instead of
        equal ones. The conditional mean m_i: Waudby-Smith & Ramdas 2020, arXiv:2006.04347.
    """
    x = np.asarray(scores, dtype=np.float64)
    m = np.asarray(mean, dtype=np.float64)[..., None]
    # E[x_i | past] if the mean is m, and what is left of N·m. Both [..., steps].
    fair = left = np.broadcast_to(m, np.broadcast_shapes(m.shape, x.shape))
    if available is not None:
        drawn, whole = np.cumsum(x, axis=-1), available * m
        fair = (whole - (drawn - x)) / (available - np.arange(x.shape[-1], dtype=np.float64))
        left = whole - drawn + _ROUNDING * available
    gain = x / np.maximum(fair, _TINY) - 1.0
    # In logs, and shifted by the largest part before exp: after some hundred won bets the capital
    # itself overflows float64. In place, since [bets, means, steps] is the largest array here.
    parts = np.multiply.outer(_BETS, gain)
    np.cumsum(np.log1p(parts, out=parts), axis=-1, out=parts)
    parts += _LOG_PRIOR.reshape(-1, *(1,) * gain.ndim)
    largest = parts.max(axis=0)
    parts -= largest
    return np.where(left < 0.0, np.inf, largest + np.log(np.exp(parts, out=parts).sum(axis=0)))


def rejection_step(
    scores: ArrayLike, mean: ArrayLike, *, available: int | None, level: float
) -> NDArray[np.int64]:
    """When the gamblers first show that the mean is larger than `mean`.

    Args:
        scores: As in `log_capital`. [..., steps].
        mean: As in `log_capital`. [...].
        available: As in `log_capital`.
        level: Chance at most to be wrong, ever; in (0, 1).

    Returns:
        Number of scores seen when "mean ≤ `mean`" was first rejected, or steps + 1 where it
        was not. [...].
    """
    rejected = log_capital(scores, mean, available=available) >= -math.log(level)
    never = np.ones((*rejected.shape[:-1], 1), dtype=bool)
    return np.asarray(np.concatenate([rejected, never], axis=-1).argmax(axis=-1) + 1)


class ConfidenceSequence:
    """An interval for the mean of scores in [0, 1] that holds at every moment at once.

    With probability at least `confidence` the mean is in the interval after every number of
    scores, so one may stop whenever one likes, and also because of what one sees. Two
    gamblers, one a side, each at half of 1 - confidence; the interval is what both have not
    rejected up to now (running intersection), within what the drawn scores leave possible.

    Drawn without replacement from a finite set, the interval closes to a point when the set
    is used up: the mean is known then.

    Source:
        As `log_capital`; the two sides as their hedged capital process (Thm. 3).
    """

    def __init__(self, *, available: int | None, confidence: float = 0.95) -> None:
        """Start without scores.

        Args:
            available: N, if scores are drawn without replacement from N; None if they are
                independent draws.
            confidence: Chance at least that the interval holds the mean, always; in (0, 1).

        Raises:
            InputError: If the confidence is outside (0, 1).
        """
        InputError.unless(
            0.0 < confidence < 1.0,
            saw=f"confidence {confidence}",
            expected="a number between 0 and 1",
            cure="write 0.95 for 95 %",
        )
        self.available, self.confidence = available, confidence
        self._scores, self._level = list[float](), (1.0 - confidence) / 2.0

    def update(self, scores: Iterable[float]) -> None:
        """Add scores in the random order in which they were drawn.

        Args:
            scores: New scores, each in [0, 1].

        Raises:
            InputError: If one is outside [0, 1], or there are more than `available`.
        """
        new = [float(score) for score in scores]
        outside = next((score for score in new if not 0.0 <= score <= 1.0), None)
        InputError.unless(
            outside is None,
            saw=f"score {outside}",
            expected="scores in [0, 1]",
            cure="rescale them",
        )
        InputError.unless(
            self.available is None or self.count + len(new) <= self.available,
            saw=f"{self.count + len(new)} scores drawn from {self.available}",
            expected="each prompt at most once",
            cure="give the number of prompts that there are",
        )
        self._scores += new

    @property
    def count(self) -> int:
        """Number of scores so far."""
        return len(self._scores)

    @property
    def mean(self) -> float:
        """Mean of the scores so far; ½ without any."""
        return math.fsum(self._scores) / self.count if self._scores else HALF

    @property
    def complete(self) -> bool:
        """Whether the finite set is used up, so that its mean is known."""
        return self.available is not None and self.count == self.available

    @property
    def interval(self) -> tuple[float, float]:
        """(low, high), never wider than before.

        Should the sides contradict each other (they can with probability below
        1 - confidence), the stretch between the two bounds is returned.
        """
        if self.complete:
            return self.mean, self.mean
        x = np.array(self._scores)
        low = _lower_bound(x, self.available, self._level)
        high = 1.0 - _lower_bound(1.0 - x, self.available, self._level)
        return min(low, high), max(low, high)

    @property
    def side(self) -> Literal["above", "below"] | None:
        """On which side of ½ the mean is; None while ½ is in the interval.

        Once decided it stays, unless the set is used up: then the mean itself tells.
        """
        if self.complete:
            return None if self.mean == HALF else "above" if self.mean > HALF else "below"
        x = np.array(self._scores)
        above, below = (
            int(rejection_step(y, HALF, available=self.available, level=self._level))
            for y in (x, 1.0 - x)
        )
        if min(above, below) > self.count:
            return None
        return "above" if above < below else "below"


# The largest rejected mean, to 1e-7 from below; at least what is logically left.
def _lower_bound(x: Floats, available: int | None, level: float) -> float:
    if not x.size:
        return 0.0
    drawn = float(x.sum())
    low = 0.0 if available is None else drawn / available
    high = 1.0 if available is None else (drawn + available - x.size) / available

    def rejects(mean: float) -> bool:
        return int(rejection_step(x, mean, available=available, level=level)) <= x.size

    # ½ is tried first: bisection would stop just short of it, and the interval would then still
    # hold ½ where `side` has already decided.
    if low < HALF < high and rejects(HALF):
        low = HALF
    for _ in range(_SEARCH_STEPS):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if rejects(middle) else (low, middle)
    return low


def prompt_order(prompt_ids: Sequence[str], *, seed: int) -> list[str]:
    """Put prompts into a random order that depends on the seed and the prompts alone."""
    return sorted(prompt_ids, key=lambda prompt_id: seed_for(seed, "prompt order", prompt_id))


def chunk_sizes(limit: int, *, first: int) -> Iterator[int]:
    """How many prompts to use between two looks at the interval.

    Small at first, so that a clear case ends early; then a quarter of what was used, so that
    little is wasted and slow samplers still get full batches.

    Args:
        limit: Prompts in all.
        first: The smallest chunk.

    Yields:
        Sizes that sum to `limit`.
    """
    used = 0
    while used < limit:
        size = min(max(first, used // 4), _LARGEST_CHUNK, limit - used)
        yield size
        used += size
