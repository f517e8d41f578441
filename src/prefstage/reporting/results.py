"""What a run holds that a report shows: a decision, a training, an evaluation and so on."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from prefstage.aligning.tables import Table
from prefstage.reporting.pairs import PairRows


@dataclass(frozen=True)
class Look:
    """Where the interval stood after some prompts.

    Attributes:
        prompts: Prompts used so far.
        score: Boundary score so far, in [0, 1].
        low: Lower end of the interval.
        high: Upper end.
    """

    prompts: int
    score: float
    low: float
    high: float


@dataclass(frozen=True)
class Decision:
    """One measured stage.

    Attributes:
        iteration: From 1.
        stage: As in stage.json.
        looks: How the interval narrowed; empty where the prompts' scores are not on file.
    """

    iteration: int
    stage: Mapping[str, Any]
    looks: tuple[Look, ...]


@dataclass(frozen=True)
class Built:
    """Pairs that were built.

    Attributes:
        iteration: From 1.
        data: "off", "on" and so on, or the method's name.
        result: As in build.json.
        gaps: Score gap of every pair that has one, by part.
    """

    iteration: int
    data: str
    result: Mapping[str, Any]
    gaps: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True)
class Dynamics:
    """What a training did to the rankings of fixed pairs.

    Attributes:
        beta: β of losses and thresholds, 1/nats.
        sets: Names of the sets of pairs.
        metrics: The aggregates of each recorded step, up to the model that was exported.
        last: A row a pair, at the last of these steps.
    """

    beta: float
    sets: tuple[str, ...]
    metrics: tuple[Mapping[str, float], ...]
    last: pa.Table


@dataclass(frozen=True)
class Training:
    """One training.

    Attributes:
        iteration: From 1; 0 before the loop.
        result: As in train.json.
        history: What the trainer logged.
        dynamics: Of its pairs, if they were recorded.
    """

    iteration: int
    result: Mapping[str, Any]
    history: tuple[Mapping[str, Any], ...]
    dynamics: Dynamics | None


@dataclass(frozen=True)
class Evaluation:
    """One comparison with a baseline on held-out prompts.

    Attributes:
        iteration: From 1.
        model: Whose answers.
        baseline: Over whose.
        result: As in evaluation.json.
        distinct: Share of different 1-grams and 2-grams in all answers, by model.
    """

    iteration: int
    model: str
    baseline: str
    result: Mapping[str, Any]
    distinct: Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class StepCost:
    """What one step took when it was done.

    Attributes:
        iteration: From 1; 0 before the loop.
        step: Its folder's name.
        kind: What it does.
        seconds: Time.
        bought: Judgments, answers, tokens.
    """

    iteration: int
    step: str
    kind: str
    seconds: float
    bought: Mapping[str, int]


@dataclass(frozen=True)
class Tabulated:
    """One table of an experiment.

    Attributes:
        name: Of its file.
        table: The table.
        agreement: Of the boundary score with what gained more, as in experiment.json; None of
            a table without stages.
    """

    name: str
    table: Table
    agreement: Mapping[str, Any] | None


@dataclass(frozen=True)
class Run:
    """All that a report shows of one run.

    Attributes:
        name: What it is called on the page; different from the other runs'.
        command: Which command made it.
        folder: Where it lies.
        facts: Short statements, by what they are about.
        iterations: As in align.json; nothing of other commands.
        decisions: Measured stages.
        built: Pairs.
        trainings: Trainings.
        evaluations: Evaluations.
        diagnoses: As in report.json of `prefstage diagnose`.
        tables: Of an experiment.
        cells: Names of an experiment's cells.
        failed: Of an experiment: cells that failed, and why.
        costs: A row a step.
        config: The resolved configuration, YAML; "" if there is none on file.
        manifest: Versions and so on.
        pairs: Pairs for the explorer.
        lacks: What the page would show, were it there: what, and how to get it.
    """

    name: str
    command: str
    folder: Path
    facts: Mapping[str, str] = field(default_factory=dict)
    iterations: tuple[Mapping[str, Any], ...] = ()
    decisions: tuple[Decision, ...] = ()
    built: tuple[Built, ...] = ()
    trainings: tuple[Training, ...] = ()
    evaluations: tuple[Evaluation, ...] = ()
    diagnoses: tuple[Mapping[str, Any], ...] = ()
    tables: tuple[Tabulated, ...] = ()
    cells: tuple[str, ...] = ()
    failed: Mapping[str, str] = field(default_factory=dict)
    costs: tuple[StepCost, ...] = ()
    config: str = ""
    manifest: Mapping[str, Any] = field(default_factory=dict)
    pairs: tuple[PairRows, ...] = ()
    lacks: tuple[tuple[str, str], ...] = ()
