import math

import pytest
import torch

from prefstage.core.errors import InputError
from prefstage.measuring import distinctness, measure_distinctness, measure_stage
from prefstage.measuring.boundary import JudgedPrompt
from tests.measuring.measuring_worlds import LargerIsBetter, answers


def test_prompts_weigh_the_same_whatever_their_number_of_responses() -> None:
    both, one = ([-1.0, -3.0], [-2.0, -4.0]), ([-5.0], [-1.0])
    assert distinctness([both]) == 3 / 4
    assert distinctness([both, one]) == 3 / 8


def test_equally_likely_responses_are_not_distinct() -> None:
    assert distinctness([([-2.0], [-2.0])]) == 0.0


def test_no_prompt_is_an_error() -> None:
    with pytest.raises(InputError, match="no prompt"):
        distinctness([])


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
