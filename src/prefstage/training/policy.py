"""The policy before training: loaded, with tokenizer and adapter, without dropout."""

import json
import logging
import os
import random
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prefstage.core.adapters import START_MARK, without_alias_warning
from prefstage.core.errors import (
    ConfigError,
    InputError,
    MissingDependencyError,
    ModelError,
)
from prefstage.core.files import write_json
from prefstage.core.weights import reason_of, weights_fingerprint
from prefstage.data import load_tokenizer
from prefstage.scoring.model import load_model

_log = logging.getLogger(__name__)

BASE = "base"  # folder of the merged model that a new adapter lies on
_ATTENTION_DROPOUT = ("attention_dropout", "attn_dropout", "attn_pdrop")

_HALF = (torch.bfloat16, torch.float16)
_SAMPLED_WEIGHTS = 1_000_000
"""Weights of a tensor that are looked at, evenly spread."""
_MANY = 0.5


class PrecisionWarning(UserWarning):
    """Most weights cannot move by an update of the size of the learning rate."""


def is_first_process() -> bool:
    """Whether this process is the one that writes and speaks (`accelerate launch` sets RANK)."""
    return int(os.environ.get("RANK", "0")) == 0


# --- The model ---------------------------------------------------------------------------------


def prepare_policy(model: Any, peft_config: Any, args: Any) -> Any:
    """Load a policy if it is a name, put an adapter on it, switch dropout off.

    Args:
        model: A causal LM, or its folder or Hub id (loaded in float32, on the CPU).
        peft_config: Of a new adapter; None for none. An adapter that is there is merged first.
        args: Training arguments: whether no module shall drop anything, adapters included
            (`disable_dropout`), and where a merged model goes (`output_dir`).

    Returns:
        The policy.

    Raises:
        InputError: If it is neither a model nor the name of one.
        MissingDependencyError: If an adapter is wanted and peft is not installed.
        ModelError: If the model cannot be loaded, or an adapter does not fit its model.
    """
    if isinstance(model, str | Path):
        model = load_policy(str(model))
    elif not isinstance(model, nn.Module):
        raise InputError.of(
            saw=f"model={model!r}" if model is None else f"a {type(model).__name__} as the model",
            expected="a causal language model, or its folder or Hub id",
            cure="give e.g. PreferenceTrainer('Qwen/Qwen2.5-0.5B-Instruct', ...)",
        )
    if peft_config is not None:
        if hasattr(model, "peft_config"):
            model = merge_start(model, Path(args.output_dir) / BASE)
        model = _with_adapter(model, peft_config)
    if args.disable_dropout:
        _switch_off_dropout(model)
    return model


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
        # A loaded adapter is for inference: without this its weights would take no gradient.
        model.set_adapter(model.active_adapter, inference_mode=False)
    return model


def merge_start(model: Any, folder: Path) -> Any:
    """Merge a policy's adapter, so that a new one begins from it, and keep the merged model.

    The new adapter counts from the merged weights, which lie nowhere else: its configuration
    names the folder as its base model.

    Args:
        model: A PeftModel.
        folder: Gets the merged model, from the first process; if it holds it already, it stays.

    Returns:
        The merged model.

    Raises:
        ModelError: If the folder holds other weights, or the adapter cannot be merged.
    """
    base = model.get_base_model().config.name_or_path
    try:
        merged = model.merge_and_unload()
    except Exception as error:  # by its kind: virtual tokens have no merging
        raise ModelError.of(
            saw=f"an adapter that cannot be merged: {reason_of(error)}",
            expected="an adapter inside the layers, such as LoRA",
            cure="train that adapter on, without a new one",
        ) from error
    if is_first_process():
        _keep_start(merged, folder)
    merged.config.name_or_path = merged.name_or_path = str(folder.resolve())
    merged.merged_from = f"{Path(base).name}, with its adapter merged"
    return merged


def _keep_start(merged: Any, folder: Path) -> None:
    mark, fingerprint = folder / START_MARK, weights_fingerprint(merged)
    if not mark.is_file():
        merged.save_pretrained(folder)
        write_json(mark, {"weights": fingerprint})  # last: a kill in between leaves no mark
    elif json.loads(mark.read_text(encoding="utf-8")).get("weights") != fingerprint:
        raise ModelError.of(
            saw=f"{folder} holds the start of another training",
            expected="the same policy and adapter as when the run began, or a new folder",
            cure="name another output folder, or give the adapter that the run began with",
        )


def _with_adapter(model: Any, peft_config: Any) -> Any:
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
            return get_peft_model(model, peft_config)
    except ValueError as error:
        raise ModelError.of(
            saw=f"an adapter that cannot be put on the policy: {' '.join(str(error).split())}",
            expected="an adapter on modules that the policy has",
            cure="change target_modules, e.g. to all-linear",
        ) from error


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


def adapter_is_identity(peft_config: Any) -> bool:
    """Whether a new adapter of this kind changes nothing before it is trained."""
    return getattr(peft_config, "init_lora_weights", None) is True


# --- The tokenizer -------------------------------------------------------------------------------


def tokenizer_for(model: Any, tokenizer: Any = None, *, source: str | None = None) -> Any:
    """The tokenizer to train with: the model's own unless there is another; checked either way.

    Args:
        model: A causal LM, bare or with PEFT adapters.
        tokenizer: A transformers tokenizer, or None.
        source: Folder or Hub id that the model came from; None takes its configuration's.

    Returns:
        The tokenizer.

    Raises:
        ModelError: As `check_tokenizer`.
    """
    if tokenizer is None:
        tokenizer = load_tokenizer(source or model.config.name_or_path)
    check_tokenizer(tokenizer, model)
    return tokenizer


def check_tokenizer(tokenizer: Any, model: Any) -> None:
    """Check that a tokenizer belongs to a model.

    Where the model's own tokenizer lies by its weights, both must give the same texts the
    same ids. A token that the model has no embedding for is no fault before a text uses it.

    Args:
        tokenizer: A transformers tokenizer.
        model: A causal LM, bare or with PEFT adapters.

    Raises:
        ModelError: If it has other ids for the same text.
    """
    expected, actual = _vocabulary_by_weights(model), tokenizer.get_vocab()
    other = [text for text, index in expected.items() if actual.get(text, index) != index]
    if other:
        text = min(other, key=lambda text: (expected[text], text))
        raise ModelError.of(
            saw=f"{len(other):,} tokens have other ids than in the tokenizer beside the model "
            f"({text!r}: {actual[text]} instead of {expected[text]})",
            expected="the tokenizer that the model was trained with",
            cure="give the model's own tokenizer as processing_class",
        )


# Ids of the tokenizer in the folder of the weights; empty if there is none.
def _vocabulary_by_weights(model: Any) -> dict[str, int]:
    folder = Path(getattr(getattr(model, "config", None), "name_or_path", "") or "none")
    try:
        # Read as JSON: making a whole tokenizer takes seconds where the vocabulary is large.
        content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        vocabulary = content["model"]["vocab"]
        added = {token["content"]: token["id"] for token in content.get("added_tokens", ())}
    except (ValueError, KeyError, TypeError, OSError):
        return {}
    return {**vocabulary, **added} if isinstance(vocabulary, dict) else added


# --- Dropout -------------------------------------------------------------------------------------


def drops_attention(model: Any) -> bool:
    """Whether a layer drops attention weights in training, which a shared prompt forbids."""
    rates = (
        rate.p if isinstance(rate, nn.Dropout) else rate
        for module in model.modules()
        for rate in (getattr(module, name, None) for name in _ATTENTION_DROPOUT)
    )
    return any(isinstance(rate, float) and rate > 0 for rate in rates)


def layout_for(model: Any, layout: str) -> str:
    """The layout to try: flat where attention drops weights, which a shared prompt forbids.

    Args:
        model: The policy.
        layout: "auto", "tree" or "flat".

    Returns:
        "auto", "tree" or "flat".
    """
    if layout == "auto" and drops_attention(model):
        _log.warning("attention dropout is on: every sequence is computed whole (flat layout)")
        return "flat"
    return layout


def drops(model: Any) -> bool:
    """Whether any module drops something in training."""
    return drops_attention(model) or any(
        isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules()
    )


def _switch_off_dropout(model: Any) -> None:
    # Set to 0 rather than left to eval(): the Trainer calls train() at every step.
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in _ATTENTION_DROPOUT:
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


@contextmanager
def undisturbed(model: Any) -> Iterator[None]:
    """Restore modes and random states after the block, so that training goes on as if not.

    Restored: every module's train or eval flag, and the generators of torch (CPU and CUDA),
    numpy and Python. What the block allocated on a GPU is given back.

    Args:
        model: The model in training.

    Yields:
        Nothing.
    """
    modes = [(module, module.training) for module in model.modules()]
    python, array = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        for module, mode in modes:
            module.training = mode  # not train(mode): that would reach into the submodules
        random.setstate(python)
        np.random.set_state(array)
        if devices:
            torch.cuda.empty_cache()


# --- Precision -----------------------------------------------------------------------------------


def vanishing_share(weights: Sequence[Tensor], learning_rate: float) -> float:
    """The share of weights that an update of the size of the learning rate does not move.

    Adding u to w in a format with unit roundoff ε (2⁻⁸ in bfloat16, 2⁻¹¹ in float16) gives w
    back if |u| is less than half the spacing of numbers there, ``ε · 2^⌊log₂|w|⌋``. Adam's
    updates are about as large as the learning rate.

    Args:
        weights: In half precision.
        learning_rate: > 0.

    Returns:
        In [0, 1]; 0 without weights.
    """
    stuck, total = 0.0, 0
    for weight in weights:
        flat = weight.detach().reshape(-1)
        part = flat[:: max(1, flat.numel() // _SAMPLED_WEIGHTS)].float().abs()
        half_spacing = torch.exp2(torch.floor(torch.log2(part))) * torch.finfo(weight.dtype).eps / 2
        share = float((half_spacing > learning_rate).float().mean())
        stuck, total = stuck + share * flat.numel(), total + flat.numel()
    return stuck / total if total else 0.0


def precision_note(model: Any, learning_rate: float) -> str | None:
    """Say that updates vanish, where most trained weights are too coarse for the learning rate.

    Args:
        model: The policy, as its optimiser will update it.
        learning_rate: The highest.

    Returns:
        A sentence with the remedy; None where most weights can move.
    """
    weights = [w for w in model.parameters() if w.requires_grad and w.dtype in _HALF]
    share = vanishing_share(weights, learning_rate)
    if share <= _MANY:
        return None
    dtype = str(weights[0].dtype).removeprefix("torch.")
    return (
        f"weights in {dtype} without float32 master weights: an update as large as the learning "
        f"rate {learning_rate:g} does not move {share:.1%} of the trained weights (it is rounded "
        "away); set dtype: float32 and training.bf16: true, or train an adapter in float32"
    )


def warn_of_precision(trainer: Any) -> None:
    """Warn, and note for the model card, where updates of a training would vanish.

    Args:
        trainer: The `PreferenceTrainer`, before it trains.
    """
    if trainer.is_deepspeed_enabled:  # it keeps weights in float32 besides
        return
    note = precision_note(trainer.model, float(trainer.args.learning_rate))
    if note is not None and note not in trainer.notes:
        trainer.notes.append(note)
        warnings.warn(note, PrecisionWarning, stacklevel=3)
