import math

import numpy as np
import pytest
import torch

from prefstage.core.errors import InputError
from prefstage.measuring import (
    boundary_score,
    consistency,
    count_votes,
    distinctness,
    measure_distinctness,
    measure_stage,
)
from prefstage.measuring.boundary import JudgedPrompt
from tests.measuring.measuring_worlds import LargerIsBetter, answers, candidates


def test_prompts_weigh_the_same_whatever_their_number_of_responses() -> None:
    both, one = ([-1.0, -3.0], [-2.0, -4.0]), ([-5.0], [-1.0])
    assert distinctness([both]) == 3 / 4
    assert distinctness([both, one]) == 3 / 8


def test_equally_likely_responses_are_not_distinct() -> None:
    assert distinctness([([-2.0], [-2.0])]) == 0.0


def test_no_prompt_is_an_error() -> None:
    with pytest.raises(InputError, match="no prompt"):
        distinctness([])


def judged(shares: np.ndarray) -> JudgedPrompt:
    """A prompt whose comparisons counted so."""
    row = candidates(0, ["1"])
    return JudgedPrompt(0, row, row, count_votes(shares))


def test_consistency_before_the_simplification_differs_where_the_policy_prefers_others() -> None:
    """Seen on a real model: boundary score 0.425, distinctness 0.525, consistency 0.25."""
    judge = np.array([1] * 4 + [0] * 6 + [1] * 13 + [0] * 17, dtype=float)
    policy = np.array([1] * 4 + [0] * 6 + [0] * 13 + [1] * 17, dtype=float)
    rows = [judged(judge[None, :])]
    # One response of the policy's at 0 nats against forty others, above it or below it.
    sides = [(np.zeros(1), 1.0 - 2.0 * policy)]
    assert boundary_score(row.votes for row in rows).score == 0.425
    assert distinctness(sides) == 0.525
    assert consistency(rows, sides) == 0.25


@pytest.mark.parametrize("votes", ["hard", "probability"])
@pytest.mark.parametrize("ties", ["half", "off"])
def test_of_distinct_sides_the_consistency_is_the_boundary_score(votes: str, ties: str) -> None:
    draw = np.random.default_rng(0)
    rows, ahead, behind = [], [], []
    for number in range(20):
        m, n = draw.integers(1, 4, size=2)
        p = draw.choice([0.0, 0.2, 0.5, 0.9], size=(m, n))
        row = candidates(number, ["1"])
        rows.append(JudgedPrompt(number, row, row, count_votes(p, votes=votes, ties=ties)))
        ahead.append((np.zeros(m), -np.ones(n)))
        behind.append((np.zeros(m), np.ones(n)))
    score = boundary_score(row.votes for row in rows).score
    assert consistency(rows, ahead) == pytest.approx(score)
    assert consistency(rows, behind) == pytest.approx(1.0 - score)


def test_prompts_weigh_the_same_in_consistency_too() -> None:
    rows = [judged(np.ones((2, 2))), judged(np.zeros((1, 1)))]
    sides = [(np.zeros(2), -np.ones(2)), (np.zeros(1), -np.ones(1))]
    assert consistency(rows, sides) == 0.5
    with pytest.raises(InputError, match="no prompt"):
        consistency([], [])


class LengthScorer:
    """Log-probs that fall with the length of a response."""

    def score(self, trees: list) -> list:
        class Scored:
            def __init__(self, sums: torch.Tensor) -> None:
                self.sums = sums

        return [
            Scored(torch.tensor([-float(len(response)) for response in tree])) for tree in trees
        ]


class Characters:
    def encode(self, prompt: object, responses: list) -> list:
        return [message["content"] for message in responses]


def test_both_sides_of_a_measurement_are_scored_by_the_policy() -> None:
    measured = measure_stage(
        answers(20, skill=-3.0),
        judge=LargerIsBetter(),
        on_policy=answers(20, skill=3.0, seed=1),
    )
    share = measure_distinctness(measured.prompts, scorer=LengthScorer(), encoder=Characters())

    def expected(each: JudgedPrompt) -> float:
        wins = [len(on) < len(off) for on in each.on.responses for off in each.off.responses]
        return sum(wins) / len(wins)

    shares = [expected(each) for each in measured.prompts]
    assert share == pytest.approx(math.fsum(shares) / len(shares))
    assert share > 0.5
