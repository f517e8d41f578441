import math
from itertools import pairwise

import pytest
from hypothesis import given, strategies as st

from prefstage.core.errors import InputError
from prefstage.sandbox import Grade, Instruction, grade_response, true_preference, true_reward
from prefstage.sandbox.language import ITEMS
from prefstage.sandbox.world import TEMPERATURE, WEIGHTS, edit_distance

PLAIN = Instruction(("sort",), ("fox", "ant", "bee"), "commas", polite=False)
POLITE = Instruction(("reverse",), ("fox", "ant", "bee"), "semicolons", polite=True)
COUNT = Instruction(("count",), ("fox", "ant", "bee"), "commas", polite=False)


@pytest.mark.parametrize(
    ("instruction", "response", "grade"),
    [
        (PLAIN, "ant, bee, fox.", Grade(1, 1, 1, 1)),
        (POLITE, "Sure! bee; ant; fox.", Grade(1, 1, 1, 1)),
        (POLITE, "Gladly! bee; ant; fox.", Grade(1, 1, 1, 1)),
        (COUNT, "three.", Grade(1, 1, 1, 1)),
        (COUNT, "four.", Grade(0, 1, 1, 1)),
        # Nothing that could be an answer is worth nothing.
        (PLAIN, "", Grade(0, 0, 0, 0)),
        (PLAIN, "I do not know.", Grade(0, 0, 0, 0)),
        # One neighbour swap costs two of three words; one omission, one of three.
        (PLAIN, "bee, ant, fox.", Grade(1 / 3, 1, 1, 1)),
        (PLAIN, "ant, bee.", Grade(2 / 3, 1, 1, 1)),
        (PLAIN, "ant, bee, bee, fox.", Grade(3 / 4, 1, 1, 1)),
        # Each wrong or missing mark costs its share of three.
        (PLAIN, "ant; bee, fox.", Grade(1, 2 / 3, 1, 1)),
        (PLAIN, "ant bee fox", Grade(1, 0, 1, 1)),
        (POLITE, "Sure! bee, ant, fox.", Grade(1, 1 / 3, 1, 1)),
        # Manners count both ways.
        (PLAIN, "Sure! ant, bee, fox.", Grade(1, 1, 0, 1)),
        (POLITE, "bee; ant; fox.", Grade(1, 1, 0, 1)),
        # Three words of chatter use up half of brevity; the opening is no chatter.
        (POLITE, "Sure! Here you go: bee; ant; fox.", Grade(1, 1, 1, 1 / 2)),
        (PLAIN, "well well well well well well well ant, bee, fox.", Grade(1, 1, 1, 0)),
    ],
)
def test_grades_worked_out_by_hand(instruction, response, grade):
    found = grade_response(instruction, response)
    for part in WEIGHTS:
        assert getattr(found, part) == pytest.approx(getattr(grade, part)), part
    assert found.reward == pytest.approx(grade.reward)


def test_the_weights_make_a_mean():
    assert sum(WEIGHTS.values()) == pytest.approx(1)
    assert Grade(1, 1, 1, 1).reward == pytest.approx(1)
    assert Grade(1 / 3, 1, 1, 1).reward == pytest.approx(1 - 0.6 * 2 / 3)


def test_equally_good_responses_have_exactly_equal_rewards():
    """0.1 + 0.2 is not 0.3 in floating point; a draw must be a draw all the same."""
    grades = [
        Grade(a / 4, b / 4, c, d / 6)
        for a in range(5)
        for b in range(5)
        for c in (0, 1)
        for d in range(7)
    ]
    rewards = sorted(grade.reward for grade in grades)
    steps = [after - before for before, after in pairwise(rewards)]
    assert all(step == 0 or step > 1e-6 for step in steps)


@given(st.text(max_size=80))
def test_any_text_has_a_reward_in_the_unit_interval(text):
    assert 0 <= grade_response(POLITE, text).reward <= 1


lists = st.lists(st.sampled_from(ITEMS[:3]), max_size=5).map(tuple)


@given(lists, lists, lists)
def test_edit_distance_is_a_metric(a, b, c):
    assert (edit_distance(a, b) == 0) == (a == b)
    assert edit_distance(a, b) == edit_distance(b, a)
    assert edit_distance(a, c) <= edit_distance(a, b) + edit_distance(b, c)
    assert abs(len(a) - len(b)) <= edit_distance(a, b) <= max(len(a), len(b))


def test_the_preference_is_bradley_terry_in_the_true_rewards():
    prompt = ({"role": "user", "content": PLAIN.text},)
    right, swapped = "ant, bee, fox.", "bee, ant, fox."
    difference = true_reward(prompt, right) - true_reward(prompt, swapped)
    assert difference == pytest.approx(0.4)
    expected = 1 / (1 + math.exp(-0.4 / TEMPERATURE))
    assert true_preference(right, swapped, prompt) == pytest.approx(expected)
    assert true_preference(swapped, right, prompt) == pytest.approx(1 - expected)
    assert true_preference(right, right, prompt) == 0.5


def test_a_prompt_of_no_instruction_is_refused():
    with pytest.raises(InputError, match="expected an instruction"):
        true_reward(({"role": "user", "content": "Tell me a joke."},), "ant.")
