"""Which layout a model can take: tried on one small batch before it is trusted."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from prefstage.core.errors import ModelError
from prefstage.data.tokenising import TokenTree
from prefstage.scoring.attention import Backend, RowAttention, choose_backend, tree_attention
from prefstage.scoring.engine import Layout, TreeLogProbs, response_log_probs, run_row
from prefstage.scoring.fused_layers import find_fused_layers
from prefstage.scoring.model_parts import ModelParts
from prefstage.scoring.rows import build_row, leaves_of

SHARED_TOKENS, PROMPT_TOKENS, RESPONSE_TOKENS = 5, 4, (4, 1, 6)
LayoutSetting = Literal["auto", "tree", "flat"]
_TREE_LAYERS = {"full_attention", "sliding_attention"}


@dataclass(frozen=True)
class LayoutChoice:
    """Which layout a model takes, and why.

    Attributes:
        layout: "tree" or "flat".
        reason: In words.
        difference_nats: Largest difference of a token's log-prob from the model's own
            forward pass on the trial batch; NaN if the tree could not be tried.
        expected: False if a model that should take the tree failed the trial.
    """

    layout: Layout
    reason: str
    difference_nats: float
    expected: bool = True


def choose_layout(
    model: Any,
    *,
    layout: LayoutSetting = "auto",
    backend: Backend | None = None,
) -> LayoutChoice:
    """Try a model's layout and its fused layers against its own forward pass on one small batch.

    Args:
        model: A transformers causal LM in evaluation mode, bare or with PEFT adapters.
        layout: "auto" takes the tree where it is exact; the others are tried as asked.
        backend: Implementation of tree attention; None chooses by device.

    Returns:
        The layout to use.

    Raises:
        ModelError: If the layout asked for is not exact, or if not even the flat one is.
    """
    parts = ModelParts.of(model)
    find_fused_layers(parts.body)
    trees, allowed = _trial_trees(parts), _tolerance(parts)
    with torch.no_grad():
        expected = _plain_log_probs(parts, trees)
        choice = LayoutChoice("flat", "asked for", float("nan"))
        if layout != "flat":
            choice = _try_tree(model, parts, trees, expected, backend)
            if choice.layout == "tree":
                return choice
            if layout == "tree":
                raise ModelError.of(
                    saw=f"layout='tree' for {type(parts.model).__name__}: {choice.reason}",
                    expected="a model whose layers mix tokens by attention alone",
                    cure="use layout='auto' or layout='flat'",
                )
        found = response_log_probs(model, trees, layout="flat")
    difference = _difference(found, expected)
    if difference > allowed:
        raise ModelError.of(
            saw=f"{type(parts.model).__name__}: log-probs differ by up to {difference:.2g} nats "
            "from those of its own forward pass",
            expected=f"at most {allowed:g}",
            cure="report the architecture; its head does more than a linear map, a scale and a cap",
        )
    return choice


def _try_tree(
    model: Any,
    parts: ModelParts,
    trees: Sequence[TokenTree],
    expected: list[Tensor],
    backend: Backend | None,
) -> LayoutChoice:
    kinds = set(getattr(parts.body.config, "layer_types", None) or ()) - _TREE_LAYERS
    if kinds:
        return _flat(f"it has layers of type {', '.join(sorted(kinds))}")
    try:
        reason = _unlike_config(parts, trees, backend)
        if reason is not None:
            return _flat(reason)
        found = response_log_probs(model, trees, backend=backend)
    except ModelError as error:
        return _flat(str(error))
    except TypeError as error:  # a model of its own code that takes no further arguments
        return _flat(f"its layers do not pass on what tree attention needs ({error})")
    difference, allowed = _difference(found, expected), _tolerance(parts)
    if difference > allowed:
        reason = f"a token's log-prob differs by {difference:.2g} nats (allowed: {allowed:g})"
        return LayoutChoice("flat", reason, difference, expected=False)
    return LayoutChoice(
        "tree", f"equal to its own forward pass within {difference:.1g} nats", difference
    )


def _flat(reason: str) -> LayoutChoice:
    return LayoutChoice("flat", reason, float("nan"))


def _unlike_config(
    parts: ModelParts, trees: Sequence[TokenTree], backend: Backend | None
) -> str | None:
    """What the layers did otherwise than the configuration says; a long window needs this.

    The trial texts are shorter than real windows, so a layer that did not pass its window
    on would look right.
    """
    config = parts.body.config
    row = build_row(leaves_of(trees))
    attention = RowAttention(row, backend or choose_backend(parts.device)[0])
    with tree_attention(parts.body):
        run_row(parts, row, attention)
    if len(attention.windows) != config.num_hidden_layers:
        return f"only {len(attention.windows)} of {config.num_hidden_layers} layers use attention"
    types = getattr(config, "layer_types", None)
    window = getattr(config, "sliding_window", None)
    for layer, seen in attention.windows.items():
        slides = not types or types[layer] == "sliding_attention"
        if seen != (window if slides else None):
            return f"layer {layer} asks for a window of {seen}, its configuration for {window}"
    return None


def _trial_trees(parts: ModelParts) -> list[TokenTree]:
    vocabulary = parts.projection.weight.shape[0]
    rng = random.Random(0)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(rng.randrange(vocabulary) for _ in range(count))

    shared = ids(SHARED_TOKENS)
    return [
        TokenTree(str(index), shared + ids(PROMPT_TOKENS), tuple(ids(n) for n in RESPONSE_TOKENS))
        for index in range(2)
    ]


def _plain_log_probs(parts: ModelParts, trees: Sequence[TokenTree]) -> list[Tensor]:
    """By the whole model's own forward pass, one sequence at a time."""
    found = []
    for leaf in leaves_of(trees):
        ids = torch.tensor([leaf.prompt_ids + leaf.response_ids], device=parts.device)
        logits = parts.model(input_ids=ids, use_cache=False).logits[0, len(leaf.prompt_ids) - 1 :]
        log_probs = logits[:-1].float().log_softmax(-1)
        targets = torch.tensor(leaf.response_ids, device=logits.device)
        found.append(log_probs.gather(-1, targets[:, None])[:, 0])
    return found


def _difference(found: Sequence[TreeLogProbs], expected: Sequence[Tensor]) -> float:
    ours = [tokens for tree in found for tokens in tree.per_token]
    return max(
        float((a.to(b.device) - b).abs().nan_to_num(torch.inf).max())
        for a, b in zip(ours, expected, strict=True)
    )


def _tolerance(parts: ModelParts) -> float:
    """Nats. Half precision rounds logits themselves to a tenth of a nat or so."""
    if parts.projection.weight.dtype in (torch.float16, torch.bfloat16):
        return 0.5
    return 1e-4 if parts.device.type == "cpu" else 1e-2
