"""Pilots: what a trained policy gained by its start's judged answers, and the race of them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import NormalDist

import torch
from jaxtyping import Float
from torch import Tensor

from prefstage.core import InputError

LARGEST_WEIGHT = 10.0
_TWO = 2
_SMALLEST_SPREAD = 1e-12


@dataclass(frozen=True)
class Value:
    """A gain in judged quality, prompt by prompt, in the judge's units.

    All candidates are valued on the same answers, so differences between two of them share most
    of their noise: take the difference of `by_prompt` before its mean and error.

    Attributes:
        by_prompt: Each prompt's part; the gain is their mean. [prompts].
        sample_size: Effective number of answers, (Σw)²/Σw², in [1, answers]: how far the
            trained policy's answers are still those at hand. None of a value by new answers.
    """

    by_prompt: Float[Tensor, " prompts"]
    sample_size: float | None = None

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
    form: str = "clipped",
    compared: bool = False,
) -> Value:
    """Value a policy by how likely it makes the judged answers of its start.

    With ℓ = log π(y|x) - log π_0(y|x), w = e^ℓ and b the mean reward of a prompt's other answers:

    - "clipped": mean min(w, 10) (u - b); without bias while nothing is clipped;
    - "self-normalised": Σ w u / Σ w - mean u; of small bias, bounded by the rewards at hand;
    - "first-order": mean ℓ (u - b): what `forecast` predicts, of least variance near the start.

    Args:
        log_ratios: ℓ of each answer, nats.
        rewards: u, the judge's value of each answer.
        form: One of the three.
        compared: Whether u is a mean P(wins) against the prompt's other answers: then b = ½.

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
    InputError.unless(
        len({*shapes}) == 1 and len(shapes[0]) == _TWO and shapes[0][1] >= _TWO,
        saw=f"log-ratios {list(log_ratios.shape)} and rewards {list(rewards.shape)}",
        expected="[prompts, answers] both, with at least two answers a prompt",
        cure="sample more answers a prompt",
    )
    ratios, rewards = log_ratios.double(), rewards.double()
    answers = ratios.shape[1]
    others = (rewards - rewards.mean(1, keepdim=True)) * answers / (answers - 1)
    advantages = rewards - 1 / 2 if compared else others  # from the mean of the others
    # Divided by each prompt's largest weight: only ratios of weights matter here.
    relative = (ratios - ratios.max(1, keepdim=True).values).exp()
    effective = relative.sum(1).square() / relative.square().sum(1)
    forms = {
        "self-normalised": lambda: (relative * rewards).sum(1) / relative.sum(1) - rewards.mean(1),
        "clipped": lambda: (ratios.exp().clamp_max(LARGEST_WEIGHT) * advantages).mean(1),
        "first-order": lambda: (ratios * advantages).mean(1),
    }
    InputError.unless(
        form in forms, saw=f"form={form!r}", expected=f"one of {', '.join(forms)}", cure="fix it"
    )
    return Value(forms[form](), float(effective.sum()))


@dataclass(frozen=True)
class Heat:
    """Pilots of one size, valued on the same judged answers.

    Attributes:
        share: Of each candidate's prompts that they were trained on, in (0, 1].
        values: Gain over the start by candidate, training seed and prompt. [seeds, prompts].
    """

    share: float
    values: Mapping[str, Float[Tensor, "seeds prompts"]]

    def gain(self, name: str) -> float:
        """Mean gain of a candidate, in the units of the judge."""
        return float(self.values[name].double().mean())

    def error(self, names: Sequence[str]) -> float:
        """Standard error of the difference of two candidates, root mean square over all pairs.

        Prompts are common, so that their noise mostly cancels. How much a training's seed moves
        its value is known from two seeds on; with one, the error is that of these very trainings
        and not of others by the same recipe.

        Args:
            names: At least two.

        Returns:
            The error, in the units of the judge.
        """
        values = {name: self.values[name].double() for name in names}
        seeds, prompts = next(iter(values.values())).shape
        means = torch.stack([value.mean(0) for value in values.values()])
        of_prompts = [float((a - b).var()) / prompts for a, b in combinations(means, 2)]
        of_seeds = 0.0
        if seeds >= _TWO:
            by_seed = torch.stack([value.mean(1) for value in values.values()])
            of_seeds = 2 * float(by_seed.var(1).mean()) / seeds
        return math.sqrt(sum(of_prompts) / len(of_prompts) + of_seeds)


Rated = Mapping[str, tuple[float, float]]
"""Of each candidate a forecast's rating, and the error of its difference from the best's."""


def standing(heats: Sequence[Heat], forecast: Rated | None = None) -> dict[str, float]:
    """How far each candidate of the last heat is behind the leader, in standard errors.

    Each heat's gains are divided by its error, so that heats of any size add up, and the sum of H
    independent heats by √H; a forecast counts as one of them.

    Args:
        heats: At least one, all with the candidates of the last; the first heat may have more.
        forecast: Of the candidates too, if there was one.

    Returns:
        Distances, >= 0, the leader's (0) first.

    Source:
        Ours; the sum of standard scores: Stouffer et al. 1949.
    """
    names = list(heats[-1].values)
    scores, parts = dict.fromkeys(names, 0.0), list[tuple[dict[str, float], float]]()
    if len(names) >= _TWO:
        parts = [({name: h.gain(name) for name in names}, h.error(names)) for h in heats]
    if parts and forecast is not None:
        squares = [forecast[name][1] ** 2 for name in names if forecast[name][1]]
        error = math.sqrt(sum(squares) / max(len(squares), 1))
        parts.append(({name: forecast[name][0] for name in names}, error))
    for gains, error in parts:
        for name, gain in gains.items():
            scores[name] += gain / max(error, _SMALLEST_SPREAD)
    best, count = max(scores.values()), max(len(parts), 1)
    distances = {name: (best - score) / math.sqrt(count) for name, score in scores.items()}
    return dict(sorted(distances.items(), key=lambda item: item[1]))


def survivors(
    heats: Sequence[Heat], forecast: Rated | None = None, *, confidence: float = 0.95
) -> list[str]:
    """Who runs the next heat: nobody who is clearly behind, and of three or more the better half.

    Args:
        heats: As of `standing`.
        forecast: Likewise.
        confidence: That no candidate is called behind wrongly, over all pairs of them. What is
            clear needs the noise between training seeds: with one seed a heat, only halving
            leaves candidates out.

    Returns:
        Their names, the leader first; alone, it is decided.

    Source:
        Successive halving: Jamieson and Talwalkar 2016, arXiv:1502.07943.
    """
    names, behind = list(standing(heats, forecast)), standing(heats)
    seeds = len(next(iter(heats[-1].values.values())))
    if seeds >= _TWO and len(names) >= _TWO:
        pairs = len(names) * (len(names) - 1) / 2
        clear = NormalDist().inv_cdf(1 - (1 - confidence) / (2 * pairs))
        # By pilots alone: how far a forecast is off is not in its error.
        names = [name for name in names if behind[name] <= clear]
    return names[: math.ceil(len(names) / 2)] if len(names) > _TWO else names
