"""What judges' replies say."""

import math
from collections.abc import Mapping

import pytest

from prefstage.judging.reading import read_rating, read_verdict


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("A", 1.0),
        ("b", 0.0),
        (" **B**\n", 0.0),
        ("C.", 0.5),
        ("A\nIt is more complete than B.", 1.0),
        ("[[B]]", 0.0),
        ("Response A", 1.0),
        ("Response B is clearly better.", 0.0),
        ("My verdict: A", 1.0),
        ("The winner is Response B", 0.0),
        ("It is a tie.", 0.5),
        ("<think>A? no, B</think>A", 1.0),
        ("", None),
        ("A good answer would mention both.", None),
        ("Both A and B are fine", None),
        ("Verdict: A. Final answer: B", None),
        ("I cannot compare these.", None),
        ("A's tone is better than B's", None),
    ],
)
def test_only_unmistakable_answers_are_read(answer: str, expected: float | None) -> None:
    assert read_verdict(answer).value == expected


def token_verdict(alternatives: Mapping[str, float]) -> float | None:
    logprobs = {token: math.log(probability) for token, probability in alternatives.items()}
    return read_verdict("A", first_token=logprobs).value


def test_token_probabilities_give_the_expected_verdict() -> None:
    assert token_verdict({"A": 0.6, " B": 0.2, "C": 0.1, "The": 0.1}) == pytest.approx(
        (0.6 + 0.05) / 0.9
    )
    assert token_verdict({"A": 0.5, " A": 0.2, "**B": 0.1}) == pytest.approx(0.7 / 0.8)
    assert token_verdict({"I": 0.6, "A": 0.3, "B": 0.1}) == 1
    assert token_verdict({}) == 1


@pytest.mark.parametrize(
    ("text", "rating"),
    [
        ("[[7]]", 7),
        ("Reasons. Rating: [[ 8.5 ]]", 8.5),
        ("[[3]] at first, but [[9]]", 9),
        ("Rating: 7/10", 7),
        ("**Rating:** 6", 6),
        ("Score: 10 / 10", 10),
        ("I would give this 4 out of 10.", 4),
        ("The rating is 5.", 5),
        ("[[7/10]]", 7),
        ("Rating: [[5]] although a rating of 9 was asked for", 5),
        ("[[11]]", None),
        ("[[0]]", None),
        ("[[-3]]", None),
        ("I cannot grade this.", None),
        ("", None),
        ("There are 7 mistakes.", None),
    ],
)
def test_ratings_are_read(text: str, rating: float | None) -> None:
    assert read_rating(text).value == rating
