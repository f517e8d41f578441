"""Training: one trainer for every loss, on transformers' Trainer; ours is the step."""

from typing import TYPE_CHECKING

from prefstage.core.exports import on_first_use

if TYPE_CHECKING:
    from prefstage.training.arguments import PreferenceArguments
    from prefstage.training.durable import DurableTrainer
    from prefstage.training.dynamics.callback import DisplacementWarning, DynamicsCallback
    from prefstage.training.dynamics.records import draw_dynamics, read_dynamics, read_metrics
    from prefstage.training.items import ItemSet, TrainingItem, encode_items
    from prefstage.training.recipe_run import Trained, train_recipe
    from prefstage.training.step import plan_step
    from prefstage.training.trainer import PreferenceTrainer

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
        "dynamics.records": "draw_dynamics read_dynamics read_metrics",
        "items": "ItemSet TrainingItem encode_items",
        "recipe_run": "Trained train_recipe",
        "step": "plan_step",
        "trainer": "PreferenceTrainer",
    },
)
