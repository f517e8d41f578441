"""From a model and token trees to the log-prob of every response token."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from prefstage.core.errors import InputError
from prefstage.data.tokenising import TokenTree
from prefstage.scoring.attention import Backend, RowAttention, choose_backend, tree_attention
from prefstage.scoring.fused_layers import fused_layers
from prefstage.scoring.linear import TokenLogProbs, linear_log_probs
from prefstage.scoring.model_parts import ModelParts
from prefstage.scoring.padded import Batch, pack_batches
from prefstage.scoring.rotary import length_rule, separate
from prefstage.scoring.rows import Leaf, Row, Slot, check_trees, leaves_of, pack_rows

Layout = Literal["tree", "flat"]
STATISTICS = ("entropy", "log_sum_squares")


@dataclass(frozen=True)
class TreeLogProbs:
    """Log-probs of one tree's responses, in nats.

    Attributes:
        per_token: For each response, log π(y_t | x, y_<t) of each token. [tokens], float32.
        sums: Σ_t of each response. [responses].
        entropy: For each response, the entropy of π(· | x, y_<t). [tokens]; empty unless
            asked for.
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
        One result a tree, in the order given.

    Raises:
        InputError: If a prompt or response is empty, or a statistic is unknown.
        ModelError: If the model has no place for tree attention, or drops attention weights.
    """
    parts = ModelParts.of(model)
    check_trees(trees)
    gathered = Gathered(trees, check_statistics(statistics))
    leaves = leaves_of(trees)
    for one in plan_passes(parts, leaves, layout=layout, token_budget=token_budget):
        gathered.add(one.slots, score_pass(parts, one, backend=backend, statistics=gathered.names))
    return gathered.trees()


def plan_passes(
    parts: ModelParts, leaves: Sequence[Leaf], *, layout: Layout, token_budget: int | None
) -> list[Row | Batch]:
    """Lay responses out in forward passes of at most `token_budget` tokens.

    Args:
        parts: The model, whose rotary embedding may forbid some texts to share a pass.
        leaves: Responses with their prompts, those of a tree together.
        layout: "tree" shares prompts; "flat" pads whole sequences.
        token_budget: Tokens a pass; None for one pass (flat: one batch a length class).

    Returns:
        The passes; every response stands in exactly one slot.
    """
    whole = sum(len(leaf.computed_ids) for leaf in leaves)
    budget = max(1, 2 * whole if token_budget is None else token_budget)
    pack = pack_rows if layout == "tree" else pack_batches
    groups = separate(leaves, length_rule(parts.body.config))
    return [one for group in groups for one in pack(group, token_budget=budget)]


def score_pass(
    parts: ModelParts,
    one: Row | Batch,
    *,
    backend: Backend | None = None,
    statistics: tuple[str, ...] = (),
) -> TokenLogProbs:
    """Run one forward pass and read the log-probs of its targets off it.

    Args:
        parts: The model.
        one: A row (tree layout) or a padded batch (flat layout).
        backend: Implementation of tree attention; None chooses by device.
        statistics: Those wanted.

    Returns:
        Log-probs of the targets, as the slots of `one` divide them.
    """
    hidden = _states(parts, one, backend)
    head = parts.head()
    device = head.weight.device
    at_targets = hidden[one.read_at.to(hidden.device)].to(device)
    return linear_log_probs(at_targets, one.target_ids.to(device), head, statistics=statistics)


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
            cure="mend the name",
        )
    return tuple(dict.fromkeys(names))


class Gathered:
    """The results of passes, brought back into the order of the trees.

    Args:
        trees: What was asked for.
        names: Statistics asked for.
    """

    def __init__(self, trees: Sequence[TokenTree], names: tuple[str, ...]) -> None:
        self.names = names
        self._found: dict[str, list[list[Any]]] = {
            name: [[None] * len(tree.response_ids) for tree in trees]
            for name in ("log_probs", *names)
        }

    def add(self, slots: Sequence[Slot], scored: TokenLogProbs) -> None:
        """Take the results of one pass."""
        for name, found in self._found.items():
            values = getattr(scored, name)
            for slot in slots:
                found[slot.tree][slot.response] = values[slot.start : slot.stop]

    def has(self, leaf: Leaf) -> bool:
        """Whether a response's result is there."""
        return self._found["log_probs"][leaf.tree][leaf.response] is not None

    def trees(self) -> list[TreeLogProbs]:
        """The results, one a tree."""
        return [
            TreeLogProbs(
                per_token=tuple(tokens),
                sums=torch.stack([t.sum() for t in tokens]) if tokens else torch.zeros(0),
                **{name: tuple(self._found[name][index]) for name in self.names},
            )
            for index, tokens in enumerate(self._found["log_probs"])
        ]


def _states(
    parts: ModelParts, one: Row | Batch, backend: Backend | None
) -> Float[Tensor, "places hidden"]:
    with fused_layers(parts.body):
        if isinstance(one, Row):
            with tree_attention(parts.body):
                return run_row(
                    parts, one, RowAttention(one, backend or choose_backend(parts.device)[0])
                )
        output = parts.body(input_ids=one.input_ids.to(parts.device), use_cache=False)
        states: Tensor = output.last_hidden_state.flatten(0, 1)
        return states


def run_row(parts: ModelParts, row: Row, attention: RowAttention) -> Float[Tensor, "places hidden"]:
    """Final hidden states of a row; to be called inside `tree_attention`."""
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
