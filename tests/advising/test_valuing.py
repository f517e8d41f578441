"""Values of trained policies on the start's answers, against the exact expected reward."""

import pytest
import torch

from prefstage.advising.pilots import value_by_scoring
from prefstage.core.errors import InputError


def world(seed: int, prompts: int = 400, answers: int = 8, move: float = 0.3):
    """Tables of policies: the start's, a moved one's, and answers drawn from the start."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(prompts, 10, generator=generator, dtype=torch.double)
    rewards = torch.rand(prompts, 10, generator=generator, dtype=torch.double)
    start = logits.log_softmax(-1)
    moved = (logits + move * (rewards + torch.randn(prompts, 10, generator=generator))).log_softmax(
        -1
    )
    truth = float(((moved.exp() - start.exp()) * rewards).sum(-1).mean())
    drawn = torch.multinomial(start.exp(), answers, True, generator=generator)
    return (moved - start).gather(1, drawn), rewards.gather(1, drawn), truth


@pytest.mark.parametrize("form", ["self-normalised", "clipped", "first-order"])
def test_the_exact_gain_lies_within_three_errors(form: str) -> None:
    right = 0
    for seed in range(40):
        ratios, rewards, truth = world(seed, move=0.1)
        value = value_by_scoring(ratios, rewards, form=form)
        right += abs(value.gain - truth) < 3 * value.error
    assert right >= 38


def test_a_policy_that_did_not_move_gains_nothing() -> None:
    _, rewards, _ = world(0)
    for form in ("self-normalised", "clipped", "first-order"):
        value = value_by_scoring(torch.zeros_like(rewards), rewards, form=form)
        assert value.gain == pytest.approx(0, abs=1e-12)
        assert value.sample_size == pytest.approx(rewards.numel())


def test_far_policies_stay_finite_and_say_how_few_answers_speak() -> None:
    ratios, rewards, _ = world(0)
    value = value_by_scoring(ratios * 5_000, rewards)
    assert torch.isfinite(value.by_prompt).all()
    # One answer a prompt, which may have been drawn more than once.
    assert value.sample_size < 0.3 * rewards.numel()


@pytest.mark.parametrize("shape", [(4, 1), (4,)])
def test_too_few_answers_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="two answers"):
        value_by_scoring(torch.zeros(shape), torch.zeros(shape))
