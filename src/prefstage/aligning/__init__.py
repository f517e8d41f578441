"""The loop: sample, judge, measure, choose, build, train, evaluate; and again."""

from prefstage.aligning.loop import Aligned, align
from prefstage.aligning.planning import PlannedStep, plan_alignment
from prefstage.aligning.recipe import Recipe, load_recipe
from prefstage.aligning.schedule import Rule, parse_schedule
from prefstage.aligning.steps import Step, StepRecord, Steps

__all__ = [
    "Aligned",
    "PlannedStep",
    "Recipe",
    "Rule",
    "Step",
    "StepRecord",
    "Steps",
    "align",
    "load_recipe",
    "parse_schedule",
    "plan_alignment",
]
