import pytest

from prefstage.measuring import MeasureConfig, Stage, measure_stage, summarise
from tests.measuring.measuring_worlds import LargerIsBetter, NumberSampler, answers, candidates


def summary(skill: float, **settings: object) -> tuple[Stage, str]:
    found = measure_stage(
        answers(100, skill=0.0),
        judge=LargerIsBetter(),
        on_policy=answers(100, skill=skill, seed=1),
        policy_name="new model",
        config=MeasureConfig(**settings),
    )
    return found, summarise(found)


@pytest.mark.parametrize(
    ("skill", "headline", "advice"),
    [
        (-1.5, "Injection stage: the off-policy answers win", "train on the pairs you have"),
        (1.5, "Fine-tuning stage: the policy's own answers win", "sample pairs from the policy"),
    ],
)
def test_the_first_lines_say_what_and_what_to_do(skill: float, headline: str, advice: str) -> None:
    found, text = summary(skill)
    first, second = text.splitlines()[:2]
    low, high = found.interval
    assert first.startswith(headline)
    assert first.endswith(f"95% interval [{low:.3f}, {high:.3f}]")
    assert advice in second
    assert f"{found.prompts_used} of 100 prompts used (enough to decide)" in text
    assert "policy new model" in text


def test_an_undecided_measurement_asks_for_more() -> None:
    _, text = summary(0.0, max_prompts=16)
    assert text.startswith("Undecided. Boundary score")
    assert "allow more prompts" in text
    assert "16 of 100 prompts used (the budget of prompts)" in text


def test_examples_show_the_clearest_prompts_of_both_sides() -> None:
    found, text = summary(0.0, all_prompts=True)
    for side, score in (("on", 1.0), ("off", 0.0)):
        first = next(each for each in found.prompts if each.votes.score == score)
        assert f"{side}-policy better: {first.on.prompt[-1]['content']}" in text
    assert "exact for these prompts" in text


def test_what_limits_the_answer_is_told() -> None:
    off = [candidates(i, ["0", "?", "1"]) for i in range(20)]
    text = summarise(measure_stage(off, judge=LargerIsBetter(), sampler=NumberSampler(9.0)))
    assert "sampled responses were cut at the token limit" in text
    assert "judgments had no readable verdict" in text
    assert "responses beyond those wanted" in text
