"""What dynamics take over from the trainer that they are attached to."""

from collections.abc import Mapping
from typing import Any

from prefstage.core.errors import InputError
from prefstage.data import ResponseEncoder
from prefstage.training.dynamics_pairs import Pairs
from prefstage.training.items import ItemSet

DEFAULT_BETA = 0.1
START, ADAPTER_OFF = "start", "adapter-off"


def name_sets(train: Pairs | None, evaluated: Pairs | Mapping[str, Pairs] | None) -> dict[str, Any]:
    """Name sets as transformers prefixes their metrics: "train", "eval" or "eval_NAME"."""
    found: dict[str, Any] = {} if train is None else {"train": train}
    if isinstance(evaluated, Mapping):
        found |= {f"eval_{name}": pairs for name, pairs in evaluated.items()}
    elif evaluated is not None:
        found["eval"] = evaluated
    return found


def sets_of(trainer: Any) -> dict[str, Any]:
    """The pairs that a `PreferenceTrainer` trains and evaluates on.

    Raises:
        InputError: If there are none, or the trainer is another one, whose data has a form
            of its own.
    """
    sets = name_sets(trainer.train_dataset, trainer.eval_dataset)
    found = {
        name: each
        for name, each in sets.items()
        if isinstance(each, ItemSet) and each.kind == "pairs"
    }
    if not found:
        raise InputError.of(
            saw="neither train_pairs nor eval_pairs, and a trainer without pairs of prefstage",
            expected="pairs to follow",
            cure="give DynamicsCallback train_pairs=, eval_pairs= or both",
        )
    return found


def encoder_of(trainer: Any) -> ResponseEncoder | None:
    """The encoder of a `PreferenceTrainer`, or one of another trainer's tokenizer."""
    own = getattr(trainer, "encoder", None)
    if isinstance(own, ResponseEncoder):
        return own
    tokenizer = trainer.processing_class
    return None if tokenizer is None else ResponseEncoder(tokenizer)


def reference_of(trainer: Any) -> str:
    """The reference of a `PreferenceTrainer`; elsewhere, and without one, the start."""
    own = getattr(trainer.args, "reference", None)
    return own if own not in (None, "none") else START


def beta_of(trainer: Any) -> float:
    """β of the trainer's loss (τ of IPO), as TRL and `PreferenceTrainer` have it; else 0.1."""
    own = getattr(trainer.args, "beta", None)
    mix: Any = getattr(trainer, "loss", None)
    if own is None:
        own = getattr(mix, "beta", None)
    return DEFAULT_BETA if own is None else float(own)


def spread_over_processes(model: Any) -> str | None:
    """Who spreads a model's weights, if anyone does: one process cannot score it then."""
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.distributed.tensor import DTensor

    if any(isinstance(module, FullyShardedDataParallel) for module in model.modules()):
        return "FSDP"
    for parameter in model.parameters():
        if isinstance(parameter, DTensor):
            return "FSDP or tensor parallelism"
        if hasattr(parameter, "ds_id"):
            return "DeepSpeed ZeRO stage 3"
    return None
