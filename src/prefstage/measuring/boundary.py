"""Algorithm 1: votes between on-policy and off-policy responses, prompt by prompt."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from prefstage.core import InputError
from prefstage.data.records import Candidates
from prefstage.judging.base import Comparison, Judge, compare_by_rewards
from prefstage.measuring.settings import TieRule, Votes

HALF = 0.5
# P within this distance of ½ is a tie; it absorbs the rounding of symmetrised judges.
TIE_WIDTH = 1e-9


@dataclass(frozen=True)
class PromptVotes:
    """What the m·n comparisons of one prompt say.

    Attributes:
        score: Share of the prompt's comparisons won by the on-policy responses, in [0, 1].
        votes_on: Comparisons with P(y_i ≻ y'_j | x) > ½.
        votes_off: Comparisons with P < ½.
        ties: Comparisons with P = ½.
        undecided: Comparisons that the judge gave no readable answer to.
    """

    score: float
    votes_on: int
    votes_off: int
    ties: int
    undecided: int

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
    is_matrix = p.ndim == 2 and p.size > 0 and blank.shape == p.shape  # noqa: PLR2004 - m × n
    InputError.unless(
        is_matrix and ((p >= 0) & (p <= 1)).all(),
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
