import pytest

from prefstage.core.errors import InputError
from prefstage.data.records import Prompt
from prefstage.judging import load_judge
from prefstage.judging.loading import CallableJudge, FunctionOptions
from tests.judging.tiny_judges import comparison


def first_wins(a: str, b: str, prompt: Prompt) -> float:
    """As position-biased as a judge can be."""
    return 1.0


def longer(a: str, b: str, prompt: Prompt) -> float:
    return 0.5 + 0.5 * ((len(a) > len(b)) - (len(a) < len(b)))


def test_both_orders_cancel_a_position_bias() -> None:
    judge = CallableJudge(first_wins)
    assert judge.compare([comparison("x", "a", "b")])[0].probability == 0.5
    assert judge.counts == {"calls": 2}


def test_a_symmetric_function_is_asked_once_in_one_fixed_order() -> None:
    asked = []

    def spy(a: str, b: str, prompt: Prompt) -> float:
        asked.append((a, b, prompt[-1]["content"]))
        return 0.8

    judge = CallableJudge(spy, options=FunctionOptions(symmetric=True))
    forward, backward = judge.compare([comparison("x", "a", "b"), comparison("x", "b", "a")])
    assert (forward.probability, backward.probability) == (0.8, pytest.approx(0.2))
    assert asked == [("a", "b", "x")] * 2


def test_equal_texts_tie_without_a_call() -> None:
    judge = CallableJudge(first_wins)
    assert judge.compare([comparison("x", "a", "a")])[0].probability == 0.5
    assert judge.counts == {"calls": 0}


@pytest.mark.parametrize("answer", [1.2, -0.1, float("nan"), None, "A"])
def test_answers_outside_the_unit_interval_are_refused(answer: object) -> None:
    judge = CallableJudge(lambda a, b, prompt: answer)  # type: ignore[arg-type,return-value]
    with pytest.raises(InputError, match=r"expected P\(a ≻ b\), a number in \[0, 1\]"):
        judge.compare([comparison("x", "a", "b")])


def test_a_function_is_named_as_module_and_function() -> None:
    judge = load_judge("python:test_function:longer")
    assert judge.name == "python:test_function:longer"
    assert judge.compare([comparison("x", "aaa", "b")])[0].probability == 1.0
    assert load_judge("python:test_function:longer").fingerprint == judge.fingerprint
    assert load_judge("python:test_function:first_wins").fingerprint != judge.fingerprint
    assert load_judge(longer).compare([comparison("x", "a", "bbb")])[0].probability == 0.0
    assert load_judge(judge) is judge
