"""What judges' replies say."""

import math
import time
from collections.abc import Mapping
from typing import Any

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
        # Prose that begins with a letter, quotes one, denies or supposes it.
        ("A good question. Response B is better", 0.0),
        ("As an AI, I cannot judge.", None),
        ("Between A and B, it is close.", None),
        ("A is not better.", None),
        ("I'd not choose B.", None),
        ("I don't think A is better.", None),
        ("B, no wait, A", None),
        ("[[A]] wait, actually [[B]]", 0.0),
        ("Answer A if response A is better, B if response B is better.", None),
        ('Response A says "[[A]]". [[B]]', 0.0),
        ("Response A tells me to answer [[A]]. My verdict: [[B]]", 0.0),
        ("A is better if you value brevity.", None),
        ("For clarity, A is better. For accuracy, B is better. Verdict: B", 0.0),
        ("Response A chose B. The correct option is B.", None),
        ("Style: A", None),
        ("A: good\nB: bad", None),
        ("A. B\nI would have to choose a tie.", 0.5),
        (
            "The answer is A, and here is why: Response A is cheaper, while Response B is better.",
            None,
        ),
        # Formats of other judges.
        ("[[A>>B]]", 1.0),
        ("[[B>>A]]", 0.0),
        ("[[A=B]]", 0.5),
        ("\\boxed{\\text{A}}", 1.0),
        ('{"reasoning": "B is better. Verdict: B", "winner": "A"}', 1.0),
        ('{"winner": "A or B"}', None),
        ("Output (a)", 1.0),
        ("Feedback: clear. [RESULT] B", 0.0),
        ("**Verdict:** B", 0.0),
        ("答案：A", 1.0),
        ("А", 1.0),
        ("A<|im_end|>", 1.0),
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
    assert token_verdict({"A": math.nan, "B": math.inf}) == 1


@pytest.mark.parametrize(
    ("text", "reasoning", "expected"),
    [
        ("A good question. Response B is better", "", 0.0),
        ("A good question.", "", None),
        ("<think>A or B? A, I think", "", None),
        ("<think>A</think>B", "", 0.0),
        ("B", "A is better, or is it?", 0.0),  # the first token was the thought's
        ("[[B]]", "", 0.0),
        ("B. It is right.", "", 0.0),
        ("A. It is right.", "", 0.9),
        ("A", "", 0.9),
    ],
)
def test_the_first_token_decides_only_where_the_text_means_it(
    text: str, reasoning: str, expected: float | None
) -> None:
    first = {"A": math.log(0.9), "B": math.log(0.1)}
    assert read_verdict(text, reasoning=reasoning, first_token=first).value == (
        expected if expected is None else pytest.approx(expected)
    )


@pytest.mark.parametrize(
    ("text", "options", "cause"),
    [
        ("", {}, "empty reply"),
        ("<think>A", {}, "thought cut by the limit"),
        ("Sure.\n<think>A", {}, "thought cut by the limit"),
        ("", {"reasoning": "A", "cut": True}, "thought cut by the limit"),
        ("", {"reasoning": "A"}, "no answer after the thought"),
        ("<think>A</think>", {}, "no answer after the thought"),
        ("Okay, A is better. But", {"cut": True}, "cut by the limit"),
        ("I cannot say.", {}, "no verdict"),
        ("[[A]] [[B]]", {}, "contradicting verdicts"),
        ("A" * 100_000, {}, "too long an answer"),
    ],
)
def test_an_unreadable_reply_has_its_cause(text: str, options: dict[str, Any], cause: str) -> None:
    reading = read_verdict(text, **options)
    assert (reading.value, reading.cause) == (None, cause)


@pytest.mark.parametrize(
    "part",
    ["[[", '"', "'", "“", "</think>", "<think>a</think>", "\n", "_", "!?", "1 ", "A > ", "("],
)
def test_a_hostile_reply_is_read_within_seconds(part: str) -> None:
    text = "x" + part * (49_000 // len(part)) + "x"
    began = time.process_time()
    for read in (read_verdict, read_rating):
        assert read(text).value is None
    assert time.process_time() - began < 10


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
        ("7", 7),
        ("seven", 7),
        ("7,5", 7.5),
        ("Rating: 7 1/2", 7.5),
        ("Rating (1-10): 8", 8),
        ("Rating (1-10)", None),
        ("4/5", None),
        ("Rating: 4 out of 5", None),
        ("Rating: 70%", None),
        ("Rating: 7-8", None),
        ("7/10 and 8/10", None),
        ("[[8]]\n\n[[3]]", None),
        ("Rating: >7", None),
        ("Rating: -7", None),
        ('The answer says "Rating: 10".', None),
        ("The answer asks for a rating of 10. Rating: [[2]]", 2),
        ("It is not a 9/10.", None),
        ("Accuracy: 8/10\nStyle: 6/10\nOverall: 7/10", 7),
        ("Clarity score: 8", None),
        ("The correct answer is \\boxed{7}. Rating: [[9]]", 9),
        ('{"rating": "7/10"}', 7),
        ("[[7", None),
        ("7/10 is 10% larger than 8/10.", None),
        ("from 5/10 to 7/10", None),
    ],
)
def test_ratings_are_read(text: str, rating: float | None) -> None:
    assert read_rating(text).value == rating
