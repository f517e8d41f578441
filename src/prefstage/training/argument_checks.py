"""Checks of training arguments, so that a wrong one is told in one line before anything runs."""

import dataclasses
import importlib.util
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Any

from prefstage.core.config import nearest
from prefstage.core.errors import ConfigError, MissingDependencyError

_SHOWN_CHOICES = 8
_USUAL = ("adamw_torch", "rmsprop", "sgd", "adafactor", "adamw_8bit", "linear", "cosine")
"""Named first where there are too many to name all."""

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")

_AT_LEAST = {
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "learning_rate": 0,
    "weight_decay": 0,
    "max_grad_norm": 0,
    "num_train_epochs": 0,
    "save_steps": 0,
    "eval_steps": 0,
    "logging_steps": 0,
}


def check_arguments(args: Any) -> None:
    """Check what transformers checks late, or in words of its code.

    Args:
        args: Training arguments, as given by the user.

    Raises:
        ConfigError: If a choice is none, or a number is out of range; the line names the
            nearest choice.
    """
    from transformers.trainer_utils import (
        HubStrategy,
        IntervalStrategy,
        SaveStrategy,
        SchedulerType,
    )
    from transformers.training_args import OptimizerNames

    choices: dict[str, type[Enum]] = {
        "optim": OptimizerNames,
        "lr_scheduler_type": SchedulerType,
        "eval_strategy": IntervalStrategy,
        "logging_strategy": IntervalStrategy,
        "save_strategy": SaveStrategy,
        "hub_strategy": HubStrategy,
    }
    for name, kind in choices.items():
        given = getattr(args, name)
        if given is not None and not isinstance(given, kind):
            _check_choice(name, str(given), [str(each.value) for each in kind])
    _check_deepspeed(args)
    for name in ("accelerator_config", "fsdp_config"):
        _check_file(name, getattr(args, name))
    for each in dataclasses.fields(args):
        _check_type(each.name, getattr(args, each.name), each.type)
    _check_type("learning_rate", args.learning_rate, float)  # transformers also lets text pass
    for name, least in _AT_LEAST.items():
        given = getattr(args, name)
        if isinstance(given, int | float) and not given >= least:
            raise ConfigError.of(
                saw=f"{name}={given}", expected=f"{least} or more", cure=f"set {name} in that range"
            )


def _check_type(name: str, given: Any, annotation: Any) -> None:
    """A number where the argument takes nothing but numbers, and whole where nothing but those."""
    allowed = {annotation, *typing.get_args(annotation)} - {type(None)}
    if given is None or not allowed or not allowed <= {int, float, bool}:
        return
    whole = float not in allowed
    fits = isinstance(given, bool) if allowed == {bool} else isinstance(given, int | float)
    if fits and (not whole or given == int(given)):
        return
    kind = "true or false" if allowed == {bool} else "a whole number" if whole else "a number"
    raise ConfigError.of(saw=f"{name}={given!r}", expected=kind, cure=f"change {name}")


def _check_deepspeed(args: Any) -> None:
    if not args.deepspeed:
        return
    if importlib.util.find_spec("deepspeed") is None:
        raise MissingDependencyError.of(
            saw=f"deepspeed={args.deepspeed!r}, and no package deepspeed",
            expected="deepspeed, which reads this setting",
            cure="pip install deepspeed, or remove the setting",
        )
    _check_file("deepspeed", args.deepspeed)


def _check_file(name: str, given: Any) -> None:
    if isinstance(given, str) and not given.lstrip().startswith("{") and not Path(given).is_file():
        raise ConfigError.of(
            saw=f"{name}={given!r}, and no such file",
            expected="a mapping, JSON, or a file with its settings",
            cure="check the path",
        )


def plain_values(value: Any) -> Any:
    """Numbers, true and false in place of texts that mean them: YAML 1.1 reads 5e-7 as text.

    Args:
        value: A setting; mappings and lists are gone through.

    Returns:
        The same without such texts.
    """
    if isinstance(value, Mapping):
        return {name: plain_values(each) for name, each in value.items()}
    if isinstance(value, list):
        return [plain_values(each) for each in value]
    if isinstance(value, str) and value.strip().lower() in ("true", "false"):
        return value.strip().lower() == "true"
    if not isinstance(value, str) or not _NUMBER.fullmatch(value.strip()):
        return value
    number = float(value)
    whole = "." not in value and "e" not in value.lower()
    return int(value) if whole else number


@contextmanager
def told_as_settings() -> Iterator[None]:
    """Turn what transformers says of contradicting arguments into one line.

    Yields:
        Nothing; the arguments are built inside.

    Raises:
        ConfigError: For what transformers raises.
    """
    try:
        yield
    except ConfigError:
        raise
    except (ValueError, TypeError, RuntimeError, KeyError, OSError, ImportError) as error:
        raise ConfigError.of(
            saw=f"training arguments that do not go together: {' '.join(str(error).split())}",
            expected="what transformers.TrainingArguments takes",
            cure="change one of them",
        ) from error


def check_metric(name: str | None, metrics: Mapping[str, float]) -> None:
    """Check that the metric which chooses the best checkpoint is one of an evaluation's.

    Args:
        name: `metric_for_best_model`.
        metrics: Of the first evaluation.

    Raises:
        ConfigError: If it is not among them; the nearest one is named.
    """
    wanted = f"eval_{(name or '').removeprefix('eval_')}"
    if name is None or wanted in metrics:
        return
    known = [each for each in metrics if not each.endswith(("runtime", "per_second"))]
    close = nearest(wanted, known)
    raise ConfigError.of(
        saw=f"metric_for_best_model={name!r}",
        expected=f"a metric of the evaluation: {_some(known)}",
        cure=f"did you mean {close!r}?" if close else "choose one of them",
    )


def _check_choice(name: str, given: str, known: Sequence[str]) -> None:
    if given in known:
        return
    close = nearest(given, list(known))
    raise ConfigError.of(
        saw=f"{name}={given!r}",
        expected=f"one of {_some(known)}",
        cure=f"did you mean {close!r}?" if close else "choose one of them",
    )


def _some(known: Sequence[str]) -> str:
    first = (
        sorted(known, key=lambda each: each not in _USUAL) if len(known) > len(_USUAL) else known
    )
    told, more = ", ".join(first[:_SHOWN_CHOICES]), len(known) - _SHOWN_CHOICES
    return f"{told} and {more} more" if more > 0 else told
