"""What the demo is told, and what it finds."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from prefstage.core.config import Config
from prefstage.data import Candidates
from prefstage.measuring import MeasureConfig, Stage

JUDGE = "python:prefstage.sandbox:true_preference"
"""The world's program as a judge, for ``--judge``."""

_HALF = 0.5


class DemoConfig(Config):
    """What the demo makes; the defaults take about a minute on two cores."""

    seed: int = Field(default=0, ge=0, description="Of world, training, sampling, measuring.")
    prompts: int = Field(default=2_000, ge=2, description="Prompts of the off-policy pool.")
    demonstrations: int = Field(default=8_000, ge=1, description="Responses to learn from.")
    weak_steps: int = Field(default=60, ge=1, description="Training steps of the weak policy.")
    strong_steps: int = Field(default=400, ge=2, description="Of the strong one, in the same run.")

    @model_validator(mode="after")
    def _weak_comes_first(self) -> Self:
        if self.weak_steps >= self.strong_steps:
            raise ValueError(
                f"weak_steps={self.weak_steps} is not below strong_steps={self.strong_steps}; "
                "both are points of one training run, the weak one earlier"
            )
        return self


@dataclass(frozen=True)
class PoolMade:
    """The off-policy pool is written.

    Attributes:
        path: Its file, for `load_candidates`.
        prompts: Number of prompts, two responses each.
        rewards: Mean true reward of each writer's responses, best first.
        example: One of its rows.
    """

    path: Path
    prompts: int
    rewards: dict[str, float]
    example: Candidates


@dataclass(frozen=True)
class PoliciesTrained:
    """The policies are trained.

    Attributes:
        folders: Checkpoint folders by name ("weak", "strong"), for `from_pretrained`.
        steps: Training steps by name.
        parameters: Number of weights of each.
        reused: Whether they lay there from an earlier run.
    """

    folders: dict[str, Path]
    steps: dict[str, int]
    parameters: int
    reused: bool


@dataclass(frozen=True)
class Truth:
    """What only the sandbox knows of a policy, from its responses to every prompt of the pool.

    Attributes:
        boundary_score: Share of comparisons with the pool that the policy's responses win by
            true reward; draws count half. In [0, 1].
        reward: Mean true reward of the policy's responses, in [0, 1].
    """

    boundary_score: float
    reward: float

    @property
    def stage(self) -> str:
        """The stage by the true boundary score."""
        return "injection" if self.boundary_score < _HALF else "fine-tuning"


@dataclass(frozen=True)
class PolicyMeasured:
    """One policy is measured.

    Attributes:
        name: "weak" or "strong".
        folder: The measurement's run folder.
        response: The policy's first response to the pool's example.
        grade: Its true reward, in [0, 1].
        stage: What `measure_stage` found.
        truth: What is so.
    """

    name: str
    folder: Path
    response: str
    grade: float
    stage: Stage
    truth: Truth


DemoPart = PoolMade | PoliciesTrained | PolicyMeasured


@dataclass(frozen=True)
class DemoReport:
    """All that the demo found.

    Attributes:
        config: What was asked for.
        folder: Where everything lies.
        pool: The off-policy pool.
        training: The policies.
        policies: Each policy's stage, weak first.
    """

    config: DemoConfig
    folder: Path
    pool: PoolMade
    training: PoliciesTrained
    policies: tuple[PolicyMeasured, ...]

    @property
    def fixed_budget(self) -> dict[str, int]:
        """What the paper's fixed-size measurement takes: every prompt, all comparisons."""
        settings = MeasureConfig()
        comparisons = settings.on_responses * settings.off_responses
        return {"prompts": self.pool.prompts, "judgments": self.pool.prompts * comparisons}

    def as_dict(self) -> dict[str, Any]:
        """JSON-serialisable."""
        return {
            "config": self.config.model_dump(mode="json"),
            "folder": str(self.folder),
            "pool": {
                "file": str(self.pool.path),
                "prompts": self.pool.prompts,
                "true_rewards": self.pool.rewards,
            },
            "parameters": self.training.parameters,
            "judge": JUDGE,
            "fixed_budget": self.fixed_budget,
            "policies": {each.name: self._policy_dict(each) for each in self.policies},
        }

    def _policy_dict(self, measured: PolicyMeasured) -> dict[str, Any]:
        truth = measured.truth
        return {
            "checkpoint": str(self.training.folders[measured.name]),
            "training_steps": self.training.steps[measured.name],
            "measurement": str(measured.folder),
            "stage": measured.stage.as_dict(),
            "truth": {
                "stage": truth.stage,
                "boundary_score": truth.boundary_score,
                "reward": truth.reward,
            },
        }
