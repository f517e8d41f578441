"""Ranking accuracy against win rate over the checkpoints of one training run."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prefstage.core.errors import InputError
from prefstage.evaluating.win_rates import WinRate

_FEWEST = 3


@dataclass(frozen=True)
class CheckpointRates:
    """One checkpoint.

    Attributes:
        step: Optimiser step.
        ranking_accuracy: Share of the followed pairs that the policy ranks rightly, in [0, 1].
        win_rate: Of its answers over the baseline's, percent.
        interval: Of the win rate.
        weight_distance: ‖θ - θ_start‖₂; None where the run did not record it.
    """

    step: int
    ranking_accuracy: float
    win_rate: float
    interval: tuple[float, float]
    weight_distance: float | None


@dataclass(frozen=True)
class CheckpointTable:
    """Checkpoints of one run, by step.

    Attributes:
        pairs: Name of the followed pairs, such as "train" or "eval".
        checkpoints: One line each.
        correlation: Pearson's, of ranking accuracy and win rate over the checkpoints; None
            for fewer than three, or where one of the two stays the same.
    """

    pairs: str
    checkpoints: tuple[CheckpointRates, ...]
    correlation: float | None

    def as_dict(self) -> dict[str, Any]:
        """The table as JSON-serialisable values."""
        return asdict(self)


def rankings_against_win_rates(
    dynamics: str | Path, win_rates: Mapping[int, WinRate], *, pairs: str = "eval"
) -> CheckpointTable:
    """Put what a run recorded of its rankings beside what its checkpoints win.

    Near the start of training the two rise together; far from it, as the weight distance
    tells, the win rate may fall while rankings still improve.

    Args:
        dynamics: The folder of a `DynamicsCallback`; ``prefstage train`` writes it into the
            run folder.
        win_rates: Optimiser step → win rate of the checkpoint.
        pairs: Which followed pairs: "train", "eval" or "eval_NAME".

    Returns:
        A line for each checkpoint.

    Raises:
        DataError: If nothing is recorded in the folder.
        InputError: If a step, or the pairs, were not recorded.

    Source:
        Chen et al. 2024, Preference Learning Algorithms Do Not Learn Preference Rankings,
        arXiv:2405.19534, Figs. 4, 9 and 11.
    """
    from prefstage.training import read_metrics

    recorded = {int(each["step"]): each for each in read_metrics(dynamics)}
    key = ("" if pairs == "train" else f"{pairs}_") + "dynamics/rankings/accuracy"
    for step in win_rates:
        if key not in recorded.get(step, {}):
            steps = ", ".join(str(each) for each in sorted(recorded) if key in recorded[each])
            raise InputError.of(
                saw=f"checkpoint {step}, of whose {pairs} pairs nothing is in {dynamics}",
                expected=f"a recorded step: {steps or f'none for pairs {pairs!r}'}",
                cure="evaluate checkpoints of recorded steps, or name other pairs",
            )
    lines = tuple(
        CheckpointRates(
            step,
            recorded[step][key],
            win_rates[step].rates.win_rate,
            win_rates[step].rates.interval,
            recorded[step].get("dynamics/weight_distance"),
        )
        for step in sorted(win_rates)
    )
    return CheckpointTable(pairs, lines, _correlation(lines))


def step_of(name: str) -> int:
    """Optimiser step of a checkpoint, from its folder's name.

    Args:
        name: Such as "checkpoint-120".

    Returns:
        The step.

    Raises:
        InputError: If the name does not end so.
    """
    found = re.search(r"checkpoint-(\d+)/?$", name)
    if found is None:
        raise InputError.of(
            saw=f"{name!r} beside --dynamics",
            expected="checkpoints of the run, checkpoint-STEP",
            cure="give the run's checkpoints, or leave --dynamics out",
        )
    return int(found[1])


def _correlation(lines: tuple[CheckpointRates, ...]) -> float | None:
    columns = np.array([[each.ranking_accuracy, each.win_rate] for each in lines])
    if len(lines) < _FEWEST or (columns.std(axis=0) == 0).any():
        return None
    return float(np.corrcoef(columns.T)[0, 1])
