"""The model that is exported where the best checkpoint is loaded at the end, and its figures."""

from collections.abc import Mapping, Sequence
from typing import Any

_CLOCKS = ("runtime", "per_second")


def plain_metrics(entry: Mapping[str, float]) -> dict[str, float]:
    """What an evaluation found, without how long it took.

    Args:
        entry: An entry of the log, or what `evaluate` returned.

    Returns:
        Metrics by name.
    """
    return {
        name: value
        for name, value in entry.items()
        if name.startswith("eval_") and not name.endswith(_CLOCKS)
    }


def metrics_at(history: Sequence[Mapping[str, float]], step: int) -> dict[str, float]:
    """What the evaluations at a step found.

    Args:
        history: The trainer's log.
        step: Optimiser step.

    Returns:
        Metrics by name; nothing if there was no evaluation.
    """
    found: dict[str, float] = {}
    for entry in history:
        if entry["step"] == step:
            found |= plain_metrics(entry)
    return found


def exported_step(trainer: Any) -> int:
    """The optimiser step of the weights at hand.

    Args:
        trainer: The trainer.

    Returns:
        The best checkpoint's, once it is loaded; else the last one done.
    """
    best = trainer.best_step
    return int(trainer.state.global_step if best is None else best)


def best_checkpoint(trainer: Any) -> dict[str, Any] | None:
    """By what the exported model was chosen.

    Args:
        trainer: The trainer, after training.

    Returns:
        "step", "metric", its "value" there, and "greater_is_better"; None unless
        `load_best_model_at_end` is on.
    """
    args, step = trainer.args, exported_step(trainer)
    if not args.load_best_model_at_end:
        return None
    name = f"eval_{args.metric_for_best_model.removeprefix('eval_')}"
    return {
        "step": step,
        "metric": name,
        "value": metrics_at(trainer.state.log_history, step).get(name),
        "greater_is_better": bool(args.greater_is_better),
    }


def exported_told(result: Mapping[str, Any]) -> str | None:
    """Say which model was exported, where it is not simply the last one.

    Args:
        result: As in train.json.

    Returns:
        Such as "the model of step 20 of 60, best by eval_loss = 0.61 (the lowest)"; None
        unless `load_best_model_at_end` was on.
    """
    best = result.get("best")  # unknown to runs of older versions
    if best is None:
        return None
    told = f"the model of step {best['step']} of {result['steps']}"
    if best["value"] is None:
        return f"{told}, as no checkpoint has an evaluation"
    which = "highest" if best["greater_is_better"] else "lowest"
    return f"{told}, best by {best['metric']} = {best['value']:.4g} (the {which} of a checkpoint)"


def steps_told(result: Mapping[str, Any]) -> str:
    """Say how many steps the exported model has, and of how many.

    Args:
        result: As in train.json.

    Returns:
        Such as "60", or "20 of 60".
    """
    exported = result.get("exported_step", result["steps"])
    return f"{exported} of {result['steps']}" if exported != result["steps"] else str(exported)
