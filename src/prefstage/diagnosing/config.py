"""What can be asked of a diagnosis."""

from typing import Any

from pydantic import Field

from prefstage.core.config import Config


class DiagnosisConfig(Config):
    """How pairs are diagnosed; the limits of the groups are in nats of the log-ratio."""

    beta: float = Field(default=0.1, gt=0, description="Of the training that is planned.")
    target_loss: float = Field(
        default=0.5, gt=0, description="DPO loss that training is expected to reach, nats."
    )
    easy_below: float = Field(default=-50.0, le=0, description="Log-ratio of easy pairs, nats.")
    flip_below: float = Field(default=5.0, gt=0, description="Of pairs easy to flip, nats.")
    hard_above: float = Field(default=50.0, gt=0, description="Of hard pairs, nats.")
    confidence: float = Field(default=0.95, gt=0, lt=1, description="Of intervals.")
    resamples: int = Field(default=1000, ge=1, description="Of the bootstrap by prompt.")
    examples: int = Field(default=3, ge=0, description="Shown a group.")
    max_pairs: int | None = Field(
        default=None, ge=1, description="A random sample of so many pairs; None for all."
    )
    seed: int = Field(default=0, ge=0, description="Of sample, bootstrap and draws.")

    @property
    def bootstrap(self) -> dict[str, Any]:
        """The arguments of `bootstrap_interval`."""
        return self.model_dump(include={"confidence", "resamples", "seed"})
