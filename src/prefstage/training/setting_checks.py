"""Settings that transformers would refuse late, tried on one tiny layer before anything runs.

transformers makes optimiser and schedule when training begins, after data were sampled, judged
and scored. Here it makes them from the same arguments at once, so that whatever it refuses
(a package that is missing, an argument that a schedule needs) is said before, and nothing has to
be listed that a new version would change.
"""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

from prefstage.core.errors import ConfigError, MissingDependencyError, PrefstageError

_STEPS = 1000  # of a schedule whose length is not known yet
_WARMUP = 10
_RECOMPUTE = "activation_checkpointing"
_PROBE = "prefstage_probe"
"""A name or value that no optimiser and no schedule knows: who reads it, refuses it."""


def check_settings(args: Any, *, optimizer: bool = True, scheduler: bool = True) -> None:
    """Check trackers, optimiser, schedule and Hub by letting transformers make them once.

    Args:
        args: Training arguments.
        optimizer: Whether the trainer will make its optimiser from them.
        scheduler: Likewise of the schedule.

    Raises:
        ConfigError: If transformers refuses one, or a setting has no effect; one line.
        MissingDependencyError: If a package is missing that one needs.
    """
    _check_trackers(args.report_to)
    _check_device(args)
    _check_hub(args)
    if optimizer:
        _check_optimizer(args)
    if scheduler:
        _check_schedule(args)


def check_tf32(asked: Any) -> None:
    """Check that the machine has what `tf32` asks for; making arguments would switch it on.

    Args:
        asked: The setting.

    Raises:
        ConfigError: If it is asked for, and not there.
    """
    from transformers.utils import is_torch_tf32_available

    if asked and not is_torch_tf32_available():
        raise ConfigError.of(
            saw="tf32=True on a machine without it",
            expected="an NVIDIA GPU of Ampere or later",
            cure="remove tf32",
        )


def _check_trackers(names: Any) -> None:
    from transformers.integrations import get_reporting_integration_callbacks

    for name in [names] if isinstance(names, str) else names or ():
        with _refused(f"report_to={name!r}", cure="install it, or set report_to: none"):
            for kind in get_reporting_integration_callbacks([name]):
                if isinstance(kind, type):  # looks for its package as it is made
                    _without_end(kind)()


def _without_end(kind: type) -> type:
    """A tracker that tidies nothing up: some fail to where they were not made whole."""
    return type(kind.__name__, (kind,), {"__del__": lambda self: None})


def _check_device(args: Any) -> None:
    with _refused(f"log_level={args.log_level!r}", cure="choose debug, info, warning or error"):
        args.get_process_log_level()
    if args.fp16 and args.device.type == "cpu":
        raise ConfigError.of(
            saw="fp16=True on a CPU", expected="a GPU, or bf16", cure="set bf16, or remove fp16"
        )
    # of transformers before 5.23: gradient_checkpointing
    settings = getattr(args, f"{_RECOMPUTE}_kwargs", None) or args.gradient_checkpointing_kwargs
    if not settings:
        return
    if not (getattr(args, _RECOMPUTE, None) or args.gradient_checkpointing):
        raise ConfigError.of(
            saw=f"activation_checkpointing_kwargs={settings} without activation_checkpointing",
            expected="both, or neither",
            cure="set activation_checkpointing: true, or remove them",
        )
    with _refused(f"activation_checkpointing_kwargs={settings}", cure="change or remove them"):
        _try_checkpointing(settings)


def _try_checkpointing(settings: Any) -> None:
    import torch
    from torch.utils.checkpoint import checkpoint

    if not isinstance(settings.get("use_reentrant", True), bool):
        raise TypeError("use_reentrant is neither true nor false")
    checkpoint(
        torch.square, torch.ones(1, requires_grad=True), **{"use_reentrant": False, **settings}
    )


def _check_hub(args: Any) -> None:
    from huggingface_hub import get_token

    if args.push_to_hub and not (args.hub_token or get_token()):
        raise ConfigError.of(
            saw="push_to_hub without a token of the Hub",
            expected="a token, by `hf auth login`, HF_TOKEN or hub_token",
            cure="log in, or remove push_to_hub",
        )


# --- The optimiser ---------------------------------------------------------------------------


def _check_optimizer(args: Any) -> None:
    name = f"optim={_plain(args.optim)!r}"
    tried = copy.copy(args)
    if tried.optim_target_modules is not None:
        if not _is_read(args, optim_target_modules=[_PROBE]):
            raise ConfigError.of(
                saw=f"optim_target_modules, which {name} does not read",
                expected="it with an optimiser that projects gradients, such as galore_adamw",
                cure="remove it",
            )
        tried.optim_target_modules = "all-linear"  # the policy's names are not known yet
    for word in (args.optim_args or "").split(","):
        if word.strip() and "=" not in word:
            raise ConfigError.of(
                saw=f"optim_args={args.optim_args!r}",
                expected="name=value, separated by commas, or a mapping",
                cure=f"write {word.strip()}=VALUE",
            )
    with _refused(name, cure="choose another optim, such as adamw_torch, or change its settings"):
        optimizer = _optimizer(tried)
        _step(optimizer)
    for key in _argument_names(args.optim_args):
        probe, without = ({**_pairs(args.optim_args), key: _PROBE}, _without(args.optim_args, key))
        if not _is_read(tried, optim_args=_joined(probe), instead_of=_joined(without)):
            raise ConfigError.of(
                saw=f"optim_args {key}={_pairs(args.optim_args)[key]}, which {name} does not read",
                expected="arguments of this optimiser",
                cure=f"remove {key}, or set what TrainingArguments has for it (weight_decay, "
                "adam_beta1, ...)",
            )


def _optimizer(args: Any) -> Any:
    """As the trainer makes it, of one layer."""
    return _trainer(args).create_optimizer()


def _trainer(args: Any) -> Any:
    """A Trainer that has nothing but what making optimiser and schedule reads."""
    from torch import nn
    from transformers import Trainer

    layer = nn.Linear(8, 8, device="meta").to_empty(device=args.device)  # draws no random numbers
    for weight in layer.parameters():
        nn.init.zeros_(weight)
    trainer = Trainer.__new__(Trainer)
    trainer.args, trainer.model = args, nn.ModuleDict({"layer": layer})
    trainer.optimizer = trainer.lr_scheduler = trainer.optimizer_cls_and_kwargs = None
    return trainer


def _step(optimizer: Any) -> None:
    """One step: some optimisers refuse their settings only then."""
    from torch import full_like

    if hasattr(optimizer, "train"):  # of those without a schedule
        optimizer.train()
    for weight in chain.from_iterable(group["params"] for group in optimizer.param_groups):
        weight.grad = full_like(weight, 1e-3)
    optimizer.step()


def _is_read(args: Any, *, instead_of: Any = None, **probe: Any) -> bool:
    """Whether an optimiser is made otherwise by a value that nobody means."""
    (name, value) = next(iter(probe.items()))
    made = []
    for given in (value, instead_of):
        tried = copy.copy(args)
        setattr(tried, name, given)
        trainer = _trainer(tried)
        try:
            made.append(repr(trainer.get_optimizer_cls_and_kwargs(tried, trainer.model)))
        except Exception:  # whatever it says, it has looked
            return True
    return made[0] != made[1]


def _pairs(text: str | None) -> dict[str, str]:
    parts = (each.partition("=") for each in (text or "").replace(" ", "").split(",") if each)
    return {name: value for name, _, value in parts}


def _argument_names(text: str | None) -> list[str]:
    return list(_pairs(text))


def _without(text: str | None, key: str) -> dict[str, str]:
    return {name: value for name, value in _pairs(text).items() if name != key}


def _joined(pairs: dict[str, str]) -> str | None:
    return ",".join(f"{name}={value}" for name, value in pairs.items()) or None


# --- The schedule ----------------------------------------------------------------------------


def _check_schedule(args: Any) -> None:
    kind, settings = _plain(args.lr_scheduler_type), args.lr_scheduler_kwargs or {}
    name = f"lr_scheduler_type={kind!r}" + (
        f" with lr_scheduler_kwargs={settings}" if settings else ""
    )
    cure = "set lr_scheduler_kwargs as transformers describes them, or choose another schedule"
    with _refused(name, cure=cure):
        _walk(_schedule(args, settings, args.get_warmup_steps(_length(args))), _length(args))
    if settings and not _refuses(args, {**settings, _PROBE: 1}):
        raise ConfigError.of(
            saw=f"lr_scheduler_kwargs={settings}, which lr_scheduler_type={kind!r} does not read",
            expected="them with a schedule that takes some, such as cosine_with_min_lr",
            cure="remove them, or choose another schedule",
        )
    if args.warmup_steps and not _warms_up(args, settings):
        raise ConfigError.of(
            saw=f"warmup_steps={args.warmup_steps}, which lr_scheduler_type={kind!r} does not read",
            expected="it with a schedule that warms up, such as constant_with_warmup",
            cure="remove it, or choose another schedule",
        )


def _length(args: Any) -> int:
    return args.max_steps if args.max_steps > 0 else _STEPS


def _schedule(args: Any, settings: Any, warmup: int) -> Any:
    import torch
    from transformers import get_scheduler

    weight = torch.zeros(1, requires_grad=True)
    return get_scheduler(
        args.lr_scheduler_type,
        optimizer=torch.optim.SGD([weight], lr=args.learning_rate),
        num_warmup_steps=warmup,
        num_training_steps=_length(args),
        scheduler_specific_kwargs=settings,
    )


def _walk(schedule: Any, length: int) -> None:
    """Ask for the rates along a schedule: some refuse their settings only then."""
    places = sorted({0, 1, length // 10, length // 2, length - 1, length})
    for factor in getattr(schedule, "lr_lambdas", ()):
        for step in places:
            rate = factor(step)
            if not (isinstance(rate, int | float) and math.isfinite(rate) and rate >= 0):
                raise ValueError(f"at step {step} it multiplies the learning rate by {rate}")


def _refuses(args: Any, settings: Any) -> bool:
    try:
        _schedule(args, settings, 0)
    except Exception:  # whatever it says, it has looked
        return True
    return False


def _warms_up(args: Any, settings: Any) -> bool:
    with_warmup, without = (_schedule(args, settings, steps) for steps in (_WARMUP, 0))
    return bool(_first_rate(with_warmup) != _first_rate(without))


def _first_rate(schedule: Any) -> Any:
    return schedule.optimizer.param_groups[0]["lr"]


# --- What transformers says ------------------------------------------------------------------


def _plain(value: Any) -> str:
    return str(getattr(value, "value", value))


@contextmanager
def _refused(setting: str, *, cure: str) -> Iterator[None]:
    """Turn what transformers, or a library of its, says of a setting into one line."""
    try:
        yield
    except PrefstageError:
        raise
    except ImportError as error:
        raise MissingDependencyError.of(
            saw=f"{setting}: {_said(error)}", expected="the package that it needs", cure=cure
        ) from error
    except Exception as error:  # each optimiser, schedule and tracker has errors of its own
        said = str(error)  # trackers and optimisers say so in errors of any kind
        missing = "install" in said or "import" in said
        kind = MissingDependencyError if missing else ConfigError
        expected = "the package that it needs" if missing else "settings that transformers takes"
        raise kind.of(saw=f"{setting}: {_said(error)}", expected=expected, cure=cure) from error


def _said(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text or type(error).__name__
