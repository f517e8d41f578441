"""The policy before training: loaded, with tokenizer and adapter, and its reference."""

import logging
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prefstage.core import (
    START_MARK,
    ConfigError,
    InputError,
    ModelError,
    read_json,
    reason_of,
    weights_fingerprint,
    without_alias_warning,
    write_json,
)
from prefstage.data import TokenTree, load_tokenizer
from prefstage.scoring import ReferenceCache, Scorer
from prefstage.scoring.scorer import load_model
from prefstage.training.batches import Flat, StepItems
from prefstage.training.compat import is_first_process
from prefstage.training.items import ItemSet

BASE = "base"  # folder of the merged model that a new adapter lies on
_ATTENTION_DROPOUT = ("attention_dropout", "attn_dropout", "attn_pdrop")

# Weights of a tensor that are looked at, evenly spread.
_SAMPLED_WEIGHTS = 1_000_000
_MANY = 0.5

_log = logging.getLogger(__name__)

START, ADAPTER_OFF, NONE = "start", "adapter-off", "none"


class PrecisionWarning(UserWarning):
    """Most weights cannot move by an update of the size of the learning rate."""


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
        ModelError: If the model cannot be loaded, or an adapter does not fit its model.
    """
    if isinstance(model, str | Path):
        model = load_policy(str(model))
    InputError.unless(
        isinstance(model, nn.Module),
        saw=f"model={model!r}" if model is None else f"a {type(model).__name__} as the model",
        expected="a causal language model, or its folder or Hub id",
        cure="give e.g. PreferenceTrainer('Qwen/Qwen2.5-0.5B-Instruct', ...)",
    )
    if peft_config is not None:
        if hasattr(model, "peft_config"):
            model = merge_start(model, Path(args.output_dir) / BASE)
        from peft import get_peft_model

        with (
            without_alias_warning(),
            ModelError.instead_of(
                ValueError,
                saw="an adapter that cannot be put on the policy: {error}",
                expected="an adapter on modules that the policy has",
                cure="change target_modules, e.g. to all-linear",
            ),
        ):
            model = get_peft_model(model, peft_config)
    # Set to 0 rather than left to eval(): the Trainer calls train() at every step.
    for module in model.modules() if args.disable_dropout else ():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in _ATTENTION_DROPOUT:
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
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
        mark, fingerprint = folder / START_MARK, weights_fingerprint(merged)
        if not mark.is_file():
            merged.save_pretrained(folder)
            write_json(mark, {"weights": fingerprint})  # last: a kill in between leaves no mark
        elif read_json(mark).get("weights") != fingerprint:
            raise ModelError.of(
                saw=f"{folder} holds the start of another training",
                expected="the same policy and adapter as when the run began, or a new folder",
                cure="name another output folder, or give the adapter that the run began with",
            )
    merged.config.name_or_path = merged.name_or_path = str(folder.resolve())
    merged.merged_from = f"{Path(base).name}, with its adapter merged"
    return merged


# --- The tokenizer -------------------------------------------------------------------------------


def tokenizer_for(model: Any, tokenizer: Any = None, *, source: str | None = None) -> Any:
    """The tokenizer to train with: the model's own unless there is another; checked either way.

    Where the model's own tokenizer lies by its weights, both must give the same texts the
    same ids. A token that the model has no embedding for is no fault before a text uses it.

    Args:
        model: A causal LM, bare or with PEFT adapters.
        tokenizer: A transformers tokenizer, or None.
        source: Folder or Hub id that the model came from; None takes its configuration's.

    Returns:
        The tokenizer.

    Raises:
        ModelError: If it has other ids for the same text.
    """
    if tokenizer is None:
        tokenizer = load_tokenizer(source or model.config.name_or_path)
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
    return tokenizer


# By file, as two tokenizers of one class and size may number tokens differently.
def _vocabulary_by_weights(model: Any) -> dict[str, int]:
    folder = getattr(getattr(model, "config", None), "name_or_path", "") or "none"
    try:
        # Read as JSON: making a whole tokenizer takes seconds where the vocabulary is large.
        content = read_json(Path(folder, "tokenizer.json"))
        # Unigram models list tokens with their scores; only added tokens have ids there.
        vocabulary = content["model"]["vocab"]
        added = {token["content"]: token["id"] for token in content.get("added_tokens", ())}
        return {**vocabulary, **added} if isinstance(vocabulary, dict) else added
    except (ValueError, KeyError, TypeError, OSError):
        return {}


# --- Dropout -------------------------------------------------------------------------------------


def drops(model: Any, *, attention: bool = False) -> bool:
    """Whether a module drops something in training.

    Args:
        model: The policy.
        attention: Of attention weights alone, which a shared prompt forbids.

    Returns:
        Whether any rate is above 0.
    """
    rates = [getattr(module, name, 0) for module in model.modules() for name in _ATTENTION_DROPOUT]
    if not attention:
        rates += [module for module in model.modules() if isinstance(module, nn.Dropout)]
    rates = [rate.p if isinstance(rate, nn.Dropout) else rate for rate in rates]
    return any(isinstance(rate, int | float) and rate > 0 for rate in rates)


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
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
    finally:
        for module, mode in modes:
            module.training = mode  # not train(mode): that would reach into the submodules
        random.setstate(python)
        np.random.set_state(array)
        torch.cuda.empty_cache()  # nothing where CUDA is not used


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
        part = flat[:: max(1, flat.numel() // _SAMPLED_WEIGHTS)].abs()
        share = float(((part.float() + learning_rate).to(part.dtype) == part).float().mean())
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
    weights = [
        weight
        for weight in model.parameters()
        if weight.requires_grad and weight.dtype in (torch.bfloat16, torch.float16)
    ]
    share = vanishing_share(weights, learning_rate)
    if share <= _MANY:
        return None
    return (
        f"weights in {str(weights[0].dtype).removeprefix('torch.')} without float32 master "
        "weights: an update as large as the learning "
        f"rate {learning_rate:g} does not move {share:.1%} of the trained weights (it is rounded "
        "away); set dtype: float32 and training.bf16: true, or train an adapter in float32"
    )


# --- The reference -------------------------------------------------------------------------------


class References:
    """Reference log-probs of item sets.

    Args:
        reference: As in `PreferenceArguments`.
        model: The policy.
        needed: Whether the loss compares with a reference.
        folder: Where log-probs are kept between runs.

    Raises:
        ConfigError: If the loss needs a reference and there is none, or the other way round,
            or there is no adapter that the reference could leave out.
    """

    def __init__(self, reference: str, *, model: Any, needed: bool, folder: Path) -> None:
        self.reference, self.needed, self._folder = reference, needed, folder
        self._known = dict[str, list[Flat]]()
        ConfigError.unless(
            reference != ADAPTER_OFF or hasattr(model, "disable_adapter"),
            saw="reference='adapter-off' with a policy without adapters",
            expected="a PeftModel, or a new adapter (peft_config; lora in a recipe)",
            cure="set reference='start', or give the policy an adapter",
        )
        ConfigError.unless(
            not needed or reference != NONE,
            saw="reference='none' with a loss that compares with a reference",
            expected="reference='start', 'adapter-off' or a model",
            cure="set one of them, or choose a loss without reference, such as simpo",
        )
        ConfigError.unless(
            needed or reference in (START, NONE),
            saw=f"reference={reference!r} with a loss that uses no reference",
            expected="reference='none'",
            cure="remove the setting, or choose another loss",
        )

    def compute(
        self, sets: Sequence[ItemSet], scorer: Scorer, accelerator: Any, *, adapter_is_new: bool
    ) -> None:
        """Make sure that the log-probs of item sets are known.

        Args:
            sets: The item sets.
            scorer: Of the policy as it is now.
            accelerator: accelerate's, which knows the processes.
            adapter_is_new: Whether the policy's adapter changes nothing yet; then the
                start is the model beneath, whose log-probs other runs can use too.
        """
        missing = [s for s in sets if s.fingerprint not in self._known]
        if not self.needed or not missing:
            return
        off = self.reference == ADAPTER_OFF or (self.reference == START and adapter_is_new)
        with self.scorer(scorer, accelerator.device) as chosen:
            cache = ReferenceCache(self._folder, chosen, with_adapter=not off)
            self._known |= {
                s.fingerprint: score_trees(StepItems(s.kind, s.items), cache.score, accelerator)
                for s in missing
            }
        _log.info(
            "reference log-probs (%s): %d responses from disk, %d computed",
            self.reference,
            cache.reused,
            cache.computed,
        )

    def of(self, item_set: ItemSet) -> list[Flat] | None:
        """Reference log-probs of a set.

        Args:
            item_set: The set.

        Returns:
            For each item those of its response tokens in turn; None if none are needed.

        Raises:
            ConfigError: If they were not computed before training.
        """
        ConfigError.unless(
            not self.needed or item_set.fingerprint in self._known,
            saw="a dataset that was not there when training began",
            expected="reference log-probs from before the policy changed",
            cure="pass all evaluation sets to PreferenceTrainer",
        )
        return self._known.get(item_set.fingerprint)

    @contextmanager
    def scorer(self, policy: Scorer, device: torch.device) -> Iterator[Scorer]:
        """The scorer of the reference, on the process's device while it is used.

        Args:
            policy: Of the policy.
            device: Of the process.

        Yields:
            The policy's, or that of another model, which is freed afterwards.
        """
        if self.reference not in (START, ADAPTER_OFF):
            yield Scorer.load(self.reference, device_map=str(device))
            torch.cuda.empty_cache()  # nothing where CUDA is not used
            return
        before = next(policy.model.parameters()).device
        if before == device:
            yield policy
            return
        # Under FSDP and DeepSpeed the model waits on the CPU until training shards it.
        policy.model.to(device)
        try:
            yield Scorer(policy.model)
        finally:
            policy.model.to(before)


def score_trees(
    whole: StepItems, score: Callable[[list[TokenTree]], Iterable[Any]], accelerator: Any
) -> list[Flat]:
    """Log-probs of items, each process scoring a part of them.

    Args:
        whole: The items.
        score: Scores trees; results have `per_token`.
        accelerator: accelerate's, which knows the processes.

    Returns:
        For each item those of its response tokens in turn, on every process. nats.
    """
    share = _share(whole.trees, accelerator.num_processes, accelerator.process_index)
    flat = torch.zeros(whole.tokens)
    for tree, result in zip(share, score([whole.trees[tree] for tree in share]), strict=True):
        for span, tokens in zip(whole.tree_spans[tree], result.per_token, strict=True):
            flat[span] = tokens
    # A sum gathers: every token stands at zero on all processes but one.
    together = accelerator.reduce(flat.to(accelerator.device), "sum").cpu()
    return [together[whole.span_of(position)] for position in range(len(whole.items))]


# About equal tokens a process, not equal numbers of trees: all wait for the slowest.
def _share(trees: Sequence[TokenTree], processes: int, index: int) -> list[int]:
    # Runs, not every n-th tree: equal prompts stay together, and are computed once.
    order = sorted(range(len(trees)), key=lambda tree: trees[tree].prompt_ids)
    sizes = [len(trees[t].prompt_ids) + sum(map(len, trees[t].response_ids)) for t in order]
    # By where the middle of each tree lies among all tokens.
    owners = (np.cumsum(sizes) - np.divide(sizes, 2)) * processes // sum(sizes)
    return [tree for tree, owner in zip(order, owners, strict=True) if owner == index]
