"""The steps of an alignment, one class a kind: what it depends on, does, costs and reports."""

from prefstage.aligning.steps.answers import (
    ANNOTATIONS,
    ANSWERS,
    EVALUATION,
    Evaluate,
    Measure,
    Sample,
    read_answers,
)
from prefstage.aligning.steps.base import (
    LOG,
    MANIFEST,
    Begun,
    Estimate,
    Sizes,
    State,
    Step,
    StepRecord,
    Steps,
)
from prefstage.aligning.steps.build import PAIRS, REVERSAL_SETTING, Build
from prefstage.aligning.steps.train import Sft, Train, training_figures
from prefstage.aligning.steps.workspace import STEPS, Policy, Workspace

__all__ = [
    "ANNOTATIONS",
    "ANSWERS",
    "EVALUATION",
    "LOG",
    "MANIFEST",
    "PAIRS",
    "REVERSAL_SETTING",
    "STEPS",
    "Begun",
    "Build",
    "Estimate",
    "Evaluate",
    "Measure",
    "Policy",
    "Sample",
    "Sft",
    "Sizes",
    "State",
    "Step",
    "StepRecord",
    "Steps",
    "Train",
    "Workspace",
    "read_answers",
    "training_figures",
]
