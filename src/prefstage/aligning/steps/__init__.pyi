# Public names, each imported on first use (read by lazy_loader in __init__.py).
from .advising import (
    FORECAST as FORECAST,
    Forecast as Forecast,
    Gain as Gain,
    Score as Score,
    Target as Target,
)
from .answers import (
    ANNOTATIONS as ANNOTATIONS,
    ANSWERS as ANSWERS,
    EVALUATION as EVALUATION,
    PAIRS as PAIRS,
    REVERSAL_SETTING as REVERSAL_SETTING,
    Build as Build,
    Evaluate as Evaluate,
    Measure as Measure,
    Sample as Sample,
    check_answers as check_answers,
    is_answers as is_answers,
    read_answers as read_answers,
)
from .base import (
    LOG as LOG,
    MANIFEST as MANIFEST,
    Begun as Begun,
    Estimate as Estimate,
    Sizes as Sizes,
    State as State,
    Step as Step,
    StepRecord as StepRecord,
    Steps as Steps,
)
from .train import (
    Sft as Sft,
    Train as Train,
    training_figures as training_figures,
)
from .workspace import STEPS as STEPS, Policy as Policy, Workspace as Workspace
