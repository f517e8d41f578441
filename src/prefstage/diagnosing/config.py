"""What can be asked of a diagnosis."""

from pathlib import Path
from typing import Any

from pydantic import Field

from prefstage.core import Config
from prefstage.data.settings import BadRowSettings, ChatSettings


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


class DiagnoseSettings(DiagnosisConfig, ChatSettings, BadRowSettings):
    """As YAML and the command have it: what is diagnosed, by whom, and how."""

    pairs: tuple[str, ...] = Field(
        default=(), description="Pairs to diagnose: file, folder or Hub id; NAME=... names them."
    )
    ranked: tuple[str, ...] = Field(
        default=(),
        description="Candidates with scores (n > 2): does the policy rank them alike? NAME=...",
    )
    policy: tuple[str, ...] = Field(
        default=(), description="Model folder or Hub id; may stand several times."
    )
    reference: str | None = Field(
        default=None, description="What training started from; leave out before training."
    )
    judge: str | None = Field(default=None, description="Who says which response is better.")
    second_judge: str | None = Field(
        default=None, description="Another judge, for their consistency."
    )
    on_policy: str | None = Field(
        default=None, description="The policy's own answers, from prefstage sample."
    )
    store: Path | None = Field(
        default=None,
        description="Judgment store (SQLite): what is in it is not judged again.",
    )
    cache: Path | None = Field(
        default=None, description="Folder for log-probs: what is in it is not scored again."
    )
    max_prompt_tokens: int | None = Field(
        default=None, description="Longer prompts keep their end (counted)."
    )
    max_response_tokens: int | None = Field(
        default=None, description="Longer responses keep their start (counted)."
    )
    dtype: str = Field(default="auto", description="auto, float32, bfloat16 or float16.")
