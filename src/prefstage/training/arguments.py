"""The trainer's arguments: transformers' own, and what preference training adds."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

from transformers import TrainingArguments

from prefstage.core.errors import InputError
from prefstage.data.records import Ties
from prefstage.training.argument_checks import check_arguments, plain_values, told_as_settings

LAYOUTS = ("auto", "tree", "flat")

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

    def __post_init__(self) -> None:
        """Fold accumulation into the batch size, and check what is ours."""
        for name in (*self._VALID_DICT_FIELDS, "optim_args"):
            setattr(self, name, plain_values(getattr(self, name)))
        pairs: Any = getattr(self, "optim_args")  # noqa: B009 - untyped
        if isinstance(pairs, Mapping):
            self.optim_args = ",".join(f"{name}={each}" for name, each in pairs.items())
        check_arguments(self)
        with told_as_settings():
            super().__post_init__()
        accumulated = int(getattr(self, "gradient_accumulation_steps"))  # noqa: B009 - untyped
        self.per_device_train_batch_size *= accumulated
        self.gradient_accumulation_steps = 1
        _check_effects(self)
        if self.token_budget != "auto":
            self.token_budget = _token_count(self.token_budget)


def _check_effects(args: "PreferenceArguments") -> None:
    for name, (neutral, cure) in _WITHOUT_EFFECT.items():
        given = getattr(args, name, neutral[0])
        if given not in neutral:
            raise InputError.of(
                saw=f"{name}={given!r}, which has no effect here",
                expected=" or ".join(map(repr, neutral)),
                cure=cure,
            )
    for name, what in _UNFIT.items():
        if getattr(args, name, None):
            raise InputError.of(
                saw=f"{name}={getattr(args, name)!r}",
                expected=f"a setting that fits this trainer; it means {what}",
                cure=f"remove {name}",
            )
    for name, allowed in (("layout", LAYOUTS), ("ties", get_args(Ties))):
        given = getattr(args, name)
        if given not in allowed:
            raise InputError.of(
                saw=f"{name}={given!r}",
                expected=f"one of {', '.join(allowed)}",
                cure=f"use {allowed[0]}",
            )


def _token_count(value: int | str) -> int:
    try:
        count = int(value)
    except ValueError:
        count = 0
    if count < 1:
        raise InputError.of(
            saw=f"token_budget={value!r}",
            expected="a number of tokens, at least 1, or 'auto'",
            cure="use 'auto' unless memory runs out",
        )
    return count
