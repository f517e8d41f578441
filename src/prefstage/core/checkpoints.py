"""The one door through which models of transformers come in: whole, or refused by name."""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefstage.core.errors import ModelError
from prefstage.core.secrets import TRUST_CURE, trust_remote_code
from prefstage.core.weights import (
    adapter_tensors,
    adapters_of,
    check_weights,
    foreign_files,
    is_path,
    not_finite_names,
    put_adapter,
    reason_of,
    saved_name,
)

# What older versions of transformers wrote beside the weights: masks and positions that the
# model makes itself. A real bias is named after its layer (attn.c_attn.bias), never attn.bias.
_LEFTOVERS = re.compile(
    r"(^|\.)(attn|attention|self_attn|crossattention)\.(masked_)?bias$"
    r"|(^|\.)(rotary_emb|rotary)\.(inv_freq|cos_cached|sin_cached)$|(^|\.)position_ids$"
)
_CONVERSION = re.compile(r"^(\S+)\s*\|\s*(?:\x1b\[[\d;]*m)*CONVERSION", re.MULTILINE)
_LM_HEAD = re.compile(r"^(lm_head|embed_out|output)\.")
_SCORE = re.compile(r"(^|\.)(score|v_head|value_head|reward_head|regression_layer|classifier)\.")
_NUMBERED_HEAD = re.compile(r"(^|\.)(score|classifier|classifier\.out_proj)\.weight$")


@dataclass(frozen=True)
class Task:
    """What a checkpoint is loaded as.

    Attributes:
        auto_class: Of transformers.
        wanted: In words.
        other_heads: Architectures that were made for something else.
        cure: Where the checkpoint is of such another one.
    """

    auto_class: str
    wanted: str
    other_heads: re.Pattern[str]
    cure: str


CAUSAL_LM = Task(
    "AutoModelForCausalLM",
    "a checkpoint of a causal language model",
    re.compile("For(Sequence|Token)Classification|ForMaskedLM|ForQuestionAnswering|ForMultipleCh"),
    "use a language model; a reward model serves as judge (reward:PATH)",
)
CLASSIFIER = Task(
    "AutoModelForSequenceClassification",
    "a trained reward model with its classification head",
    re.compile("ForTokenClassification|ForQuestionAnswering|ForMultipleChoice"),
    "use the reward model's checkpoint, not the base model's",
)


def load_checkpoint(
    name_or_path: str,
    task: Task,
    *,
    dtype: Any,
    device_map: Any,
    adapter: str | None = None,
    merge: bool = False,
) -> Any:
    """Load a model whose every weight comes from its checkpoint and is a number.

    A folder (or Hub id) of a PEFT adapter is the model that it names as its base, with the
    adapter on; an adapter that was made for another adapter finds that one merged.

    Args:
        name_or_path: Folder or Hub id of a model, or of an adapter.
        task: What it is loaded as.
        dtype: As `from_pretrained` takes it.
        device_map: Likewise.
        adapter: A further adapter to put on.
        merge: Whether the last adapter is merged into the weights too.

    Returns:
        The model in evaluation mode: of transformers, or a PeftModel with the last adapter on.

    Raises:
        ModelError: If it cannot be read; is no model of this task; or weights are missing,
            unexpected, of another shape, or not finite. One line that names the first few.
        MissingDependencyError: If an adapter is to be put on and peft is not installed.
    """
    import transformers

    base, adapters = adapters_of(str(name_or_path))
    adapters += [] if adapter is None else [adapter]
    tensors = [adapter_tensors(name) for name in adapters]
    supplied = {saved_name(k): tensor for weights in tensors for k, tensor in weights.items()}
    check_model_config(load_model_config(base), task, base)
    # Logits of the head that an adapter brings, which its base's config.json does not know.
    heads = [len(weight) for name, weight in supplied.items() if _NUMBERED_HEAD.search(name)]
    model = load_whole(
        getattr(transformers, task.auto_class),
        base,
        task,
        dtype=dtype,
        device_map=device_map,
        source=f"{base}, beneath adapter {adapters[0]}" if adapters else base,
        supplied=supplied,
        **({"num_labels": heads[-1]} if heads and task is CLASSIFIER else {}),
    )
    for index, (name, weights) in enumerate(zip(adapters, tensors, strict=True)):
        check_weights(
            name,
            not_finite=map(saved_name, not_finite_names(weights)),
            expected="finite numbers",
            cure="use an earlier or another copy of the adapter",
        )
        model = put_adapter(model, name, merge=merge or index + 1 < len(adapters))
    return model.eval()


def load_model_config(name_or_path: str) -> Any:
    """The configuration of a model, or of the model beneath an adapter.

    Args:
        name_or_path: Folder or Hub id.

    Returns:
        A configuration of transformers.

    Raises:
        ModelError: If there is none, or it is not valid.
    """
    from transformers import AutoConfig

    base, _ = adapters_of(str(name_or_path))
    ModelError.unless(
        Path(base).exists() or not is_path(base),
        saw=f"no model folder {base!r}",
        expected="a model folder or a model id of the Hub",
        cure="check the name",
    )
    try:
        return AutoConfig.from_pretrained(base, trust_remote_code=trust_remote_code())
    except Exception as error:  # what a foreign file makes transformers raise is anything
        code = "custom code" in str(error)
        raise ModelError.of(
            saw=f"{base} holds code of its own, which does not run unasked"
            if code
            else f"no model configuration at {base!r} ({reason_of(error)})",
            expected="a model folder or a model id of the Hub",
            cure=TRUST_CURE if code else "check the name",
        ) from error


def check_model_config(config: Any, task: Task, source: str) -> None:
    """Check that a configuration is one of a task, before any weight is read.

    Args:
        config: Of transformers.
        task: What the model shall be.
        source: Its folder or Hub id, for the message.

    Raises:
        ModelError: If the architecture has another head, or the padding token lies outside
            the vocabulary.
    """
    import transformers

    names = [str(name) for name in getattr(config, "architectures", None) or ()]
    ModelError.unless(
        not names or not all(task.other_heads.search(name) for name in names),
        saw=f"{source} is a checkpoint of {', '.join(names)}",
        expected=task.wanted,
        cure=task.cure,
    )
    ModelError.unless(
        type(config) in getattr(transformers, task.auto_class)._model_mapping
        or task.auto_class in (getattr(config, "auto_map", None) or {}),
        saw=f"{source} is a {getattr(config, 'model_type', type(config).__name__)} model",
        expected=task.wanted,
        cure=task.cure,
    )
    text = config.get_text_config()
    pad, rows = getattr(text, "pad_token_id", None), getattr(text, "vocab_size", None)
    if isinstance(pad, int) and isinstance(rows, int) and pad >= rows:
        raise ModelError.of(
            saw=f"{source}/config.json: pad_token_id {pad} and vocab_size {rows}",
            expected=f"a padding token from 0 to {rows - 1}, or none",
            cure="set pad_token_id in config.json to the tokenizer's padding token, or to null",
        )


# --- Loading and the report of it ----------------------------------------------------------------


def load_whole(
    model_class: Any,
    base: str,
    task: Task,
    *,
    dtype: Any,
    device_map: Any,
    source: str | None = None,
    supplied: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Any:
    """Load a model without adapters, every weight of it.

    Args:
        model_class: Of transformers, or derived from one.
        base: Folder or Hub id of the model.
        task: What it is loaded as.
        dtype: As `from_pretrained` takes it.
        device_map: Likewise.
        source: What messages call it; None for `base`.
        supplied: Weights by name that need not be in it, since an adapter brings them.
        settings: Of its configuration.

    Returns:
        The model.

    Raises:
        ModelError: As `load_checkpoint`.
    """
    import torch

    unconverted: list[str] = []  # weights that it could not make of the checkpoint's

    def keep(record: logging.LogRecord) -> bool:
        # Its table of missing weights stays off the terminal: our one line says it.
        report = "LOAD REPORT" in str(record.msg)
        unconverted.extend(_CONVERSION.findall(str(record.msg)) if report else ())
        return not report

    log = logging.getLogger("transformers.modeling_utils")
    log.addFilter(keep)
    with foreign_files(
        base,
        saw=f"cannot load {base}",
        expected=task.wanted,
        cure="check the path, the dtype and the device, or that the Hub id exists and can be "
        "reached",
    ):
        try:
            model, info = model_class.from_pretrained(
                base,
                dtype=dtype,
                device_map=device_map,
                output_loading_info=True,
                trust_remote_code=trust_remote_code(),
                ignore_mismatched_sizes=True,  # they are reported, and refused by name below
                **settings,
            )
        except (MemoryError, torch.OutOfMemoryError) as error:
            raise ModelError.of(
                saw=f"no memory to load {base} ({reason_of(error)})",
                expected="room for the model's weights",
                cure="take a smaller dtype, or another device",
            ) from error
        except Exception:
            check_weights(
                base,
                missing=[
                    f"{name}, which parts of other shape or number make up" for name in unconverted
                ],
                expected=task.wanted,
                cure=_cure_of(task, ()),
            )
            raise
        finally:
            log.removeFilter(keep)
    _check_base(model, info, task, source or base, supplied or {})
    return model


def _check_base(
    model: Any, info: Mapping[str, Any], task: Task, source: str, supplied: Mapping[str, Any]
) -> None:
    """Check a model's weights; those that an adapter brings need not be in the base."""
    missing = {name for name in info.get("missing_keys", ()) if name not in supplied}
    unexpected = {n for n in info.get("unexpected_keys", ()) if not _LEFTOVERS.search(n)}
    if task is CLASSIFIER and supplied:  # an adapter of a reward model lies on a language model
        unexpected = {name for name in unexpected if not _LM_HEAD.search(name)}
    if getattr(model.config, "quantization_config", None) is not None:
        # Scales and zero points come and go with the method; what is computed with does not.
        missing, unexpected = (
            {n for n in names if n.endswith((".weight", ".bias"))}
            for names in (missing, unexpected)
        )
    check_weights(
        source,
        missing=missing,
        unexpected=unexpected,
        reshaped={
            name: f"{list(saved)} in the file, {list(wanted)} by config.json"
            for name, saved, wanted in info.get("mismatched_keys", ())
            if name not in supplied
        },
        expected=task.wanted,
        cure=_cure_of(task, unexpected),
    )
    ModelError.unless(
        task is not CAUSAL_LM or getattr(model.config, "is_decoder", None) is not False,
        saw=f"{source} is an encoder ({type(model).__name__} with is_decoder false)",
        expected=task.wanted,
        cure="use a language model that reads from left to right",
    )
    check_weights(
        source,
        not_finite=not_finite_names(model.state_dict()),
        expected="finite numbers",
        cure="use an earlier or another copy of the checkpoint"
        + (
            "; float16 ends at 65,504: try bfloat16"
            if str(getattr(model, "dtype", "")) == "torch.float16"
            else ""
        ),
    )


def check_numbers(numbers: Any, model: Any, *, what: str, name: str | None = None) -> None:
    """Check that what a model computes is numbers: of NaN, sampling makes text and a judge a vote.

    Args:
        numbers: A float tensor; log-probs may be -inf where the caller has made them finite.
        model: That computed them, of transformers.
        what: They are, in the plural, for the message.
        name: The model's, for the message; None for its own.

    Raises:
        ModelError: If one is NaN or an infinity.
    """
    import torch

    wrong = ~torch.isfinite(numbers)
    if bool(wrong.any()):
        config, dtype = getattr(model, "config", None), str(getattr(model, "dtype", ""))
        name = name or getattr(config, "name_or_path", None) or type(model).__name__
        raise ModelError.of(
            saw=f"{name} in {dtype.removeprefix('torch.') or 'its precision'}: {int(wrong.sum())} "
            f"of {wrong.numel()} {what} are NaN or infinite",
            expected="numbers",
            cure="try dtype bfloat16 or float32: float16 ends at 65,504"
            if dtype == "torch.float16"
            else "use an earlier or another copy of the checkpoint, or a wider dtype",
        )


def _cure_of(task: Task, unexpected: Any) -> str:
    if task is CAUSAL_LM and any(_SCORE.search(name) for name in unexpected):
        return (
            "this is a reward or value model, which serves as judge (reward:PATH): use the "
            "language model's own checkpoint"
        )
    if task is not CAUSAL_LM:
        return task.cure
    return "use the whole checkpoint, with the config.json that belongs to it"
