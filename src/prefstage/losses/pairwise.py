"""Losses on a pair's log-ratios or log-probs, each pair by itself.

Throughout, `chosen` is a = log π(y_w|x) - log π_ref(y_w|x), `rejected` is b, the same of the
other response, both [items] in nats, and Δ = a - b; ℓ is log π(y|x) and L a response's tokens.
Every σ is computed through `logsigmoid` or as the sigmoid of the negated argument: log(1 - σ(z))
written out is -inf from z = 17 on in float32, and its gradient 0 / 0.
"""

import math
from abc import abstractmethod
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch.nn.functional import logsigmoid
from typing_extensions import override

from prefstage.core import refuse
from prefstage.losses.base import Items, Need, PairBatch, StatelessLoss

Beta = Annotated[float, Field(gt=0, description="Pull towards the reference, 1/nats.")]
FlipRate = Annotated[float, Field(ge=0, lt=0.5, description="Share of flipped labels.")]
Divergence = Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"]

MAX_EXPONENT = 30.0
"""Beyond it e^x goes on as a straight line of slope e^30, so that scores, and their squares in
IPO, stay finite in float32 and yet keep a slope."""

NO_NEEDS: frozenset[Need] = frozenset()


def bradley_terry(scaled: Items, flip_rate: float = 0.0) -> Items:
    """-log-likelihood of a preference of which a share of labels is taken to be flipped.

    ``-(1-ε) log σ(z) - ε log σ(-z)``.

    Args:
        scaled: z, difference of the two rewards. [items].
        flip_rate: ε, in [0, 0.5).

    Returns:
        Loss of every pair, unreduced. [items], nats.

    Source:
        Mitchell 2023, cDPO note, Eq. 3.
    """
    return -(1 - flip_rate) * logsigmoid(scaled) - flip_rate * logsigmoid(-scaled)


class RatioLoss(StatelessLoss):
    """A loss on the two log-ratios of a pair."""

    @abstractmethod
    def of_ratios(self, chosen: Items, rejected: Items) -> Items:
        """The loss from log-ratios.

        Args:
            chosen: log π(y|x) - log π_ref(y|x) of the preferred response. [items], nats.
            rejected: The same of the other response. [items], nats.

        Returns:
            Loss of every pair, unreduced. [items].
        """

    def _items(self, batch: Any) -> Items:
        return self.of_ratios(batch.chosen.log_ratios, batch.rejected.log_ratios)


class DivergenceLoss(RatioLoss):
    """A loss on log-ratios that another divergence than the reverse KL may score first."""

    f_divergence: Divergence = Field(
        default="reverse_kl", description="Divergence from the reference that is penalised."
    )
    f_alpha: float | None = Field(
        default=None, description="α of the α-divergence; 0.5 if not given. No other reads it."
    )

    @model_validator(mode="after")
    def _no_ignored_alpha(self) -> "DivergenceLoss":
        refuse(
            (
                self.f_alpha is not None and self.f_divergence != "alpha_divergence",
                f"f_alpha={self.f_alpha} has no effect with f_divergence={self.f_divergence}; "
                "expected alpha_divergence; set f_divergence: alpha_divergence, or leave it out",
            )
        )
        return self

    def _items(self, batch: Any) -> Items:
        return self.of_ratios(*self.scores(batch))

    def scores(self, batch: PairBatch, *, per_token: bool = False) -> list[Items]:
        """Both sides' log-ratios under the divergence, or their means over tokens. [items] each."""
        alpha = 0.5 if self.f_alpha is None else self.f_alpha
        return [
            divergence_score(side.log_ratios, divergence=self.f_divergence, alpha=alpha)
            / (side.lengths if per_token else 1)
            for side in (batch.chosen, batch.rejected)
        ]


def divergence_score(log_ratio: Items, *, divergence: Divergence, alpha: float) -> Items:
    """f'(t) at t = π(y|x)/π_ref(y|x), up to a constant that cancels between two responses.

    reverse KL: ``log t``; forward KL: ``1 - 1/t``; Jensen-Shannon: ``log 2t/(1+t)``;
    α-divergence: ``(t^(α-1) - 1)/(α-1)``, which is ``log t`` at α = 1.

    Args:
        log_ratio: log t. [items], nats.
        divergence: Which divergence.
        alpha: α of the α-divergence; no other one reads it.

    Returns:
        The score of each response. [items].

    Source:
        Wang et al. 2023, arXiv:2309.16240, Table 1; the α-divergence in the form of TRL.
        Departure: exponents beyond `MAX_EXPONENT`.
    """
    if divergence == "forward_kl":
        return -growth(-log_ratio)
    if divergence == "js_divergence":
        return math.log(2) + logsigmoid(log_ratio)
    if divergence == "alpha_divergence" and alpha != 1:
        return growth((alpha - 1) * log_ratio) / (alpha - 1)
    return log_ratio


def growth(exponent: Items) -> Items:
    """e^x - 1, a straight line beyond `MAX_EXPONENT`. [items]."""
    # A response of a few hundred tokens easily has a log-ratio of 100 nats; e^100 is inf in
    # float32, and inf - inf in the margin is NaN, which no later clamp can undo.
    beyond = torch.relu(exponent - MAX_EXPONENT)
    return torch.expm1(exponent.clamp(max=MAX_EXPONENT)) + math.exp(MAX_EXPONENT) * beyond


# --- Against a reference, under a divergence -------------------------------------------------


class DPO(
    DivergenceLoss,
    name="sigmoid",
    aliases=("dpo",),
    formula="-(1-ε) log σ(βΔ) - ε log σ(-βΔ)",
    source="Rafailov et al. 2023, arXiv:2305.18290, Eq. 7; ε: Mitchell 2023, cDPO note, Eq. 3",
):
    """DPO: Bradley-Terry likelihood of the pair; conservative with a flip rate."""

    beta: Beta = 0.1
    flip_rate: FlipRate = 0.0

    @override
    def of_ratios(self, chosen: Items, rejected: Items) -> Items:
        return bradley_terry(self.beta * (chosen - rejected), self.flip_rate)


class NormDPO(
    DivergenceLoss,
    name="sigmoid_norm",
    formula="-log σ(β(a/L_w - b/L_l))",
    source="TRL 1.16, loss_type sigmoid_norm",
):
    """DPO on means over tokens."""

    per_token: ClassVar[bool] = True
    beta: Beta = 0.1

    def _items(self, batch: Any) -> Items:
        return self.of_ratios(*self.scores(batch, per_token=True))

    @override
    def of_ratios(self, chosen: Items, rejected: Items) -> Items:
        return -logsigmoid(self.beta * (chosen - rejected))


class Hinge(
    DivergenceLoss,
    name="hinge",
    formula="max(0, 1 - βΔ)",
    source="Liu et al. 2023 (RSO), arXiv:2309.06657 (hinge-norm)",
):
    """RSO's hinge on the normalised margin."""

    # 1/β is the margin wanted, in nats.
    beta: Beta = 0.05

    @override
    def of_ratios(self, chosen: Items, rejected: Items) -> Items:
        return torch.relu(1 - self.beta * (chosen - rejected))


class IPO(
    DivergenceLoss,
    name="ipo",
    formula="(Δ̄ - 1/(2τ))², Δ̄ of means over tokens",
    source="Azar et al. 2023, arXiv:2310.12036, Eq. 17",
):
    """Squared distance of the margin from its goal."""

    tau: float = Field(default=0.1, gt=0, description="Regularisation, 1/nats.")
    per_token: bool = Field(default=True, description="Means over tokens, else sums.")

    def _items(self, batch: Any) -> Items:
        # The authors' own choice: a sum's goal of 1/(2τ) nats is reached by a long response alone.
        return self.of_ratios(*self.scores(batch, per_token=self.per_token))

    @override
    def of_ratios(self, chosen: Items, rejected: Items) -> Items:
        return (chosen - rejected - 1 / (2 * self.tau)).square()


class RobustDPO(
    DivergenceLoss,
    name="robust",
    formula="[-(1-ε) log σ(βΔ) + ε log σ(-βΔ)] / (1-2ε)",
    source="Chowdhury et al. 2024, arXiv:2403.00409",
):
    """DPO made unbiased under a known rate of flipped labels."""

    beta: Beta = 0.1
    flip_rate: FlipRate = 0.1

    @override
    def of_ratios(self, chosen: Items, rejected: Items) -> Items:
        scaled = self.beta * (chosen - rejected)
        clean = -(1 - self.flip_rate) * logsigmoid(scaled)
        # May be negative: it is the expectation over flips that is DPO's loss.
        return (clean + self.flip_rate * logsigmoid(-scaled)) / (1 - 2 * self.flip_rate)


class EXO(
    DivergenceLoss,
    name="exo",
    aliases=("exo_pair",),
    formula="s(ln s - ln(1-ε)) + (1-s)(ln(1-s) - ln ε), s = σ(βΔ)",
    source="Ji et al. 2024, arXiv:2402.00856, Eq. 16",
):
    """Reverse KL of the policy's preference from the smoothed label."""

    beta: Beta = 0.1
    # Above 0: the reverse KL from a label that is certain is infinite.
    flip_rate: float = Field(default=1e-3, gt=0, lt=0.5, description="Share of flipped labels.")

    @override
    def of_ratios(self, chosen: Items, rejected: Items) -> Items:
        scaled = self.beta * (chosen - rejected)
        kept = torch.sigmoid(scaled) * (logsigmoid(scaled) - math.log1p(-self.flip_rate))
        return kept + torch.sigmoid(-scaled) * (logsigmoid(-scaled) - math.log(self.flip_rate))


class DiscoPOP(
    DivergenceLoss,
    name="discopop",
    formula="(1-m)(-log σ(βΔ)) + m e^{-βΔ}, m = σ(βΔ/τ)",
    source="Lu et al. 2024, arXiv:2406.08414, Eq. 5 (LRML)",
):
    """The discovered blend of logistic and exponential loss."""

    beta: Beta = 0.1
    # At most 1, where the product m e^{-βΔ} is bounded.
    tau: float = Field(default=0.05, gt=0, le=1, description="Temperature of the blend.")

    @override
    def of_ratios(self, chosen: Items, rejected: Items) -> Items:
        scaled = self.beta * (chosen - rejected)
        logistic = -torch.sigmoid(-scaled / self.tau) * logsigmoid(scaled)
        # m e^{-βΔ} in logs: for a large negative margin it is 0 · inf otherwise.
        return logistic + torch.exp(logsigmoid(scaled / self.tau) - scaled)


# --- Against a reference, as it is ------------------------------------------------------------


class GammaDPO(
    StatelessLoss,
    name="gamma",
    aliases=("gamma_dpo",),
    formula="-log σ(β[(ℓ_w - ℓ_l) - γ(ℓ_w^ref - ℓ_l^ref)])",
    source="Chen et al. 2024, arXiv:2405.19534, Eq. 4",
):
    """DPO with a reference of adjustable weight."""

    beta: Beta = 0.1
    gamma: float = Field(default=1.0, ge=0, description="Weight of the reference; 1 is DPO.")

    def _items(self, batch: Any) -> Items:
        return self.of_margins(*margins(batch))

    def of_margins(self, policy: Items, reference: Items) -> Items:
        """The loss from differences of log-probs.

        Args:
            policy: ℓ_w - ℓ_l. [items], nats.
            reference: ℓ_w^ref - ℓ_l^ref. [items], nats.

        Returns:
            Loss of every pair, unreduced. [items].
        """
        return -logsigmoid(self.beta * (policy - self.gamma * reference))


def margins(batch: PairBatch) -> tuple[Items, Items]:
    """ℓ_w - ℓ_l of the policy and of the reference. [items] each, nats."""
    chosen, rejected = batch.chosen, batch.rejected
    return (
        chosen.log_probs - rejected.log_probs,
        chosen.reference_log_probs - rejected.reference_log_probs,
    )


class NCA(
    RatioLoss,
    name="nca",
    aliases=("nca_pair",),
    formula="-log σ(βa) - ½ log σ(-βa) - ½ log σ(-βb)",
    source="Chen et al. 2024, arXiv:2402.05369 (NCA for pairs)",
):
    """Noise-contrastive alignment on pairs."""

    beta: Beta = 0.01

    @override
    def of_ratios(self, chosen: Items, rejected: Items) -> Items:
        up, down = self.beta * chosen, self.beta * rejected
        return -logsigmoid(up) - 0.5 * logsigmoid(-up) - 0.5 * logsigmoid(-down)


class DPOP(
    RatioLoss,
    name="dpop",
    formula="-log σ(β(Δ - λ max(0, -a)))",
    source="Pal et al. 2024 (Smaug), arXiv:2402.13228",
):
    """DPO that holds the chosen response up."""

    beta: Beta = 0.1
    penalty: float = Field(default=50.0, ge=0, description="λ, on max(0, -a).")

    @override
    def of_ratios(self, chosen: Items, rejected: Items) -> Items:
        return -logsigmoid(self.beta * (chosen - rejected - self.penalty * torch.relu(-chosen)))


class ODPO(
    StatelessLoss,
    name="odpo",
    formula="-log σ(βΔ - α f(r_w - r_l)), f = log, or none; 0 where log has no value",
    source="Amini et al. 2024, arXiv:2402.10571; f as in the official code",
    needs=frozenset({"reference", "scores"}),
):
    """DPO with an offset: the margin wanted grows with that of the scores."""

    beta: Beta = 0.1
    alpha: float = Field(default=1.0, ge=0, description="α: weight of the offset.")
    offset: Literal["log", "difference"] = Field(
        default="log", description="The offset: the log of the scores' difference, or itself."
    )

    def _items(self, batch: Any) -> Items:
        offset = (batch.chosen.scores - batch.rejected.scores).detach()
        wanted = torch.ones_like(offset, dtype=torch.bool)
        if self.offset == "log":
            # Scores that are equal, or against the label, ask for a margin of -∞: no loss.
            wanted = offset > 0
            offset = torch.where(wanted, offset, 1.0).log()
        margin = batch.chosen.log_ratios - batch.rejected.log_ratios
        values = -logsigmoid(self.beta * margin - self.alpha * offset)
        return torch.where(wanted, values, 0.0)


class ChiPO(
    RatioLoss,
    name="chi_po",
    formula="-log σ(clip(β(φ(a) - φ(b)), ±2R)), φ(x) = e^x + x",
    source="Huang et al. 2024, arXiv:2407.13399, Algorithm 1; e^x as in the f-divergences",
):
    """χPO: DPO whose log-ratio has the ratio added, against over-optimisation."""

    beta: Beta = 0.1
    max_reward: float | None = Field(
        default=None, gt=0, description="R: largest reward; rewards differ by 2R at most."
    )

    @override
    def of_ratios(self, chosen: Items, rejected: Items) -> Items:
        scaled = self.beta * (growth(chosen) + chosen - growth(rejected) - rejected)
        bound = math.inf if self.max_reward is None else 2 * self.max_reward
        return -logsigmoid(scaled.clamp(-bound, bound))


class CalDPO(
    RatioLoss,
    name="cal_dpo",
    formula="-log σ(Δ) + ½[(a - 1/(2β))² + (b + 1/(2β))²]",
    source="Xiao et al. 2024, arXiv:2412.14516, with the weights of the official code",
):
    """DPO with log-ratios calibrated to ±1/(2β)."""

    beta: Beta = 1e-3

    @override
    def of_ratios(self, chosen: Items, rejected: Items) -> Items:
        return -logsigmoid(chosen - rejected) + _distance(chosen, rejected, 0.5 / self.beta)


class SPPO(
    StatelessLoss,
    name="sppo",
    formula="½[(a - (P_w - ½)/β)² + (b - (P_l - ½)/β)²]",
    source="Wu et al. 2024, arXiv:2405.00675, Eq. 4.7; the factor ½ as in the official code",
    needs=frozenset({"reference", "preference"}),
):
    """Self-play: log-ratios go to the judge's win rates."""

    beta: Beta = 1e-3

    def _items(self, batch: Any) -> Items:
        # The judge's preference is data, even if it comes as somebody's differentiable output.
        goal = (batch.preference.detach() - 0.5) / self.beta
        return _distance(batch.chosen.log_ratios, batch.rejected.log_ratios, goal)


class HardSPPO(
    RatioLoss,
    name="sppo_hard",
    formula="½[(a - 1/(2β))² + (b + 1/(2β))²]",
    source="Wu et al. 2024, arXiv:2405.00675, Eq. 4.7",
):
    """SPPO with a win rate of 1."""

    beta: Beta = 1e-3

    @override
    def of_ratios(self, chosen: Items, rejected: Items) -> Items:
        return _distance(chosen, rejected, 0.5 / self.beta)


# Half the squared distance of two log-ratios from a goal and its negative.
def _distance(chosen: Items, rejected: Items, goal: Items | float) -> Items:
    return 0.5 * ((chosen - goal).square() + (rejected + goal).square())


class APOZero(
    RatioLoss,
    name="apo_zero",
    formula="1 - σ(βa) + σ(βb)",
    source="D'Oosterlinck et al. 2024, arXiv:2408.06266, Eq. 7",
):
    """Anchored: chosen up, rejected down."""

    beta: Beta = 0.1

    @override
    def of_ratios(self, chosen: Items, rejected: Items) -> Items:
        return torch.sigmoid(-self.beta * chosen) + torch.sigmoid(self.beta * rejected)


class APODown(
    RatioLoss,
    name="apo_down",
    formula="σ(βa) + 1 - σ(βΔ)",
    source="D'Oosterlinck et al. 2024, arXiv:2408.06266, Eq. 8",
):
    """Anchored: both down, rejected more."""

    beta: Beta = 0.1

    @override
    def of_ratios(self, chosen: Items, rejected: Items) -> Items:
        return torch.sigmoid(self.beta * chosen) + torch.sigmoid(self.beta * (rejected - chosen))
