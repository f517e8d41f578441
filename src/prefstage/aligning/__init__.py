"""The loop: sample, judge, measure, choose, build, train, evaluate; and again."""

from prefstage.aligning.experiment import (
    Experiment,
    Grid,
    load_grid,
    plan_experiment,
    run_experiment,
)
from prefstage.aligning.loop import Aligned, align
from prefstage.aligning.planning import PlannedStep, plan_alignment
from prefstage.aligning.recipe import Recipe, Rule, load_recipe, parse_schedule
from prefstage.aligning.steps import Step, StepRecord, Steps, Workspace

__all__ = [
    "Aligned",
    "Experiment",
    "Grid",
    "PlannedStep",
    "Recipe",
    "Rule",
    "Step",
    "StepRecord",
    "Steps",
    "Workspace",
    "align",
    "load_grid",
    "load_recipe",
    "parse_schedule",
    "plan_alignment",
    "plan_experiment",
    "run_experiment",
]
