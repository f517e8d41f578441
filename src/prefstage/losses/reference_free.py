"""Losses on a pair's log-probs by the policy alone: no reference model."""

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch.nn.functional import logsigmoid
from typing_extensions import override

from prefstage.core import refuse
from prefstage.losses.base import Items, Need, Responses, StatelessLoss
from prefstage.losses.pairwise import (
    DPO,
    IPO,
    NO_NEEDS,
    Beta,
    FlipRate,
    Hinge,
    RatioLoss,
    bradley_terry,
    growth,
)

GOLD: frozenset[Need] = frozenset({"gold"})


class SLiC(
    StatelessLoss,
    name="slic",
    formula="max(0, δ - ℓ_w + ℓ_l) - λ ℓ_w",
    source="Zhao et al. 2023, arXiv:2305.10425; arXiv:2508.10530, Eq. 25",
    needs=NO_NEEDS,
):
    """SLiC-HF: calibrate the likelihood of the pair, imitate the chosen response."""

    margin: float = Field(default=1.0, ge=0, description="δ, nats.")
    imitation: float = Field(default=0.1, ge=0, description="λ: weight of imitation.")

    def _items(self, batch: Any) -> Items:
        chosen: Items = batch.chosen.log_probs
        return torch.relu(self.margin - chosen + batch.rejected.log_probs) - self.imitation * chosen


class SimPO(
    StatelessLoss,
    name="simpo",
    formula="-log σ(β(ℓ_w/L_w - ℓ_l/L_l) - γ), smoothed by ε",
    source="Meng et al. 2024, arXiv:2405.14734",
    needs=NO_NEEDS,
):
    """Mean log-probs with a target margin, no reference."""

    per_token: ClassVar[bool] = True
    beta: Beta = 2.0
    margin: float = Field(default=1.0, ge=0, description="γ: target margin.")
    flip_rate: FlipRate = 0.0

    def _items(self, batch: Any) -> Items:
        gap = self.shaped(batch.chosen.mean_log_probs) - self.shaped(batch.rejected.mean_log_probs)
        return bradley_terry(self.beta * gap - self.margin, self.flip_rate)

    def shaped(self, mean: Items) -> Items:
        """The reward of a response, over β, from its mean log-prob. [items]."""
        return mean


class AlphaPO(
    SimPO,
    name="alphapo",
    formula="-log σ(β(r_w - r_l) - γ), r = (1 - e^{-αℓ/L})/α, smoothed by ε",
    source="Gupta et al. 2025, arXiv:2501.03884; e^x as in the f-divergences",
):
    """SimPO whose reward is a power of the likelihood instead of its logarithm."""

    alpha: float = Field(
        default=0.25, ge=-10, le=10, description="α: shape of the reward; 0 is SimPO."
    )

    @override
    def shaped(self, mean: Items) -> Items:
        return growth(-self.alpha * mean) / -self.alpha if self.alpha else mean


class TPOL(
    SimPO,
    name="tpo_l",
    aliases=("tpo-l",),
    formula="-log σ(β(ℓ_w/L_w - ℓ_l/L_l) - γ) - α ℓ_g/L_g, smoothed by ε",
    source="Saeidi et al. 2024, arXiv:2405.16681 (TPO-L); γ as in TRL",
    needs=GOLD,
):
    """SimPO, and imitation of a third, gold response."""

    margin: float = Field(default=0.5, ge=0, description="γ: target margin.")
    imitation: float = Field(default=1.0, ge=0, description="α: weight of imitation.")

    def _items(self, batch: Any) -> Items:
        imitated: Items = self.imitation * batch.gold.mean_log_probs
        return super()._items(batch) - imitated


class ORPO(
    StatelessLoss,
    name="orpo",
    formula="-ℓ_w/L_w - λ log σ(log-odds difference of e^{ℓ/L})",
    source="Hong et al. 2024, arXiv:2403.07691",
    needs=NO_NEEDS,
):
    """Imitation and an odds ratio, no reference."""

    odds_weight: float = Field(default=0.1, ge=0, description="λ: weight of the odds ratio.")

    def _items(self, batch: Any) -> Items:
        chosen: Items = batch.chosen.mean_log_probs
        odds = _log_odds(chosen) - _log_odds(batch.rejected.mean_log_probs)
        return -chosen - self.odds_weight * logsigmoid(odds)

    @override
    def reward_scale(self, lengths: Items) -> Items:
        return self.odds_weight / lengths


# Log-odds of p = e^mean.
def _log_odds(mean: Items) -> Items:
    # A response that is certain (p = 1) has infinite odds: as if 1 - p were one rounding. For
    # every other p, expm1 keeps the digits of 1 - p that 1 - exp(mean) would cancel.
    mean = mean.clamp(max=-torch.finfo(mean.dtype).eps)
    return mean - torch.log(-torch.expm1(mean))


class CPO(
    StatelessLoss,
    name="cpo",
    formula="-log σ(β(ℓ_w - ℓ_l)) - α ℓ_w/L_w, smoothed by ε; contrast hinge and ipo as theirs",
    source="Xu et al. 2024, arXiv:2401.08417; imitation by token means as in the official code",
    needs=NO_NEEDS,
):
    """DPO without a reference, and imitation."""

    beta: Beta = 0.1
    imitation: float = Field(default=1.0, ge=0, description="α: weight of imitation.")
    flip_rate: FlipRate = 0.0
    contrast: Literal["sigmoid", "hinge", "ipo"] = Field(
        default="sigmoid", description="Loss of the pair; ipo on means, its τ being β."
    )

    @model_validator(mode="after")
    def _no_ignored_flip_rate(self) -> "CPO":
        refuse(
            (
                self.flip_rate > 0 and self.contrast != "sigmoid",
                f"flip_rate={self.flip_rate} has no effect with contrast={self.contrast}; "
                "expected sigmoid; set contrast: sigmoid, or leave it out",
            )
        )
        return self

    @property
    def per_token(self) -> bool:
        """Whether the pair's loss is one of means over tokens."""
        return self.contrast == "ipo"

    def _items(self, batch: Any) -> Items:
        means = self.per_token
        sides = batch.chosen, batch.rejected
        pair = [side.mean_log_probs if means else side.log_probs for side in sides]
        loss: RatioLoss = DPO(beta=self.beta, flip_rate=self.flip_rate)
        if self.contrast != "sigmoid":
            loss = IPO(tau=self.beta) if means else Hinge(beta=self.beta)
        return loss.of_ratios(*pair) - self.imitation * self.imitated(batch).mean_log_probs

    def imitated(self, batch: Any) -> Responses:
        """The responses that are imitated."""
        responses: Responses = batch.chosen
        return responses


class TPO(
    CPO,
    name="tpo",
    formula="-log σ(β(ℓ_w - ℓ_l)) - α ℓ_g/L_g, smoothed by ε; contrast hinge and ipo as theirs",
    source="Saeidi et al. 2024, arXiv:2405.16681; β and contrasts as in TRL",
    needs=GOLD,
):
    """DPO without a reference, and imitation of a third, gold response."""

    beta: Beta = 0.01

    @override
    def imitated(self, batch: Any) -> Responses:
        responses: Responses = batch.gold
        return responses
