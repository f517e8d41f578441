# Public names, each imported on first use (read by lazy_loader in __init__.py).
from .experiment import (
    Experiment as Experiment,
    Grid as Grid,
    load_grid as load_grid,
    plan_experiment as plan_experiment,
    run_experiment as run_experiment,
)
from .loop import PlannedStep as PlannedStep
from .recipe import (
    Recipe as Recipe,
    Rule as Rule,
    load_recipe as load_recipe,
    parse_schedule as parse_schedule,
)
from .runs import (
    Advised as Advised,
    Aligned as Aligned,
    advise as advise,
    align as align,
    plan_advice as plan_advice,
    plan_alignment as plan_alignment,
)
from .steps import Step as Step, StepRecord as StepRecord, Steps as Steps, Workspace as Workspace
