"""How many tokens a forward and backward pass may hold."""

import logging
from typing import Any

from prefstage.scoring.budget import GPU_TOKENS, MIN_TOKENS, free_memory_bytes
from prefstage.scoring.model_parts import ModelParts

_log = logging.getLogger(__name__)

TRAINING_CPU_TOKENS = 896
"""Tokens of a micro-batch on a CPU at most: larger ones keep more for the backward pass."""

SHARE_OF_FREE_MEMORY = 0.6
STATES_A_PARAMETER = 2
"""Values that an optimiser keeps a parameter, in float32 (Adam's two moments)."""


def token_budget_of(args: Any, model: Any) -> int:
    """The token budget that the arguments ask for.

    Args:
        args: `PreferenceArguments`.
        model: The policy.

    Returns:
        Tokens a micro-batch.
    """
    if args.token_budget != "auto":
        return int(args.token_budget)
    # The argument's name up to transformers 5.22, and the one since.
    names = ("gradient_checkpointing", "activation_checkpointing")
    checkpointing = any(getattr(args, name, None) for name in names)
    budget = training_budget(model, checkpointing=checkpointing)
    _log.info("token budget: %d tokens a micro-batch, from the free memory", budget)
    return budget


def training_budget(model: Any, *, checkpointing: bool) -> int:
    """Choose the tokens of a micro-batch from the free memory.

    Args:
        model: The policy, bare or with adapters; its gradients and the optimiser's state
            are not there yet, and are left room for.
        checkpointing: Whether layers are computed again in the backward pass.

    Returns:
        Tokens, in [128, 896] on a CPU, up to 16,384 elsewhere.
    """
    parts = ModelParts.of(model)
    trained = [each for each in model.parameters() if each.requires_grad]
    reserved = sum(
        each.numel() * (each.element_size() + 4 * STATES_A_PARAMETER) for each in trained
    )
    return tokens_that_fit(
        free_memory_bytes(parts.device) - reserved,
        training_bytes_per_token(parts, checkpointing),
        on_cpu=parts.device.type == "cpu",
    )


def tokens_that_fit(free_bytes: int, token_bytes: int, *, on_cpu: bool) -> int:
    """Tokens of a micro-batch in memory that nothing else needs.

    Args:
        free_bytes: The memory.
        token_bytes: What a token takes, by `training_bytes_per_token`.
        on_cpu: Whether it is a CPU's.

    Returns:
        Tokens, in [128, 896] on a CPU, up to 16,384 elsewhere.
    """
    most = TRAINING_CPU_TOKENS if on_cpu else GPU_TOKENS
    return int(max(MIN_TOKENS, min(SHARE_OF_FREE_MEMORY * free_bytes / token_bytes, most)))


def training_bytes_per_token(parts: ModelParts, checkpointing: bool) -> int:
    """Upper estimate of what a token's activations take until the backward pass.

    A layer keeps about 12 widths (residuals, normalised inputs, queries, keys, values,
    attention's output) and 5 inner widths of the gated MLP; checkpointing keeps one width
    a layer and one layer in full. A response token adds two float32 copies of its state.

    Args:
        parts: The model.
        checkpointing: As for `training_budget`.

    Returns:
        Bytes.
    """
    config: Any = parts.body.config
    hidden, layers = int(config.hidden_size), int(config.num_hidden_layers)
    inner = getattr(config, "intermediate_size", None) or 4 * hidden
    widest = max(inner) if isinstance(inner, list | tuple) else int(inner)
    size = int(parts.projection.weight.element_size())
    layer = (12 * hidden + 5 * widest) * size
    kept = layer + layers * hidden * size if checkpointing else layers * layer
    return kept + 2 * 4 * hidden
