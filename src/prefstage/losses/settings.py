"""Constants of the losses, with their defaults and ranges."""

from typing import Any, Literal

from pydantic import Field, model_validator

from prefstage.losses.divergences import Divergence
from prefstage.losses.registry import LossSettings


def _beta(default: float) -> Any:
    return Field(default=default, gt=0, description="Pull towards the reference, 1/nats.")


class BetaSettings(LossSettings):
    """β alone."""

    beta: float = _beta(0.1)


class SmallBetaSettings(LossSettings):
    """β alone, of a smaller default."""

    beta: float = _beta(0.01)


class DivergenceSettings(LossSettings):
    """How log-ratios are scored."""

    f_divergence: Divergence = Field(
        default="reverse_kl", description="Divergence from the reference that is penalised."
    )
    f_alpha: float | None = Field(
        default=None, description="α of the α-divergence; 0.5 if not given. No other reads it."
    )

    @model_validator(mode="after")
    def _no_ignored_alpha(self) -> "DivergenceSettings":
        if self.f_alpha is not None and self.f_divergence != "alpha_divergence":
            raise ValueError(
                f"f_alpha={self.f_alpha:g} has no effect with f_divergence={self.f_divergence}; "
                "expected alpha_divergence; set f_divergence: alpha_divergence, or leave it out"
            )
        return self


class SigmoidSettings(DivergenceSettings):
    """β and the share of flipped labels."""

    beta: float = _beta(0.1)
    flip_rate: float = Field(default=0.0, ge=0, lt=0.5, description="Share of flipped labels.")


class NormSettings(DivergenceSettings):
    """β on means over tokens."""

    beta: float = _beta(0.1)


class HingeSettings(DivergenceSettings):
    """β, whose inverse is the margin."""

    beta: float = _beta(0.05)


class IpoSettings(DivergenceSettings):
    """τ, and whether log-ratios are means or sums over tokens."""

    tau: float = Field(default=0.1, gt=0, description="Regularisation, 1/nats.")
    per_token: bool = Field(default=True, description="Means over tokens, else sums.")


class RobustSettings(DivergenceSettings):
    """β and the known share of flipped labels."""

    beta: float = _beta(0.1)
    flip_rate: float = Field(default=0.1, ge=0, lt=0.5, description="Share of flipped labels.")


class ExoSettings(DivergenceSettings):
    """β and the label smoothing."""

    beta: float = _beta(0.1)
    flip_rate: float = Field(default=1e-3, gt=0, lt=0.5, description="Share of flipped labels.")


class DiscopopSettings(DivergenceSettings):
    """β and the temperature of the blend."""

    beta: float = _beta(0.1)
    tau: float = Field(default=0.05, gt=0, le=1, description="Temperature of the blend.")


class GammaSettings(LossSettings):
    """β and the weight of the reference."""

    beta: float = _beta(0.1)
    gamma: float = Field(default=1.0, ge=0, description="Weight of the reference; 1 is DPO.")


class AotSettings(LossSettings):
    """β and the share of flipped labels."""

    beta: float = _beta(0.01)
    flip_rate: float = Field(default=0.0, ge=0, lt=0.5, description="Share of flipped labels.")


class RDpoSettings(LossSettings):
    """β and the length term."""

    beta: float = _beta(0.1)
    alpha: float = Field(default=0.01, ge=0, description="Length term, 1/tokens.")


class DpopSettings(LossSettings):
    """β and the penalty of a falling chosen response."""

    beta: float = _beta(0.1)
    penalty: float = Field(default=50.0, ge=0, description="λ, on max(0, -a).")


class CalibratedSettings(LossSettings):
    """β, which sets the goals of the log-ratios."""

    beta: float = _beta(1e-3)


class BcoSettings(LossSettings):
    """β and the shift."""

    beta: float = _beta(0.1)
    shift: Literal["running-mean", "none"] = Field(
        default="running-mean", description="δ: the running mean of rewards, or none."
    )


class SgdpoSettings(LossSettings):
    """β and the shares of tokens in the pilots."""

    beta: float = _beta(0.1)
    r1: float = Field(default=0.6, gt=0, le=1, description="Share of tokens, chosen pilot.")
    r2: float = Field(default=0.9, gt=0, le=1, description="Share of tokens, rejected pilot.")


class LdDpoSettings(LossSettings):
    """β and the weight of the tokens past the shorter response."""

    beta: float = _beta(0.1)
    alpha: float = Field(default=0.5, ge=0, le=1, description="Weight past the shorter length.")


class BetaDpoSettings(LossSettings):
    """β_0, its gain, the memory of the running mean, and the share of pairs kept."""

    beta: float = _beta(0.1)
    gain: float = Field(default=0.6, ge=0, description="a: how β follows the margin, 1/nats.")
    memory: float = Field(default=0.9, ge=0, lt=1, description="Weight of the past in means.")
    keep: float = Field(default=0.8, gt=0, le=1, description="Share of pairs kept.")


class RePoSettings(LossSettings):
    """β, the annotators' first reliability, and how fast it is learnt."""

    beta: float = _beta(0.1)
    reliability: float = Field(default=0.9, gt=0, lt=1, description="η before the first step.")
    rate: float = Field(default=0.1, ge=0, le=1, description="α: weight of the present batch.")


class SlicSettings(LossSettings):
    """Margin and imitation."""

    margin: float = Field(default=1.0, ge=0, description="δ, nats.")
    imitation: float = Field(default=0.1, ge=0, description="λ: weight of imitation.")


class SimpoSettings(LossSettings):
    """β on means over tokens, and the margin."""

    beta: float = _beta(2.0)
    margin: float = Field(default=1.0, ge=0, description="γ: target margin.")


class OrpoSettings(LossSettings):
    """Weight of the odds ratio."""

    odds_weight: float = Field(default=0.1, ge=0, description="λ: weight of the odds ratio.")


class CpoSettings(LossSettings):
    """β and the weight of imitation."""

    beta: float = _beta(0.1)
    imitation: float = Field(default=1.0, ge=0, description="α: weight of imitation.")


class ExoRwSettings(LossSettings):
    """Temperatures of policy and reward."""

    beta: float = _beta(0.5)
    temperature: float = Field(default=0.5, gt=0, description="β_r, in units of the scores.")


class InfoncaSettings(LossSettings):
    """β and the temperature of the scores."""

    beta: float = _beta(0.01)
    temperature: float = Field(default=1.0, gt=0, description="α, in units of the scores.")


class KtoSettings(LossSettings):
    """β and the weights of gains and losses."""

    beta: float = _beta(0.1)
    desirable_weight: float = Field(default=1.0, ge=0, description="λ_D.")
    undesirable_weight: float = Field(default=1.0, ge=0, description="λ_U.")


class SftSettings(LossSettings):
    """Nothing to set."""
