# Public names, each imported on first use (read by lazy_loader in __init__.py).
from .advised import Advised as Advised, advise as advise, plan_advice as plan_advice
from .experiment import (
    Experiment as Experiment,
    Grid as Grid,
    load_grid as load_grid,
    plan_experiment as plan_experiment,
    run_experiment as run_experiment,
)
from .loop import Aligned as Aligned, align as align
from .planning import PlannedStep as PlannedStep, plan_alignment as plan_alignment
from .recipe import (
    Recipe as Recipe,
    Rule as Rule,
    load_recipe as load_recipe,
    parse_schedule as parse_schedule,
)
from .steps import Step as Step, StepRecord as StepRecord, Steps as Steps, Workspace as Workspace
