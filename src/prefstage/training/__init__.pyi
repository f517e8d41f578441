# Public names, each imported on first use (read by lazy_loader in __init__.py).
from .arguments import PreferenceArguments as PreferenceArguments
from .durable import DurableTrainer as DurableTrainer
from .dynamics.callback import (
    DisplacementWarning as DisplacementWarning,
    DynamicsCallback as DynamicsCallback,
)
from .dynamics.figures import draw_dynamics as draw_dynamics
from .dynamics.records import (
    best_step as best_step,
    read_dynamics as read_dynamics,
    read_metrics as read_metrics,
)
from .dynamics.win_rates import WinRateSettings as WinRateSettings
from .items import ItemSet as ItemSet, TrainingItem as TrainingItem, encode_items as encode_items
from .recipe_run import Trained as Trained, train_recipe as train_recipe
from .step import plan_step as plan_step
from .trainer import PreferenceTrainer as PreferenceTrainer
