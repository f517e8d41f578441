"""What the demo is told, and what it finds."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from prefstage.core.config import Config
from prefstage.data import Candidates
from prefstage.measuring import Stage

JUDGE = "python:prefstage.sandbox:true_preference"
"""The world's program as a judge, for ``--judge``."""

AUTO = "auto"
FIXED = ("off,off", "on,on", "on,off", "off,on")
"""Schedules that do not look: off-policy or on-policy pairs in each of two iterations."""

_HALF = 0.5

Crossing = Literal["crossed", "not crossed", "beyond from the start"]


class DemoConfig(Config):
    """What the demo makes; the defaults take two to three minutes on two cores."""

    seed: int = Field(default=0, ge=0, description="Of world, training, sampling, measuring.")
    pairs: int = Field(default=1_024, ge=2, description="Off-policy pairs.")
    held_out: int = Field(default=1_000, ge=2, description="Prompts to evaluate on.")
    demonstrations: int = Field(default=6_000, ge=1, description="Answers to learn from.")
    sft_steps: int = Field(default=600, ge=1, description="Training steps before the loop.")
    epochs: float = Field(default=3, gt=0, description="Of each iteration's training.")


@dataclass(frozen=True)
class PoolMade:
    """The off-policy pairs are written.

    Attributes:
        path: Their file, for `load_pairs`.
        pairs: Their number.
        rewards: Mean true reward of each writer's answers, best first.
        example: One of them.
    """

    path: Path
    pairs: int
    rewards: dict[str, float]
    example: Candidates


@dataclass(frozen=True)
class Answer:
    """What a policy answers to the example.

    Attributes:
        text: Its first answer.
        grade: The answer's true reward, in [0, 1].
    """

    text: str
    grade: float


@dataclass(frozen=True)
class PolicyTrained:
    """The policy to be aligned is there.

    Attributes:
        folder: Its checkpoint, for `from_pretrained`.
        teachers: Names of the writers whose answers it has learnt.
        parameters: Number of its weights.
        reused: Whether it lay there from an earlier run.
    """

    folder: Path
    teachers: tuple[str, ...]
    parameters: int
    reused: bool


@dataclass(frozen=True)
class Truth:
    """What only the sandbox knows of a policy, from its answers to every prompt of the pairs.

    Attributes:
        boundary_score: Share of comparisons with the pairs that the policy's answers win by
            true reward; draws count half. In [0, 1].
        reward: Mean true reward of the policy's answers, in [0, 1].
    """

    boundary_score: float
    reward: float

    @property
    def stage(self) -> str:
        """The stage by the true boundary score."""
        return "injection" if self.boundary_score < _HALF else "fine-tuning"


@dataclass(frozen=True)
class IterationDone:
    """One iteration of `auto`.

    Attributes:
        number: From 1.
        data: What it trained on: "off" or "on".
        stage: As measured before its training.
        truth: What was so before its training.
        answer: What the policy answered to the example before its training.
        before: Mean true reward of its answers to the held-out prompts, in [0, 1].
        after: The same after its training.
        win_rate: Of the trained policy over the start, on the held-out prompts, in percent.
    """

    number: int
    data: str
    stage: Stage
    truth: Truth
    answer: Answer
    before: float
    after: float
    win_rate: float


@dataclass(frozen=True)
class ScheduleDone:
    """Two iterations by one schedule.

    Attributes:
        schedule: "auto", or as of `FIXED`.
        folder: The run folder of `prefstage align`.
        data: What each iteration trained on.
        rewards: Mean true reward of the answers to the held-out prompts: of the start, and
            after each iteration.
    """

    schedule: str
    folder: Path
    data: tuple[str, ...]
    rewards: tuple[float, ...]


DemoPart = PoolMade | PolicyTrained | IterationDone | ScheduleDone


@dataclass(frozen=True)
class DemoReport:
    """All that the demo found.

    Attributes:
        config: What was asked for.
        folder: Where everything lies.
        pool: The off-policy pairs.
        policy: The policy before the loop.
        iterations: Of `auto`.
        last: What the last policy of `auto` answers to the example.
        schedules: `auto` first, then the fixed ones.
    """

    config: DemoConfig
    folder: Path
    pool: PoolMade
    policy: PolicyTrained
    iterations: tuple[IterationDone, ...]
    last: Answer
    schedules: tuple[ScheduleDone, ...]

    @property
    def crossing(self) -> Crossing:
        """Whether the measured stage went from injection to fine-tuning."""
        stages = [each.stage.stage for each in self.iterations]
        if stages[0] == "fine-tuning":
            return "beyond from the start"
        return "crossed" if stages[0] == "injection" and "fine-tuning" in stages else "not crossed"

    def as_dict(self) -> dict[str, Any]:
        """JSON-serialisable."""
        return {
            "config": self.config.model_dump(mode="json"),
            "folder": str(self.folder),
            "pairs": {
                "file": str(self.pool.path),
                "pairs": self.pool.pairs,
                "true_rewards": self.pool.rewards,
            },
            "policy": str(self.policy.folder),
            "parameters": self.policy.parameters,
            "judge": JUDGE,
            "crossing": self.crossing,
            "iterations": [_iteration(each) for each in self.iterations],
            "schedules": {each.schedule: _schedule(each) for each in self.schedules},
        }


def _iteration(done: IterationDone) -> Mapping[str, Any]:
    return {
        "iteration": done.number,
        "data": done.data,
        "stage": done.stage.as_dict(),
        "truth": {**asdict(done.truth), "stage": done.truth.stage},
        "true_reward": {"before": done.before, "after": done.after},
        "win_rate": done.win_rate,
    }


def _schedule(done: ScheduleDone) -> Mapping[str, Any]:
    return {"run": str(done.folder), "data": list(done.data), "true_reward": list(done.rewards)}
