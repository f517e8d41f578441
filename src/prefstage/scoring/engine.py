"""From a model and token trees to the log-prob of every response token."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from prefstage.core.errors import InputError
from prefstage.data.tokenising import TokenTree
from prefstage.scoring.attention import Backend, RowAttention, choose_backend, tree_attention
from prefstage.scoring.linear import TokenLogProbs, linear_log_probs
from prefstage.scoring.model_parts import ModelParts
from prefstage.scoring.padded import Batch, pack_batches
from prefstage.scoring.rows import Row, Slot, check_trees, pack_rows

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
    results = Collector(trees, check_statistics(statistics))
    for scored in score_passes(
        parts, plan_passes(trees, layout=layout, token_budget=token_budget), backend, results.names
    ):
        results.add(*scored)
    return results.trees()


def plan_passes(
    trees: Sequence[TokenTree], *, layout: Layout, token_budget: int | None
) -> Sequence[Row | Batch]:
    """Lay trees out in forward passes of at most `token_budget` tokens."""
    check_trees(trees)
    if token_budget is None:
        token_budget = sum(
            len(ids) + len(tree.prompt_ids) for tree in trees for ids in tree.response_ids
        )
    pack = pack_rows if layout == "tree" else pack_batches
    return pack(trees, token_budget=max(1, token_budget))


def score_passes(
    parts: ModelParts,
    passes: Sequence[Row | Batch],
    backend: Backend | None,
    statistics: tuple[str, ...],
) -> Iterator[tuple[Sequence[Slot], TokenLogProbs]]:
    """Run forward passes one after the other."""
    for one in passes:
        yield one.slots, score_pass(parts, one, backend, statistics)


def score_pass(
    parts: ModelParts, one: Row | Batch, backend: Backend | None, statistics: tuple[str, ...]
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
    hidden = _row_states(parts, one, backend) if isinstance(one, Row) else _batch_states(parts, one)
    head = parts.head()
    at_targets = hidden[one.read_at.to(hidden.device)].to(head.weight.device)
    return linear_log_probs(
        at_targets, one.target_ids.to(head.weight.device), head, statistics=statistics
    )


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


class Collector:
    """Gathers the results of passes back into the order of the trees.

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


def _row_states(
    parts: ModelParts, row: Row, backend: Backend | None
) -> Float[Tensor, "places hidden"]:
    device = parts.device
    attention = RowAttention(row, backend or choose_backend(device)[0])
    with tree_attention(parts.body):
        output = parts.body(
            input_ids=row.input_ids[None].to(device),
            position_ids=row.position_ids[None].to(device),
            # A mask of four axes is handed through as it is: none is built, none is read.
            attention_mask=torch.empty(1, 1, 0, 0, device=device),
            use_cache=False,
            row_attention=attention,
        )
    states: Tensor = output.last_hidden_state[0]
    return states


def _batch_states(parts: ModelParts, batch: Batch) -> Float[Tensor, "places hidden"]:
    output = parts.body(input_ids=batch.input_ids.to(parts.device), use_cache=False)
    states: Tensor = output.last_hidden_state.flatten(0, 1)
    return states
