"""Tiny random models of every verified architecture, and trees shaped like real ones."""

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    MixtralConfig,
    Phi3Config,
    PretrainedConfig,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3Config,
)

from prefstage.data.tokenising import TokenTree

VOCABULARY = 97
WINDOW = 7
"""Sliding window of the tiny models that have one: far shorter than the texts."""

_SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    **_SPECIAL,
}
_GEMMA = {**_SHAPE, "head_dim": 8, "sliding_window": WINDOW, "query_pre_attn_scalar": 8}

CONFIGS: dict[str, tuple[type[PretrainedConfig], dict[str, Any]]] = {
    "llama": (LlamaConfig, _SHAPE),
    "qwen2": (Qwen2Config, _SHAPE),
    "qwen2-window": (
        Qwen2Config,
        {**_SHAPE, "use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    ),
    "qwen3": (Qwen3Config, {**_SHAPE, "head_dim": 16}),
    "mistral": (MistralConfig, {**_SHAPE, "sliding_window": WINDOW}),
    "gemma2": (
        Gemma2Config,
        {**_GEMMA, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    ),
    "gemma3": (Gemma3TextConfig, _GEMMA),
    "phi3": (Phi3Config, {**_SHAPE, "sliding_window": WINDOW}),
    "gpt2": (
        GPT2Config,
        {
            "vocab_size": VOCABULARY,
            "n_embd": 32,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": 2048,
            **_SPECIAL,
        },
    ),
    "gpt-neox": (
        GPTNeoXConfig,
        {k: v for k, v in _SHAPE.items() if k != "num_key_value_heads"},
    ),
    "mixtral": (MixtralConfig, {**_SHAPE, "num_local_experts": 4}),
    "qwen2-moe": (
        Qwen2MoeConfig,
        {
            **_SHAPE,
            "num_experts": 4,
            "moe_intermediate_size": 16,
            "shared_expert_intermediate_size": 16,
        },
    ),
    "cohere": (CohereConfig, {**_SHAPE, "logit_scale": 0.25}),
    "granite": (GraniteConfig, {**_SHAPE, "logits_scaling": 3.0}),
    "mamba": (
        MambaConfig,
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "state_size": 4,
            **_SPECIAL,
        },
    ),
}
TREE_ARCHITECTURES = [name for name in CONFIGS if name != "mamba"]


def tiny_model(name: str, *, attention: str = "eager", seed: int = 0, **changes: Any) -> Any:
    """A random model whose log-probs differ much from token to token."""
    kind, settings = CONFIGS[name]
    torch.manual_seed(seed)
    options = {} if name == "mamba" else {"attn_implementation": attention}
    model = AutoModelForCausalLM.from_config(kind(**{**settings, **changes}), **options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(5)
    return model


def tree_of(prompt: Sequence[int], responses: Sequence[Sequence[int]]) -> TokenTree:
    """A prompt with its responses."""
    return TokenTree("", tuple(prompt), tuple(map(tuple, responses)))


def random_ids(rng: random.Random, count: int) -> tuple[int, ...]:
    return tuple(rng.randrange(3, VOCABULARY) for _ in range(count))


def realistic_trees(seed: int = 0) -> list[TokenTree]:
    """Multi-turn prompts that begin alike, 1 to 8 responses, lengths 1 to 500."""
    rng = random.Random(seed)
    system = random_ids(rng, 12)
    first_turn = system + random_ids(rng, 23)
    second_turn = first_turn + random_ids(rng, 40)
    opening = random_ids(rng, 5)
    return [
        TokenTree("second", second_turn, tuple(random_ids(rng, n) for n in (31, 1, 77))),
        TokenTree("first", first_turn, (random_ids(rng, 500),)),
        TokenTree(
            "alike",
            system + random_ids(rng, 3),
            (opening, (*opening, 5), (*opening, 6, 7), opening),
        ),
        TokenTree(
            "alone", random_ids(rng, 150), tuple(random_ids(rng, 3 + 9 * n) for n in range(8))
        ),
        TokenTree("shortest", random_ids(rng, 1), (random_ids(rng, 2), random_ids(rng, 66))),
    ]


def plain_log_probs(model: Any, trees: Sequence[TokenTree]) -> list[list[Tensor]]:
    """Per-token log-probs of each response by the model's own forward pass, one at a time."""
    results = []
    for tree in trees:
        found = []
        for response in tree.response_ids:
            ids = torch.tensor([tree.prompt_ids + response])
            logits = model(input_ids=ids, use_cache=False).logits[0, len(tree.prompt_ids) - 1 : -1]
            targets = torch.tensor(response)[:, None]
            found.append(logits.float().log_softmax(-1).gather(-1, targets)[:, 0])
        results.append(found)
    return results


def largest_difference(
    left: Sequence[Sequence[Tensor]], right: Sequence[Sequence[Tensor]]
) -> float:
    """Largest difference between two sets of per-token log-probs of the same shape."""
    return max(
        (a - b).abs().max().item()
        for one, other in zip(left, right, strict=True)
        for a, b in zip(one, other, strict=True)
    )


def weighted_sum(per_token: Sequence[Sequence[Tensor]]) -> Tensor:
    """A loss in which every token has its own weight, so that no gradient can hide."""
    total = torch.zeros(())
    for tokens in (tokens for tree in per_token for tokens in tree):
        total = total + (tokens * torch.linspace(-1, 2, len(tokens) + 1)[1:]).sum()
    return total
