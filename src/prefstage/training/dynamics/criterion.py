"""The loss that pairs are followed by, and the threshold below which it ranks them rightly."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from prefstage.core import PrefstageError
from prefstage.data.storage import Numbers
from prefstage.diagnosing.flips import (
    dpo_losses,
    flip_threshold,
    ipo_flip_threshold,
    reference_log_ratio,
    threshold_violations,
)
from prefstage.diagnosing.rankings import mean_log_probs, ranking_accuracy

Sides = tuple[Float[Tensor, " pairs"], Float[Tensor, " pairs"]]
"""Of the chosen and of the rejected responses. [pairs] each."""
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Criterion:
    """DPO's loss at β, or IPO's at τ, with the threshold that goes with it.

    Attributes:
        scale: β of DPO, τ of IPO, > 0. 1/nats.
        name: "DPO" or "IPO".
        per_token: Whether the loss, its log-ratio and the ranking that it decides are of means
            over tokens (IPO's default), else of sums.
    """

    scale: float
    name: str = "DPO"
    per_token: bool = False

    @classmethod
    def of(cls, about: Mapping[str, Any]) -> "Criterion":
        """The criterion that `about.json` names."""
        return cls(float(about["beta"]), **about.get("loss", {}))

    @property
    def settings(self) -> dict[str, Any]:
        """What `about.json` says of it beyond β; DPO needs nothing more."""
        if self.name == "DPO":
            return {}
        return {"loss": {"name": self.name, "per_token": self.per_token}}

    @property
    def formula(self) -> str:
        """The threshold's, for captions."""
        return (
            f"−log σ({self.scale:g} c)"
            if self.name == "DPO"
            else f"({1 / (2 * self.scale):g} − c)²"
        )

    def measure(self, policy: Sides, reference: Sides, lengths: Int[Tensor, "pairs 2"]) -> Sides:
        """Loss and threshold of each pair.

        Args:
            policy: Log-probs under the policy, summed over tokens. Nats.
            reference: Likewise under the reference.
            lengths: Tokens of both responses.

        Returns:
            Loss, and the loss at or below which the pair is ranked rightly (NaN where IPO
            guarantees it at none).

        Raises:
            InputError: If a log-prob is not finite.
            PrefstageError: If a pair stands on the wrong side of its threshold, which Theorem
                4.1 and Proposition A.7 rule out.

        Source:
            Chen et al. 2024, arXiv:2405.19534, Theorem 4.1; of IPO Proposition A.7, which holds
            in one direction: above the threshold either order is possible.
        """
        policy, reference = self._scaled(policy, lengths), self._scaled(reference, lengths)
        c, right = reference_log_ratio(*reference), ranking_accuracy(*policy).bool()
        if self.name == "DPO":
            loss = dpo_losses(*policy, c, beta=self.scale)
            threshold = flip_threshold(c, beta=self.scale)
            broken = threshold_violations(loss, threshold, right)
        else:
            loss = ((policy[0] - policy[1]) + c - 1 / (2 * self.scale)).square()
            threshold = ipo_flip_threshold(c, tau=self.scale)
            broken = (loss < threshold * (1 - _ROUNDING)) & ~right
        PrefstageError.unless(
            not broken.any(),
            saw=f"{int(broken.sum())} of {len(loss)} pairs on the wrong side of their flip "
            "threshold",
            expected="none: the theorem is exact",
            cure="report it; losses, rankings and reference are not of the same pairs",
        )
        return loss, threshold

    def points(self, pairs: Mapping[str, Any]) -> tuple[Numbers, Bool[np.ndarray, " pairs"]]:
        """What the threshold's figure shows of recorded pairs.

        Args:
            pairs: The columns of records, as tensors or arrays. [pairs] each.

        Returns:
            The reference log-ratio c that the threshold is of, nats (a token, `per_token`), and
            whether the policy ranks the pair rightly, by sums or by means alike.
        """

        def sides(which: str) -> Sides:
            chosen, rejected = (
                torch.as_tensor(np.array(pairs[f"{which}{side}_log_prob"]))
                for side in ("chosen", "rejected")
            )
            return chosen, rejected

        lengths = torch.stack(
            [torch.as_tensor(np.array(pairs[f"{s}_tokens"])) for s in ("chosen", "rejected")], 1
        )
        c = reference_log_ratio(*self._scaled(sides("reference_"), lengths))
        return c.numpy(), ranking_accuracy(*self._scaled(sides(""), lengths)).bool().numpy()

    def curve(self, log_ratio: Numbers) -> Numbers:
        """The threshold at reference log-ratios; NaN where there is none. [points]."""
        if self.name == "DPO":
            # logaddexp(0, -z) is -log σ(z) without overflow, however far a pair is from others.
            return np.asarray(np.logaddexp(0.0, -self.scale * log_ratio))
        return ipo_flip_threshold(torch.as_tensor(log_ratio), tau=self.scale).numpy()

    def _scaled(self, sides: Sides, lengths: Int[Tensor, "pairs 2"]) -> Sides:
        if not self.per_token:
            return sides
        return mean_log_probs(sides[0], lengths[:, 0]), mean_log_probs(sides[1], lengths[:, 1])
