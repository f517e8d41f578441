# Public names, each imported on first use (read by lazy_loader in __init__.py).
from .forecast import (
    Estimate as Estimate,
    ExpectedReward as ExpectedReward,
    Forecast as Forecast,
    Forecasts as Forecasts,
    forecast as forecast,
    forecast_gains as forecast_gains,
    halves_agree as halves_agree,
    step_direction as step_direction,
)
from .gradients import Basis as Basis, Drift as Drift, Gradients as Gradients
from .race import Heat as Heat, standing as standing, survivors as survivors
from .valuing import Value as Value, value_by_scoring as value_by_scoring
