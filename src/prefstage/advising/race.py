"""The race of pilots: who leads, and who is so far behind that he need not run on."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import NormalDist

import torch
from jaxtyping import Float
from torch import Tensor

_TWO = 2
_SMALLEST_SPREAD = 1e-12


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


def standing(heats: Sequence[Heat]) -> dict[str, float]:
    """How far each candidate of the last heat is behind the leader, in standard errors.

    Each heat's gains are divided by its error, so that heats of any size add up, and the sum of H
    independent heats by √H.

    Args:
        heats: At least one, all with the candidates of the last; the first heat may have more.

    Returns:
        Distances, >= 0, the leader's (0) first.

    Source:
        Ours; the sum of standard scores: Stouffer et al. 1949.
    """
    names = list(heats[-1].values)
    scores = dict.fromkeys(names, 0.0)
    for heat in heats if len(names) >= _TWO else ():
        spread = max(heat.error(names), _SMALLEST_SPREAD)
        for name in names:
            scores[name] += heat.gain(name) / spread
    best = max(scores.values())
    distances = {name: (best - score) / math.sqrt(len(heats)) for name, score in scores.items()}
    return dict(sorted(distances.items(), key=lambda item: item[1]))


def survivors(heats: Sequence[Heat], *, confidence: float = 0.95) -> list[str]:
    """Who runs the next heat: nobody who is clearly behind, and of three or more the better half.

    Args:
        heats: As of `standing`.
        confidence: That no candidate is called behind wrongly, over all pairs of them. What is
            clear needs the noise between training seeds: with one seed a heat, only halving
            leaves candidates out.

    Returns:
        Their names, the leader first; alone, it is decided.

    Source:
        Successive halving: Jamieson and Talwalkar 2016, arXiv:1502.07943.
    """
    distances = standing(heats)
    names = list(distances)
    seeds = len(next(iter(heats[-1].values.values())))
    if seeds >= _TWO and len(names) >= _TWO:
        pairs = len(names) * (len(names) - 1) / 2
        clear = NormalDist().inv_cdf(1 - (1 - confidence) / (2 * pairs))
        names = [name for name in names if distances[name] <= clear]
    return names[: math.ceil(len(names) / 2)] if len(names) > _TWO else names
