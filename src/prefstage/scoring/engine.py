"""From a model and token trees to the log-prob of every response token, and whether it is exact."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from prefstage.core.errors import InputError, ModelError
from prefstage.data.tokenising import TokenTree
from prefstage.scoring.attention import Backend, RowAttention, choose_backend, patched
from prefstage.scoring.cpu.fused import find_fused_layers
from prefstage.scoring.layout import (
    Batch,
    Layout,
    Leaf,
    Row,
    Slot,
    build_row,
    check_trees,
    leaves_of,
    plan_passes,
)
from prefstage.scoring.linear import STATISTICS, TokenLogProbs, linear_log_probs
from prefstage.scoring.model import ModelParts

LayoutSetting = Literal["auto", "tree", "flat"]

SHARED_TOKENS, PROMPT_TOKENS, RESPONSE_TOKENS = 5, 4, (4, 1, 6)
"""Of the self-check's batch: shared by its prompts, a prompt's rest, and its responses."""

_TREE_LAYERS = {"full_attention", "sliding_attention"}


@dataclass(frozen=True)
class TreeLogProbs:
    """Log-probs of one tree's responses, in nats.

    Attributes:
        per_token: For each response, log π(y_t | x, y_<t) of each token. [tokens], float32.
        sums: Σ_t of each response. [responses].
        entropy: For each response, the entropy of π(· | x, y_<t). [tokens]; empty unless
            requested.
        log_sum_squares: For each response, log Σ_v π(v | x, y_<t)². Likewise.
    """

    per_token: tuple[Float[Tensor, " _"], ...]
    sums: Float[Tensor, " responses"]
    entropy: tuple[Float[Tensor, " _"], ...] = ()
    log_sum_squares: tuple[Float[Tensor, " _"], ...] = ()


def response_log_probs(
    model: Any,
    trees: Sequence[TokenTree],
    *,
    token_budget: int | None = None,
    layout: Layout = "tree",
    backend: Backend | None = None,
    statistics: Sequence[str] = (),
) -> list[TreeLogProbs]:
    """Log-probs of responses, differentiable with respect to the model's parameters.

    A prompt and its responses are computed as one tree: the prompt once. Gradients flow
    from every response into the shared prompt, so they equal those of separate sequences.

    Args:
        model: A transformers causal LM, bare or with PEFT adapters.
        trees: Prompts with their responses, as tokens.
        token_budget: Tokens a forward pass; None for one pass.
        layout: "tree", or "flat" for models whose layers mix tokens in their own way.
        backend: Implementation of tree attention; None chooses by device.
        statistics: Of "entropy" and "log_sum_squares", those wanted (no gradient).

    Returns:
        One result a tree, in the order of the trees.

    Raises:
        InputError: If a prompt or response is empty, or a statistic is unknown.
        ModelError: If the model cannot take tree attention, or drops attention weights.
    """
    parts = ModelParts.of(model)
    check_trees(trees)
    gathered = Gathered(trees, check_statistics(statistics))
    config, leaves = parts.body.config, leaves_of(trees)
    for planned in plan_passes(config, leaves, layout=layout, token_budget=token_budget):
        scored = score_pass(parts, planned, backend=backend, statistics=gathered.names)
        gathered.add(planned.slots, scored)
    return gathered.trees()


def score_pass(
    parts: ModelParts,
    planned: Row | Batch,
    *,
    backend: Backend | None = None,
    statistics: tuple[str, ...] = (),
) -> TokenLogProbs:
    """Run one forward pass and read the log-probs of its targets off it.

    Args:
        parts: The model.
        planned: A row (tree layout) or a padded batch (flat layout).
        backend: Implementation of tree attention; None chooses by device.
        statistics: Those wanted.

    Returns:
        Log-probs of the targets, as the slots of `planned` divide them.
    """
    if isinstance(planned, Row):
        chosen = backend or choose_backend(parts.device)[0]
        hidden = run_row(parts, planned, RowAttention(planned, chosen))
    else:
        with patched(parts.body, tree=False):
            ids = planned.input_ids.to(parts.device)
            hidden = parts.body(input_ids=ids, use_cache=False).last_hidden_state.flatten(0, 1)
    head = parts.head()
    # With a model spread over devices, the head may be elsewhere than the last layer; only the
    # states that predict something go there.
    device = head.weight.device
    at_targets = hidden[planned.read_at.to(hidden.device)].to(device)
    return linear_log_probs(at_targets, planned.target_ids.to(device), head, statistics=statistics)


def run_row(parts: ModelParts, row: Row, attention: RowAttention) -> Float[Tensor, "tokens hidden"]:
    """Final hidden states of a row."""
    with patched(parts.body, tree=True):
        output = parts.body(
            input_ids=row.input_ids[None].to(parts.device),
            position_ids=row.position_ids[None].to(parts.device),
            # A mask of four axes is handed through as it is: none is built, none is read.
            attention_mask=torch.empty(1, 1, 0, 0, device=parts.device),
            use_cache=False,
            row_attention=attention,
        )
    states: Tensor = output.last_hidden_state[0]
    return states


def check_statistics(names: Sequence[str]) -> tuple[str, ...]:
    """Check the names of statistics.

    Raises:
        InputError: If one is unknown.
    """
    unknown = sorted(set(names) - set(STATISTICS))
    if unknown:
        raise InputError.of(
            saw=f"statistics {', '.join(unknown)}",
            expected=f"some of {', '.join(STATISTICS)}",
            cure="fix the name",
        )
    return tuple(dict.fromkeys(names))


class Gathered:
    """The results of passes, brought back into the order of the trees.

    Args:
        trees: What was requested.
        names: Statistics requested.
    """

    def __init__(self, trees: Sequence[TokenTree], names: tuple[str, ...]) -> None:
        self.names = names
        self._values: dict[str, list[list[Any]]] = {
            name: [[None] * len(tree.response_ids) for tree in trees]
            for name in ("log_probs", *names)
        }

    def add(self, slots: Sequence[Slot], scored: TokenLogProbs, *, cpu: bool = False) -> None:
        """Take the results of one pass, moved to the CPU if need be."""
        for name, by_tree in self._values.items():
            values = getattr(scored, name)
            values = values.cpu() if cpu else values
            for slot in slots:
                by_tree[slot.tree][slot.response] = values[slot.start : slot.stop]

    def has(self, leaf: Leaf) -> bool:
        """Whether a response's result is there."""
        return self._values["log_probs"][leaf.tree][leaf.response] is not None

    def trees(self) -> list[TreeLogProbs]:
        """The results, one a tree."""
        return [
            TreeLogProbs(
                per_token=tuple(tokens),
                sums=torch.stack([t.sum() for t in tokens]) if tokens else torch.zeros(0),
                **{name: tuple(self._values[name][index]) for name in self.names},
            )
            for index, tokens in enumerate(self._values["log_probs"])
        ]


# --- Self-check: which layout a model can take, tried before it is trusted -----------------------


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
        layout: "auto" takes the tree where it is exact; the others are tried as requested.
        backend: Implementation of tree attention; None chooses by device.

    Returns:
        The layout to use.

    Raises:
        ModelError: If the layout requested is not exact, or if not even the flat one is.
    """
    parts = ModelParts.of(model)
    find_fused_layers(parts.body)
    trees, allowed = _trial_trees(parts), _tolerance(parts)
    with torch.no_grad():
        expected = _plain_log_probs(parts, trees)
        choice = LayoutChoice("flat", "requested", float("nan"))
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
        computed = response_log_probs(model, trees, layout="flat")
    difference = _difference(computed, expected)
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
        computed = response_log_probs(model, trees, backend=backend)
    except ModelError as error:
        return _flat(str(error))
    except TypeError as error:  # a model of its own code that takes no further arguments
        return _flat(f"its layers do not pass on what tree attention needs ({error})")
    difference, allowed = _difference(computed, expected), _tolerance(parts)
    if difference > allowed:
        reason = f"a token's log-prob differs by {difference:.2g} nats (allowed: {allowed:g})"
        return LayoutChoice("flat", reason, difference, expected=False)
    return LayoutChoice(
        "tree", f"equal to its own forward pass within {difference:.1g} nats", difference
    )


def _flat(reason: str) -> LayoutChoice:
    return LayoutChoice("flat", reason, float("nan"))


# What the layers did otherwise than the configuration says; None if nothing.
def _unlike_config(
    parts: ModelParts, trees: Sequence[TokenTree], backend: Backend | None
) -> str | None:
    # The trial texts are shorter than real windows, so a layer that did not pass its window on
    # would look right.
    config = parts.body.config
    row = build_row(leaves_of(trees))
    attention = RowAttention(row, backend or choose_backend(parts.device)[0])
    run_row(parts, row, attention)
    if len(attention.windows) != config.num_hidden_layers:
        return f"only {len(attention.windows)} of {config.num_hidden_layers} layers use attention"
    types = getattr(config, "layer_types", None)
    window = getattr(config, "sliding_window", None)
    for layer, asked in attention.windows.items():
        slides = not types or types[layer] == "sliding_attention"
        if asked != (window if slides else None):
            return f"layer {layer} asks for a window of {asked}, its configuration for {window}"
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


# By the whole model's own forward pass, one sequence at a time.
def _plain_log_probs(parts: ModelParts, trees: Sequence[TokenTree]) -> list[Tensor]:
    log_probs = []
    for leaf in leaves_of(trees):
        ids = torch.tensor([leaf.prompt_ids + leaf.response_ids], device=parts.device)
        logits = parts.model(input_ids=ids, use_cache=False).logits[0, len(leaf.prompt_ids) - 1 :]
        targets = torch.tensor(leaf.response_ids, device=logits.device)
        rows = logits[:-1].float().log_softmax(-1)
        log_probs.append(rows.gather(-1, targets[:, None])[:, 0])
    return log_probs


def _difference(computed: Sequence[TreeLogProbs], expected: Sequence[Tensor]) -> float:
    ours = [tokens for tree in computed for tokens in tree.per_token]
    return max(
        float((a.to(b.device) - b).abs().nan_to_num(torch.inf).max())
        for a, b in zip(ours, expected, strict=True)
    )


def _tolerance(parts: ModelParts) -> float:
    """Nats."""
    # Half precision rounds logits themselves to a tenth of a nat or so; a GPU's products are
    # rounded to ten bits of mantissa where TF32 is on.
    if parts.projection.weight.dtype in (torch.float16, torch.bfloat16):
        return 0.5
    return 1e-4 if parts.device.type == "cpu" else 1e-2
