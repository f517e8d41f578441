"""The policy before training: loaded, with adapter, without dropout."""

import json
import logging
import os
from pathlib import Path
from typing import Any

from torch import nn

from prefstage.core.adapters import START_MARK, without_alias_warning
from prefstage.core.errors import ConfigError, MissingDependencyError, ModelError
from prefstage.core.files import write_json
from prefstage.core.weights import reason_of, weights_fingerprint
from prefstage.scoring.loading import load_model

_log = logging.getLogger(__name__)

BASE = "base"  # folder of the merged model that a new adapter lies on
_ATTENTION_DROPOUT = ("attention_dropout", "attn_dropout", "attn_pdrop")


def source_of(model: Any) -> str | None:
    """The folder or Hub id that a policy came from: its name, or what its configuration says."""
    if isinstance(model, str):
        return model
    return getattr(getattr(model, "config", None), "_name_or_path", None)


def prepare_policy(model: Any, peft_config: Any, args: Any) -> Any:
    """Load a policy if it is a name, put an adapter on it, switch dropout off.

    Args:
        model: A causal LM, or its folder or Hub id (loaded in float32, on the CPU).
        peft_config: Of a new adapter; None for none. One that is there is merged first.
        args: Training arguments: whether no module shall drop anything, adapters included
            (`disable_dropout`), and where a merged model goes (`output_dir`).

    Returns:
        The policy.

    Raises:
        MissingDependencyError: If an adapter is wanted and peft is not installed.
        ModelError: If the model cannot be loaded, or an adapter does not fit its model.
    """
    if isinstance(model, str):
        model = load_policy(model)
    if peft_config is not None:
        if hasattr(model, "peft_config"):
            model = merge_start(model, Path(args.output_dir) / BASE)
        try:
            from peft import get_peft_model
        except ImportError as error:
            raise MissingDependencyError.of(
                saw="peft_config, and no package peft",
                expected="peft, which makes adapters",
                cure="pip install 'prefstage[train]'",
            ) from error
        try:
            with without_alias_warning():
                model = get_peft_model(model, peft_config)
        except ValueError as error:
            raise ModelError.of(
                saw=f"an adapter that cannot be put on the policy: {' '.join(str(error).split())}",
                expected="an adapter on modules that the policy has",
                cure="change target_modules, e.g. to all-linear",
            ) from error
    if args.disable_dropout:
        _switch_off_dropout(model)
    return model


def check_adapter_off(model: Any, reference: str) -> None:
    """Check that an adapter which the reference shall leave out is there.

    Args:
        model: The policy.
        reference: As in `PreferenceArguments`.

    Raises:
        ConfigError: If there is none.
    """
    if reference == "adapter-off" and not hasattr(model, "disable_adapter"):
        raise ConfigError.of(
            saw="reference='adapter-off' with a policy without adapters",
            expected="a PeftModel, or a new adapter (peft_config; lora in a recipe)",
            cure="set reference='start', or give the policy an adapter",
        )


def one_device(args: Any) -> None:
    """Use one GPU a process: a step is divided over processes, not inside the model.

    Args:
        args: Training arguments.
    """
    if args.n_gpu > 1:
        _log.warning(
            "%d GPUs and one process: one GPU is used; start with `accelerate launch` for all",
            args.n_gpu,
        )
        args._n_gpu = 1


def load_policy(name: str, *, dtype: str = "float32") -> Any:
    """Load a model, or an adapter on the model that it was made for, to be trained on.

    Args:
        name: Folder or Hub id.
        dtype: Of the weights.

    Returns:
        The policy, on the CPU.

    Raises:
        ModelError: If it cannot be loaded, or an adapter does not name its model.
    """
    model = load_model(name, dtype=dtype, device_map="cpu")
    if hasattr(model, "peft_config"):
        model.set_adapter(model.active_adapter, inference_mode=False)
    return model


def merge_start(model: Any, folder: Path) -> Any:
    """Merge a policy's adapter, so that a new one begins from it, and keep the merged model.

    The new adapter counts from the merged weights, which lie nowhere else: its configuration
    names the folder as its base model.

    Args:
        model: A PeftModel.
        folder: Gets the merged model, from the first process; one that holds it already stays.

    Returns:
        The merged model.

    Raises:
        ModelError: If the folder holds other weights, or the adapter cannot be merged.
    """
    base = model.get_base_model().config._name_or_path
    try:
        merged = model.merge_and_unload()
    except Exception as error:  # by its kind: virtual tokens have no merging
        raise ModelError.of(
            saw=f"an adapter that cannot be merged: {reason_of(error)}",
            expected="an adapter inside the layers, such as LoRA",
            cure="train that adapter on, without a new one",
        ) from error
    if int(os.environ.get("RANK", "0")) == 0:
        _keep_start(merged, folder)
    merged.config._name_or_path = merged.name_or_path = str(folder.resolve())
    merged.merged_from = f"{Path(base).name}, with its adapter merged"
    return merged


def _keep_start(merged: Any, folder: Path) -> None:
    mark, fingerprint = folder / START_MARK, weights_fingerprint(merged)
    if mark.is_file():
        if json.loads(mark.read_text(encoding="utf-8")).get("weights") == fingerprint:
            return
        raise ModelError.of(
            saw=f"{folder} holds the start of another training",
            expected="the same policy and adapter as when the run began, or a new folder",
            cure="name another output folder, or give the adapter that the run began with",
        )
    merged.save_pretrained(folder)
    write_json(mark, {"weights": fingerprint})


def adapter_is_identity(peft_config: Any) -> bool:
    """Whether a new adapter of this kind changes nothing before it is trained."""
    return getattr(peft_config, "init_lora_weights", None) is True


def drops_attention(model: Any) -> bool:
    """Whether a layer drops attention weights in training, which a shared prompt forbids."""
    return any(_attention_rate(module) > 0 for module in model.modules())


def layout_for(model: Any, asked: str) -> str:
    """The layout to try: flat where attention drops weights, which a shared prompt forbids.

    Args:
        model: The policy.
        asked: "auto", "tree" or "flat".

    Returns:
        "auto", "tree" or "flat".
    """
    if asked == "auto" and drops_attention(model):
        _log.warning("attention dropout is on: every sequence is computed whole (flat layout)")
        return "flat"
    return asked


def drops(model: Any) -> bool:
    """Whether any module drops something in training."""
    return drops_attention(model) or any(
        isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules()
    )


def _switch_off_dropout(model: Any) -> None:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in _ATTENTION_DROPOUT:
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


def _attention_rate(module: Any) -> float:
    found = [getattr(module, name, None) for name in _ATTENTION_DROPOUT]
    rates = [each.p if isinstance(each, nn.Dropout) else each for each in found]
    return max((rate for rate in rates if isinstance(rate, float)), default=0.0)
