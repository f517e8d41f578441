"""The trainer's arguments: transformers' own, what preference training adds, and their checks.

Wrong arguments are refused before anything runs, in one line that names the nearest right one.
"""

import importlib.util
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import Enum
from pathlib import Path
from typing import Any, Self, cast, get_args

from transformers.trainer_utils import HubStrategy, IntervalStrategy, SaveStrategy, SchedulerType
from transformers.training_args import OptimizerNames, TrainingArguments

from prefstage.core import ConfigError, InputError, MissingDependencyError, did_you_mean
from prefstage.data.records import Ties

# Arguments of transformers that nothing reads here: values that change nothing, and the cure.
_LOADING = "remove it: items are encoded before training, and no DataLoader is used"
_EVALUATION = "remove it: evaluation takes log-probs alone, and is divided by token_budget"
_WITHOUT_EFFECT: dict[str, tuple[tuple[Any, ...], str]] = {
    "auto_find_batch_size": ((False,), "set token_budget, which decides how much memory is used"),
    "dataloader_drop_last": ((False,), "remove it: a short last step is trained on"),
    **dict.fromkeys(
        ("dataloader_num_workers", "dataloader_persistent_workers"), ((0, False), _LOADING)
    ),
    **dict.fromkeys(
        ("dataloader_prefetch_factor", "dataloader_multiprocessing_context"), ((None,), _LOADING)
    ),
    "dataloader_in_order": ((True,), _LOADING),
    "remove_unused_columns": ((True,), _LOADING),
    "label_names": ((None, []), _LOADING),
    "length_column_name": (("length",), _LOADING),
    "batch_eval_metrics": ((False,), _EVALUATION),
    "include_for_metrics": (([],), _EVALUATION),
    "prediction_loss_only": ((False,), _EVALUATION),
    "eval_accumulation_steps": ((None,), _EVALUATION),
    "eval_do_concat_batches": ((True,), _EVALUATION),
    "eval_use_gather_object": ((False,), _EVALUATION),
    **dict.fromkeys(("bf16_full_eval", "fp16_full_eval"), ((False,), _EVALUATION)),
    "average_tokens_across_devices": ((True,), "remove it: a loss is a mean over all processes"),
    "torch_empty_cache_steps": ((None,), "set token_budget, which decides how much memory is used"),
    "use_liger_kernel": (
        (False,),
        "remove it: layers and head are fused without it, and no logits are held",
    ),
    "liger_kernel_config": ((None,), "remove it, as use_liger_kernel"),
    "label_smoothing_factor": ((0, 0.0), "set the loss's own label smoothing"),
    "train_sampling_strategy": (
        ("random", "sequential"),
        "remove it: micro-batches are balanced by tokens in any order",
    ),
}

# Arguments of transformers that would have another effect than they are meant to have.
_UNFIT = {
    "parallelism_config": "processes that share a layer or a sequence, where they share a step",
    "neftune_noise_alpha": "noise by the length of a sequence, where several share one row",
    "torch_compile": "a compiled forward pass, which cannot hold tensors of changing shapes and "
    "hooks on weights",
}


_CHOICES: dict[str, type[Enum]] = {
    "optim": OptimizerNames,
    "lr_scheduler_type": SchedulerType,
    "eval_strategy": IntervalStrategy,
    "logging_strategy": IntervalStrategy,
    "save_strategy": SaveStrategy,
    "hub_strategy": HubStrategy,
}
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

_LOSS = "the loss's settings in PreferenceArguments"
_NO_LOGITS = "log-probs and the metrics made of them: logits are never held"
# Arguments of TRL and of transformers' Trainer that people bring: what is there instead, and what
# to do. None of them is taken and then left unused.
_ELSEWHERE = {
    "beta": (_LOSS, "write PreferenceArguments(loss={'name': 'sigmoid', 'beta': 0.1})"),
    "label_smoothing": (
        _LOSS,
        "write PreferenceArguments(loss={'name': 'sigmoid', 'flip_rate': 0.1})",
    ),
    # TRL's settings of its losses: a loss that has each, and what it is called here.
    **{
        name: (_LOSS, f"write PreferenceArguments(loss={{'name': {loss!r}, {setting!r}: ...}})")
        for name, (loss, setting) in {
            "use_weighting": ("sigmoid", "use_weighting"),
            "ld_alpha": ("sigmoid", "ld_alpha"),
            "f_divergence_type": ("sigmoid", "f_divergence"),
            "f_alpha_divergence_coef": ("sigmoid", "f_alpha"),
            "discopop_tau": ("discopop", "tau"),
            "cpo_alpha": ("cpo", "imitation"),
            "simpo_gamma": ("simpo", "margin"),
            "alpha": ("alphapo", "alpha"),
            "tpo_alpha": ("tpo", "imitation"),
            "tpo_l_gamma": ("tpo_l", "margin"),
            "desirable_weight": ("kto", "desirable_weight"),
            "undesirable_weight": ("kto", "undesirable_weight"),
            "min_density_ratio": ("bco_udm", "min_ratio"),
            "max_density_ratio": ("bco_udm", "max_ratio"),
        }.items()
    },
    "router_aux_loss_coef": (
        "the preference loss alone, as no loss of a mixture's router is added",
        "remove it",
    ),
    "loss_type": ("the loss in PreferenceArguments", "write PreferenceArguments(loss='ipo')"),
    "loss_weights": ("a sum of losses", "write PreferenceArguments(loss='sigmoid + 0.2*sft')"),
    "ref_model": (
        "the reference in PreferenceArguments",
        "write PreferenceArguments(reference=...): 'start' (the default), 'adapter-off', 'none', "
        "or a folder or Hub id",
    ),
    "tokenizer": ("the tokenizer as processing_class", "write processing_class=tokenizer"),
    "max_prompt_length": ("max_prompt_tokens", "write PreferenceArguments(max_prompt_tokens=...)"),
    **dict.fromkeys(
        ("max_length", "max_completion_length"),
        (
            "max_prompt_tokens and max_response_tokens",
            "write PreferenceArguments(max_response_tokens=...)",
        ),
    ),
    "reference_free": (
        "a loss without reference, or reference='none'",
        "choose a loss such as simpo",
    ),
    "precompute_ref_log_probs": (
        "nothing: reference log-probs are always computed before training",
        "remove it",
    ),
    **dict.fromkeys(
        ("compute_metrics", "preprocess_logits_for_metrics"),
        (_NO_LOGITS, "remove it; read trainer.evaluate(), or follow pairs by a DynamicsCallback"),
    ),
    "compute_loss_func": ("a loss of prefstage.LOSSES", "set loss in PreferenceArguments"),
    "model_init": ("the model itself", "call PreferenceTrainer with it, once a run"),
    "data_collator": ("data alone: items are encoded before training", "remove it"),
}

_SHOWN_CHOICES = 8
# Named first where there are too many to name all.
_USUAL = ("adamw_torch", "rmsprop", "sgd", "adafactor", "adamw_8bit", "linear", "cosine")

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


@dataclass
class PreferenceArguments(TrainingArguments):  # type: ignore[misc]  # transformers has no types here
    """`transformers.TrainingArguments` with what preference training adds.

    An optimiser step takes `per_device_train_batch_size` · `gradient_accumulation_steps` ·
    processes items, whatever the lengths. How they are divided into forward passes is
    planned from `token_budget`, so accumulation is folded into the batch size: the two
    differ in nothing, and afterwards `gradient_accumulation_steps` is 1.

    Attributes:
        loss: A name ("sigmoid"), a sum ("sigmoid + 0.2*sft"), a mapping with a name and
            settings, or a list of those; see `prefstage.LOSSES`.
        ties: Pairs whose raters are split evenly: "leave-out" (counted), or "keep" to train
            (and evaluate) on them.
        reference: Whose log-probs the loss compares with. "start": the policy as given;
            "adapter-off": the policy without its adapters; a folder or Hub id: that
            model, loaded before training and freed; "none": no reference.
        chat_format: Template for a model without one; None for the tokenizer's.
        template_options: Variables for the chat template, such as ``{"enable_thinking": False}``.
        template_date: What templates read as today (an ISO date); None for the day of the first
            run.
        control_tokens: What becomes of control tokens that texts spell: "split" or "keep".
        max_prompt_tokens: Longer prompts lose their beginning (counted). None: no limit.
        max_response_tokens: Longer responses lose their end (counted). None: no limit.
        token_budget: Tokens a forward and backward pass, or "auto" for what fits into the
            free memory. It changes speed and memory, never the result. An item that is
            longer runs alone; on a CPU in one process, some of its layers then run again in
            the backward pass, so that it keeps no more than so many tokens would.
        layout: "tree" computes shared prompts once; "flat" computes whole sequences;
            "auto" takes the tree where it is exact.
        reference_cache: Folder of reference log-probs; None for one in `output_dir`.
        initial_loss_tolerance: Largest |log-ratio| a token, in nats, between policy and
            reference before the first step, if the policy is the reference; None chooses
            by precision.
        disable_dropout: Switch dropout off, so that the policy's log-probs are its own.
        sync_ref_model: Let the reference follow the policy (TR-DPO, arXiv:2404.09656).
        ref_model_mixup_alpha: α in ``π_ref ← α π + (1 - α) π_ref``; 1 takes the policy over.
        ref_model_sync_steps: Optimiser steps between two such updates.
    """

    learning_rate: float | str = field(default=1e-6, metadata={"help": "Peak learning rate."})
    loss: Any = field(default="sigmoid", metadata={"help": "Which loss to minimise."})
    ties: Ties = field(default="leave-out", metadata={"help": "leave-out or keep."})
    reference: str = field(
        default="start", metadata={"help": "start, adapter-off, none, or a model."}
    )
    chat_format: str | None = field(
        default=None, metadata={"help": "Chat format of a model without a template."}
    )
    template_options: dict[str, Any] | None = field(
        default=None, metadata={"help": "Variables of the chat template, as JSON."}
    )
    template_date: str | None = field(
        default=None, metadata={"help": "What templates read as today."}
    )
    control_tokens: str = field(
        default="split", metadata={"help": "Control tokens in texts: split or keep."}
    )
    max_prompt_tokens: int | None = field(
        default=None, metadata={"help": "Longer prompts lose their beginning."}
    )
    max_response_tokens: int | None = field(
        default=None, metadata={"help": "Longer responses lose their end."}
    )
    token_budget: int | str = field(
        default="auto", metadata={"help": "Tokens a forward and backward pass, or auto."}
    )
    layout: str = field(default="auto", metadata={"help": "auto, tree or flat."})
    reference_cache: str | None = field(
        default=None, metadata={"help": "Folder of reference log-probs."}
    )
    initial_loss_tolerance: float | None = field(
        default=None, metadata={"help": "Largest initial log-ratio a token, in nats."}
    )
    disable_dropout: bool = field(default=True, metadata={"help": "Switch dropout off."})
    sync_ref_model: bool = field(
        default=False, metadata={"help": "Let the reference follow the policy."}
    )
    ref_model_mixup_alpha: float = field(
        default=0.6, metadata={"help": "Part of the policy in the new reference."}
    )
    ref_model_sync_steps: int = field(
        default=512, metadata={"help": "Steps between two updates of the reference."}
    )

    def __new__(cls, *args: Any, **names: Any) -> Self:
        """Refuse unknown names before `__init__` would, in words of this library."""
        known = {argument.name for argument in fields(cls)}
        refuse_arguments(sorted({*names} - known), of=cls.__name__, known=known)
        return cast("Self", super().__new__(cls))

    @classmethod
    def of(cls, args: Any) -> Self:
        """The arguments as the trainer got them.

        Args:
            args: Arguments of this class; None for the defaults.

        Returns:
            The arguments.

        Raises:
            InputError: If they are another trainer's, or something else.
        """
        args = cls(output_dir="prefstage_output") if args is None else args
        InputError.unless(
            isinstance(args, cls),
            saw=f"a {type(args).__name__} as args",
            expected="prefstage.PreferenceArguments, which has all of TrainingArguments' and "
            "the loss, reference and limits",
            cure="write PreferenceTrainer(model, PreferenceArguments(output_dir=...), "
            "train_dataset=...)",
        )
        return cast("Self", args)

    def __post_init__(self) -> None:
        """Fold accumulation into the batch size, and check what is ours."""
        values = self.__dict__
        values |= {
            name: _plain_values(value)
            for name, value in values.items()
            if isinstance(value, Mapping) and name not in ("loss", "template_options")
        }
        if isinstance(values["optim_args"], Mapping):
            self.optim_args = ",".join(f"{k}={value}" for k, value in values["optim_args"].items())
        _check_arguments(self)
        with ConfigError.instead_of(
            *(ValueError, TypeError, RuntimeError, KeyError, OSError, ImportError),
            saw="training arguments that do not go together: {error}",
            expected="what transformers.TrainingArguments takes",
            cure="change one of them",
        ):
            super().__post_init__()
        # transformers would hand us one micro-batch at a time; the step divides its items itself.
        self.per_device_train_batch_size *= int(values["gradient_accumulation_steps"])
        self.gradient_accumulation_steps = 1
        _check_effects(self)


def refuse_arguments(unknown: Iterable[str], *, of: str, known: Collection[str] = ()) -> None:
    """Refuse arguments that are taken by others, or by nobody.

    Args:
        unknown: Names that were passed and are no argument.
        of: Name of the class that does not take it.
        known: The class's arguments.

    Raises:
        ConfigError: If there is one: what is there instead, or the nearest name.
    """
    for name in unknown:
        guess = did_you_mean(name, sorted(known), "remove it, or set it in another way")
        expected, cure = _ELSEWHERE.get(name, (f"an argument of {of}", guess))
        raise ConfigError.of(saw=f"{of}({name}=...)", expected=expected, cure=cure)


# Texts that mean numbers, true or false: YAML 1.1 reads 5e-7 as text.
def _plain_values(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain_values(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_plain_values(inner) for inner in value]
    text = value.strip().lower() if isinstance(value, str) else ""
    if text in ("true", "false"):
        return text == "true"
    if not _NUMBER.fullmatch(text):
        return value
    return float(text) if "." in text or "e" in text else int(text)


def check_metric(name: str | None, metrics: Mapping[str, float]) -> None:
    """Check that the metric which chooses the best checkpoint is among an evaluation's.

    Args:
        name: `metric_for_best_model`.
        metrics: Of the first evaluation.

    Raises:
        ConfigError: If it is not among them; the nearest one is named.
    """
    wanted = f"eval_{(name or '').removeprefix('eval_')}"
    known = [m for m in metrics if m == wanted or not m.endswith(("runtime", "per_second"))]
    _check_choice("metric_for_best_model", name, wanted, known, "a metric of the evaluation: ")


# --- Checks --------------------------------------------------------------------------------------


# What transformers checks late, or in words of its code.
def _check_arguments(args: Any) -> None:
    for name, kind in _CHOICES.items():
        value = getattr(args, name)
        text, known = str(getattr(value, "value", value)), [str(member.value) for member in kind]
        _check_choice(name, value, text, known, "one of ")
    MissingDependencyError.unless(
        not args.deepspeed or importlib.util.find_spec("deepspeed"),
        saw=f"deepspeed={args.deepspeed!r}, and no package deepspeed",
        expected="deepspeed, which reads this setting",
        cure="pip install deepspeed, or remove the setting",
    )
    for name in ("accelerator_config", "fsdp_config", "deepspeed"):
        value = getattr(args, name)
        ConfigError.unless(
            not isinstance(value, str)
            or value.lstrip().startswith("{")
            or not value
            or Path(value).is_file(),
            saw=f"{name}={value!r}, and no such file",
            expected="a mapping, JSON, or a file with its settings",
            cure="check the path",
        )
    for argument in fields(args):
        # transformers also lets text pass as a learning rate
        value = _as_typed(
            argument.name,
            getattr(args, argument.name),
            float if argument.name == "learning_rate" else argument.type,
        )
        setattr(args, argument.name, value)
    for name, least in _AT_LEAST.items():
        value = getattr(args, name)
        ConfigError.unless(
            not isinstance(value, int | float) or value >= least,
            saw=f"{name}={value}",
            expected=f"{least} or more",
            cure=f"set {name} in that range",
        )


# A number where the argument takes one: transformers takes texts and fractions here, and fails on
# them in the middle of a training.
def _as_typed(name: str, value: Any, annotation: Any) -> Any:
    allowed = {annotation, *get_args(annotation)} - {type(None)}
    value = _plain_values(value) if allowed & {int, float} else value
    if value is None or not allowed or not allowed <= {int, float, bool}:
        return value
    kind, fits = "true or false", isinstance(value, bool)
    if allowed != {bool}:
        whole, fits = float not in allowed, isinstance(value, int | float)
        kind, fits = "a whole number" if whole else "a number", fits and not (whole and value % 1)
    ConfigError.unless(
        fits,
        saw=f"{name}={value!r}",
        expected=kind,
        cure=f"change {name}",
    )
    return int(value) if kind == "a whole number" and isinstance(value, float) else value


def _check_effects(args: "PreferenceArguments") -> None:
    for name, (neutral, cure) in _WITHOUT_EFFECT.items():
        value = getattr(args, name, neutral[0])
        InputError.unless(
            value in neutral,
            saw=f"{name}={value!r}, which has no effect here",
            expected=" or ".join(map(repr, neutral)),
            cure=cure,
        )
    for name, what in _UNFIT.items():
        value = getattr(args, name, None)
        InputError.unless(
            not value,
            saw=f"{name}={value!r}",
            expected=f"a setting that fits this trainer; it means {what}",
            cure=f"remove {name}",
        )
    for name, allowed in (("layout", ("auto", "tree", "flat")), ("ties", get_args(Ties))):
        InputError.unless(
            getattr(args, name) in allowed,
            saw=f"{name}={getattr(args, name)!r}",
            expected=f"one of {', '.join(allowed)}",
            cure=f"use {allowed[0]}",
        )
    budget = args.token_budget
    InputError.unless(
        budget == "auto" or (isinstance(budget, int) and budget >= 1),
        saw=f"token_budget={budget!r}",
        expected="a number of tokens, at least 1, or 'auto'",
        cure="use 'auto' unless memory runs out",
    )


# None is refused by transformers, or means its default.
def _check_choice(name: str, value: Any, text: str, known: Sequence[str], kind: str) -> None:
    listed = sorted(known, key=lambda choice: len(known) > len(_USUAL) and choice not in _USUAL)
    more = len(known) - _SHOWN_CHOICES
    ConfigError.unless(
        value is None or text in known,
        saw=f"{name}={value!r}",
        expected=kind
        + ", ".join(listed[:_SHOWN_CHOICES])
        + (f" and {more} more" if more > 0 else ""),
        cure=did_you_mean(text, known, "choose one of them"),
    )
