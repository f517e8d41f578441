"""Training: one trainer for every loss, on transformers' Trainer; ours is the step."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

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

_HOMES = {
    "DisplacementWarning": "dynamics.callback",
    "DurableTrainer": "durable",
    "DynamicsCallback": "dynamics.callback",
    "ItemSet": "items",
    "PreferenceArguments": "arguments",
    "PreferenceTrainer": "trainer",
    "Trained": "recipe_run",
    "TrainingItem": "items",
    "draw_dynamics": "dynamics.figures",
    "encode_items": "items",
    "plan_step": "step",
    "read_dynamics": "dynamics.records",
    "read_metrics": "dynamics.records",
    "train_recipe": "recipe_run",
}

__all__ = sorted(_HOMES)  # noqa: PLE0605 - the public names, each imported on first use


def __getattr__(name: str) -> Any:
    """Import a public name on first use: reading a recipe or records need not load torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'prefstage.training' has no attribute {name!r}")
    return getattr(import_module(f"prefstage.training.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    """List the public names."""
    return list(__all__)
