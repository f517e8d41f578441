"""What a trained policy gained, valued on judged answers of the policy it started from."""

import math
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from prefstage.core import InputError

LARGEST_WEIGHT = 10.0
_AXES = 2  # prompts and answers
_FEWEST_ANSWERS = 2


@dataclass(frozen=True)
class Value:
    """A gain in judged quality, prompt by prompt, in the judge's units.

    All candidates are valued on the same answers, so differences between two of them share most
    of their noise: take the difference of `by_prompt` before its mean and error.

    Attributes:
        by_prompt: Each prompt's part; the gain is their mean. [prompts].
        sample_size: Effective number of answers, (Σw)²/Σw², in [1, answers]: how far the
            trained policy's answers are still those at hand.
    """

    by_prompt: Float[Tensor, " prompts"]
    sample_size: float

    @property
    def gain(self) -> float:
        """The mean over prompts."""
        return float(self.by_prompt.mean())

    @property
    def error(self) -> float:
        """Standard error of the mean; infinite with one prompt."""
        count = len(self.by_prompt)
        return float(self.by_prompt.std()) / math.sqrt(count) if count > 1 else math.inf


def value_by_scoring(
    log_ratios: Float[Tensor, "prompts answers"],
    rewards: Float[Tensor, "prompts answers"],
    *,
    form: str = "self-normalised",
) -> Value:
    """Value a policy by how likely it makes the judged answers of its start.

    With ℓ = log π(y|x) - log π_0(y|x), w = e^ℓ and b the mean reward of a prompt's other answers:

    - "self-normalised": Σ w u / Σ w - mean u; of small bias, bounded by the rewards at hand;
    - "clipped": mean min(w, 10) (u - b); without bias while nothing is clipped;
    - "first-order": mean ℓ (u - b): what `forecast` predicts, of least variance near the start.

    Args:
        log_ratios: ℓ of each answer, nats.
        rewards: u, the judge's value of each answer.
        form: One of the three.

    Returns:
        The gain over the start, by prompts.

    Raises:
        InputError: If the shapes differ, a prompt has fewer than two answers, or the form is
            unknown.

    Source:
        Ours; importance weighting: Horvitz and Thompson 1952, its self-normalised form: Hesterberg
        1995, Technometrics 37(2).
    """
    shapes = (log_ratios.shape, rewards.shape)
    if len({*shapes}) > 1 or len(shapes[0]) != _AXES or shapes[0][1] < _FEWEST_ANSWERS:
        raise InputError.of(
            saw=f"log-ratios {list(log_ratios.shape)} and rewards {list(rewards.shape)}",
            expected="[prompts, answers] both, with at least two answers a prompt",
            cure="sample more answers a prompt",
        )
    ratios, rewards = log_ratios.double(), rewards.double()
    answers = ratios.shape[1]
    advantages = (rewards - rewards.mean(1, keepdim=True)) * answers / (answers - 1)
    # Divided by each prompt's largest weight: only ratios of weights matter here.
    relative = (ratios - ratios.max(1, keepdim=True).values).exp()
    effective = relative.sum(1).square() / relative.square().sum(1)
    forms = {
        "self-normalised": lambda: (relative * rewards).sum(1) / relative.sum(1) - rewards.mean(1),
        "clipped": lambda: (ratios.exp().clamp_max(LARGEST_WEIGHT) * advantages).mean(1),
        "first-order": lambda: (ratios * advantages).mean(1),
    }
    if form not in forms:
        raise InputError.of(
            saw=f"form={form!r}", expected=f"one of {', '.join(forms)}", cure="fix it"
        )
    return Value(forms[form](), float(effective.sum()))
