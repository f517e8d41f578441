# Public names, each imported on first use (read by lazy_loader in __init__.py).
from .forecast import (
    Estimate as Estimate,
    ExpectedReward as ExpectedReward,
    Forecast as Forecast,
    Forecasts as Forecasts,
    forecast as forecast,
    forecast_gains as forecast_gains,
    step_direction as step_direction,
)
from .gradients import (
    Basis as Basis,
    Drift as Drift,
    Gradients as Gradients,
    halves_agree as halves_agree,
)
from .pilots import (
    Heat as Heat,
    Value as Value,
    standing as standing,
    survivors as survivors,
    value_by_scoring as value_by_scoring,
)
