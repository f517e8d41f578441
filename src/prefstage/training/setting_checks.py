"""Settings that transformers would refuse late, tried on one tiny layer before anything runs.

transformers makes optimiser and schedule when training begins, after data were sampled, judged
and scored. Here it makes them from the same arguments at once, so that whatever it refuses
(a package that is missing, an argument that a schedule needs) is said before, and nothing has to
be listed that a new version would change.
"""

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain, product
from typing import Any

import huggingface_hub
import torch
from torch.utils.checkpoint import checkpoint
from transformers import get_scheduler
from transformers.integrations import get_reporting_integration_callbacks

from prefstage.core import ConfigError, MissingDependencyError, PrefstageError
from prefstage.training.compat import probe_trainer

_STEPS = 1000  # of a schedule whose length is not known yet
# A name or value that no optimiser and no schedule knows: whoever reads it, refuses it.
_PROBE = "prefstage_probe"


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
    names = args.report_to
    for name in [names] if isinstance(names, str) else names or ():
        with _refused(f"report_to={name!r}", cure="install it, or set report_to: none"):
            for kind in get_reporting_integration_callbacks([name]):
                if isinstance(kind, type):
                    # A tracker looks for its package as it is made. Some have a __del__ that
                    # fails where they were not made whole, so this copy has none.
                    type(kind.__name__, (kind,), {"__del__": lambda self: None})()
    with _refused(f"log_level={args.log_level!r}", cure="choose debug, info, warning or error"):
        args.get_process_log_level()
    ConfigError.unless(
        not args.fp16 or args.device.type != "cpu",
        saw="fp16=True on a CPU",
        expected="a GPU, or bf16",
        cure="set bf16, or remove fp16",
    )
    if settings := args.activation_checkpointing_kwargs:
        ConfigError.unless(
            args.activation_checkpointing,
            saw=f"activation_checkpointing_kwargs={settings} without activation_checkpointing",
            expected="both, or neither",
            cure="set activation_checkpointing: true, or remove them",
        )
        with _refused(f"activation_checkpointing_kwargs={settings}", cure="change or remove them"):
            if not isinstance(settings.get("use_reentrant", True), bool):
                raise TypeError("use_reentrant is neither true nor false")
            checkpoint(
                torch.square,
                torch.ones(1, requires_grad=True),
                **{"use_reentrant": False, **settings},
            )
    ConfigError.unless(
        not args.push_to_hub or args.hub_token or huggingface_hub.get_token(),
        saw="push_to_hub without a token of the Hub",
        expected="a token, by `hf auth login`, HF_TOKEN or hub_token",
        cure="log in, or remove push_to_hub",
    )
    if optimizer:
        _check_optimizer(args)
    if scheduler:
        _check_schedule(args)


# --- The optimiser ---------------------------------------------------------------------------


def _check_optimizer(args: Any) -> None:
    name = f"optim={args.optim.value!r}"
    tried = copy.copy(args)
    if tried.optim_target_modules is not None:
        ConfigError.unless(
            _is_read(partial(_optimizer, args, "optim_target_modules"), [_PROBE], None),
            saw=f"optim_target_modules, which {name} does not read",
            expected="it with an optimiser that projects gradients, such as galore_adamw",
            cure="remove it",
        )
        tried.optim_target_modules = "all-linear"  # the policy's names are not known yet
    settings = dict[str, str]()
    for word in filter(None, map(str.strip, (args.optim_args or "").split(","))):
        key, equals, value = word.replace(" ", "").partition("=")
        settings[key] = value
        ConfigError.unless(
            equals,
            saw=f"optim_args={args.optim_args!r}",
            expected="name=value, separated by commas, or a mapping",
            cure=f"write {word}=VALUE",
        )
    with _refused(name, cure="choose another optim, such as adamw_torch, or change its settings"):
        optimizer = probe_trainer(tried).create_optimizer()
        # Some refuse their settings only at the first step; those without a schedule want train().
        if hasattr(optimizer, "train"):
            optimizer.train()
        for weight in chain.from_iterable(group["params"] for group in optimizer.param_groups):
            weight.grad = torch.full_like(weight, 1e-3)
        optimizer.step()
    for key, value in settings.items():
        values = [
            ",".join(f"{name}={text}" for name, text in pairs.items()) or None
            for pairs in (
                {**settings, key: _PROBE},
                {other: settings[other] for other in settings if other != key},
            )
        ]
        ConfigError.unless(
            _is_read(partial(_optimizer, tried, "optim_args"), *values),
            saw=f"optim_args {key}={value}, which {name} does not read",
            expected="arguments of this optimiser",
            cure=f"remove {key}, or set what TrainingArguments has for it (weight_decay, "
            "adam_beta1, ...)",
        )


# What reads a setting refuses a value that nobody means, or makes something else of it.
def _is_read(make: Callable[[Any], Any], *values: Any) -> bool:
    try:
        return len({repr(make(value)) for value in values}) > 1
    except Exception:  # whatever it says, it has looked
        return True


def _optimizer(args: Any, name: str, value: Any) -> Any:
    tried = copy.copy(args)
    setattr(tried, name, value)
    trainer = probe_trainer(tried)
    return trainer.get_optimizer_cls_and_kwargs(tried, trainer.model)


# --- The schedule ----------------------------------------------------------------------------


def _check_schedule(args: Any) -> None:
    settings = args.lr_scheduler_kwargs or {}
    length = args.max_steps if args.max_steps > 0 else _STEPS
    name = f"lr_scheduler_type={args.lr_scheduler_type.value!r}"

    def schedule(settings: Any, warmup: int) -> Any:
        return get_scheduler(
            args.lr_scheduler_type,
            optimizer=torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=args.learning_rate),
            num_warmup_steps=warmup,
            num_training_steps=length,
            scheduler_specific_kwargs=settings,
        )

    with _refused(
        f"{name} with lr_scheduler_kwargs={settings}" if settings else name,
        cure="set lr_scheduler_kwargs as transformers describes them, or choose another schedule",
    ):
        made = schedule(settings, args.get_warmup_steps(length))
        # Some refuse their settings only when they are asked for a rate.
        for factor, step in product(
            getattr(made, "lr_lambdas", ()),
            sorted({0, 1, length // 10, length // 2, length - 1, length}),
        ):
            rate = factor(step)
            if not (isinstance(rate, int | float) and math.isfinite(rate) and rate >= 0):
                raise ValueError(f"at step {step} it multiplies the learning rate by {rate}")
    ConfigError.unless(
        not settings or _is_read(partial(schedule, warmup=0), {**settings, _PROBE: 1}),
        saw=f"lr_scheduler_kwargs={settings}, which {name} does not read",
        expected="them with a schedule that takes some, such as cosine_with_min_lr",
        cure="remove them, or choose another schedule",
    )

    def first_rate(warmup: int) -> float:
        return float(schedule(settings, warmup).optimizer.param_groups[0]["lr"])

    ConfigError.unless(
        not args.warmup_steps or _is_read(first_rate, 10, 0),
        saw=f"warmup_steps={args.warmup_steps}, which {name} does not read",
        expected="it with a schedule that warms up, such as constant_with_warmup",
        cure="remove it, or choose another schedule",
    )


# --- What transformers says ------------------------------------------------------------------


# Turn what transformers, or a library of its, says of a setting into one line.
@contextmanager
def _refused(setting: str, *, cure: str) -> Iterator[None]:
    try:
        yield
    except PrefstageError:
        raise
    except Exception as error:  # optimisers, schedules and trackers have errors of any kind
        text = " ".join(str(error).split()) or type(error).__name__
        missing = isinstance(error, ImportError) or "install" in text or "import" in text
        raise (MissingDependencyError if missing else ConfigError).of(
            saw=f"{setting}: {text}",
            expected="the package that it needs" if missing else "settings that transformers takes",
            cure=cure,
        ) from error
