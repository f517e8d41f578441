"""Training: one trainer for every loss, on transformers' Trainer; ours is the step."""

from typing import TYPE_CHECKING

from prefstage.core.exports import on_first_use

if TYPE_CHECKING:
    from prefstage.training.arguments import PreferenceArguments as PreferenceArguments
    from prefstage.training.durable import DurableTrainer as DurableTrainer
    from prefstage.training.dynamics.callback import DisplacementWarning as DisplacementWarning
    from prefstage.training.dynamics.callback import DynamicsCallback as DynamicsCallback
    from prefstage.training.dynamics.figures import draw_dynamics as draw_dynamics
    from prefstage.training.dynamics.records import read_dynamics as read_dynamics
    from prefstage.training.dynamics.records import read_metrics as read_metrics
    from prefstage.training.items import ItemSet as ItemSet
    from prefstage.training.items import TrainingItem as TrainingItem
    from prefstage.training.items import encode_items as encode_items
    from prefstage.training.recipe_run import Trained as Trained
    from prefstage.training.recipe_run import train_recipe as train_recipe
    from prefstage.training.step import plan_step as plan_step
    from prefstage.training.trainer import PreferenceTrainer as PreferenceTrainer

__all__ = [
    "DisplacementWarning",
    "DurableTrainer",
    "DynamicsCallback",
    "ItemSet",
    "PreferenceArguments",
    "PreferenceTrainer",
    "Trained",
    "TrainingItem",
    "draw_dynamics",
    "encode_items",
    "plan_step",
    "read_dynamics",
    "read_metrics",
    "train_recipe",
]

# Import a public name on first use: reading a recipe or records need not load torch.
__getattr__, __dir__ = on_first_use(
    __name__,
    {
        "arguments": "PreferenceArguments",
        "durable": "DurableTrainer",
        "dynamics.callback": "DisplacementWarning DynamicsCallback",
        "dynamics.figures": "draw_dynamics",
        "dynamics.records": "read_dynamics read_metrics",
        "items": "ItemSet TrainingItem encode_items",
        "recipe_run": "Trained train_recipe",
        "step": "plan_step",
        "trainer": "PreferenceTrainer",
    },
)
