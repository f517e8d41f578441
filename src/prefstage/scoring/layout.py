"""How responses are laid out in forward passes: rows (the tree layout) and padded batches (flat).

A row is a forest in depth-first order in which every shared prefix stands once. The tokens that
are visible to a token are its ancestors and itself, so a row gives every response exactly the
context that it has alone. A batch, for models whose layers mix tokens otherwise than by
attention, holds one response a line, padded on the right: every layer of a causal model looks
back only, so that padding changes nothing before it and needs no mask.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, groupby, pairwise
from typing import Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor

from prefstage.data.messages import common_prefix
from prefstage.data.tokenising import TokenTree

Layout = Literal["tree", "flat"]
Span = tuple[int, int]
"""Half-open range of positions in a row."""

PADDING_ID = 0
"""Any token will do: nothing is read off a padded position."""

MAX_PADDING = 0.1
"""Share of a batch that may be padding; beyond it a new batch begins."""


@dataclass(frozen=True)
class Segment:
    """A run of positions in a row, each the only predecessor of the next.

    Attributes:
        start: First position in the row.
        stop: One after the last.
        context: Positions of the ancestors, as spans in the order of the text. Their
            lengths add up to the position of the segment's first token in its text.
    """

    start: int
    stop: int
    context: tuple[Span, ...]

    @property
    def position(self) -> int:
        """Position of the first token in its text."""
        return sum(stop - start for start, stop in self.context)


@dataclass(frozen=True)
class Leaf:
    """One response with its prompt.

    Attributes:
        tree: Index of the tree in the caller's list.
        response: Index of the response in its tree.
        prompt_ids: Tokens of the prompt.
        response_ids: Tokens of the response.
    """

    tree: int
    response: int
    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]

    @property
    def computed_ids(self) -> tuple[int, ...]:
        """Tokens that must be computed: nothing is read off the last one."""
        return self.prompt_ids + self.response_ids[:-1]


@dataclass(frozen=True)
class Batch:
    """A forward pass: tokens to compute, and targets to read off them.

    By itself it is a pass of the flat layout: whole sequences, padded on the right.

    Attributes:
        input_ids: Prompt and response of each sequence. [sequences, positions].
        read_at: Flat index (sequence · positions + position) of the hidden state that
            predicts each response token. [targets].
        target_ids: The response tokens. [targets].
        leaves: The responses, in the order of their targets.
    """

    input_ids: Int[Tensor, "*sequences positions"]
    read_at: Int[Tensor, " targets"]
    target_ids: Int[Tensor, " targets"]
    leaves: tuple[Leaf, ...]


@dataclass(frozen=True)
class Row(Batch):
    """A forward pass of the tree layout: one line of tokens, [positions], which is a forest.

    Attributes:
        position_ids: Position in its text, from 0. [positions].
        subtree_stop: One after the last descendant: key j is visible from query i if
            j <= i < subtree_stop[j]. [positions].
        segments: The same visibility as runs of positions.
    """

    position_ids: Int[Tensor, " positions"]
    subtree_stop: Int[Tensor, " positions"]
    segments: tuple[Segment, ...]


def leaves_of(trees: Sequence[TokenTree]) -> list[Leaf]:
    """Every response with its prompt, in the order of the trees."""
    return [
        Leaf(index, response, tree.prompt_ids, ids)
        for index, tree in enumerate(trees)
        for response, ids in enumerate(tree.response_ids)
    ]


# --- Passes -----------------------------------------------------------------------------------


def plan_passes(
    config: Any, leaves: Sequence[Leaf], *, layout: Layout, token_budget: int | None
) -> list[Batch]:
    """Lay responses out in forward passes of at most `token_budget` tokens.

    Args:
        config: The model's configuration, whose rotary embedding may forbid some texts to
            share a pass.
        leaves: Responses with their prompts, those of a tree together.
        layout: "tree" shares prompts; "flat" pads whole sequences.
        token_budget: Tokens a pass; None for one pass (flat: one batch a length class).

    Returns:
        The passes; every response stands in exactly one slot.
    """
    if token_budget is None:
        token_budget = 2 * sum(len(leaf.computed_ids) for leaf in leaves)
    pack = pack_rows if layout == "tree" else pack_batches
    return [
        planned
        for group in _separated(leaves, length_rule(config))
        for planned in pack(group, token_budget=max(1, token_budget))
    ]


def pack_rows(leaves: Sequence[Leaf], *, token_budget: int) -> list[Row]:
    """Lay responses out in rows of at most `token_budget` positions.

    A tree is divided only if it is larger than the budget; then its prompt is computed once
    a part. A single response that is larger than the budget gets a row by itself.

    Args:
        leaves: Responses with their prompts, those of a tree together.
        token_budget: Positions a row, >= 1.

    Returns:
        The rows; every response stands in exactly one slot.
    """
    rows, members, size, last = list[Row](), list[Leaf](), 0, tuple[int, ...]()
    # In the order of their prompts, so that prompts which begin alike (system message, earlier
    # turns) share a row, and in it that beginning.
    for tree in sorted(
        (list(tree) for _, tree in groupby(leaves, key=lambda leaf: leaf.tree)),
        key=lambda tree: tree[0].prompt_ids,
    ):
        for part in _parts(tree, token_budget):
            prompt = part[0].prompt_ids
            added = _unshared(part) - (common_prefix(prompt, last) if members else 0)
            if members and size + added > token_budget:
                rows.append(build_row(members))
                members, size, added = [], 0, _unshared(part)
            members += part
            size, last = size + added, prompt
    return [*rows, build_row(members)] if members else rows


def pack_batches(leaves: Sequence[Leaf], *, token_budget: int) -> list[Batch]:
    """Lay responses out in padded batches of at most `token_budget` positions.

    Args:
        leaves: Responses with their prompts.
        token_budget: Positions a batch, padding included; a longer sequence stands alone.

    Returns:
        The batches.
    """
    batches, members, tokens = list[Batch](), list[Leaf](), 0
    # Longest sequences first, so that memory runs out early if at all.
    for leaf in sorted(leaves, key=lambda leaf: -len(leaf.computed_ids)):
        size = len(leaf.computed_ids)
        if members:
            positions = len(members[0].computed_ids) * (len(members) + 1)
            if positions > token_budget or tokens + size < (1 - MAX_PADDING) * positions:
                batches.append(build_batch(members))
                members, tokens = [], 0
        members.append(leaf)
        tokens += size
    return [*batches, build_batch(members)] if members else batches


def build_row(leaves: Sequence[Leaf]) -> Row:
    """Merge responses with their prompts into one forest, each shared prefix once.

    Args:
        leaves: At least one response.

    Returns:
        The row that holds them all.
    """
    ids, positions, stops, read_at = list[int](), list[int](), list[int](), list[int]()
    segments, path, before = list[Segment](), list[int](), tuple[int, ...]()
    # In sorted order neighbours share the longest prefixes: the forest is built in one sweep,
    # and `path` holds the row's positions of the text that was laid out last.
    ordered = sorted(leaves, key=lambda leaf: leaf.computed_ids)
    for leaf in ordered:
        computed = leaf.computed_ids
        shared = common_prefix(computed, before)
        for position in path[shared:]:
            stops[position] = len(ids)
        new = range(len(ids), len(ids) + len(computed) - shared)
        if new:
            segments.append(Segment(new.start, new.stop, _spans(path[:shared])))
        path = [*path[:shared], *new]
        ids += computed[shared:]
        positions += range(shared, len(computed))
        stops += [0] * len(new)
        read_at += path[len(leaf.prompt_ids) - 1 :]
        before = computed
    for position in path:
        stops[position] = len(ids)
    return Row(
        input_ids=torch.tensor(ids),
        position_ids=torch.tensor(positions),
        subtree_stop=torch.tensor(stops),
        segments=tuple(segments),
        read_at=torch.tensor(read_at),
        target_ids=_targets(ordered),
        leaves=tuple(ordered),
    )


def build_batch(leaves: Sequence[Leaf]) -> Batch:
    """Stack responses with their prompts, padded on the right.

    Args:
        leaves: At least one response.

    Returns:
        The batch.
    """
    longest = max(len(leaf.computed_ids) for leaf in leaves)
    ids, read_at = torch.full((len(leaves), longest), PADDING_ID), list[int]()
    for index, leaf in enumerate(leaves):
        ids[index, : len(leaf.computed_ids)] = torch.tensor(leaf.computed_ids)
        first = index * longest + len(leaf.prompt_ids) - 1
        read_at += range(first, first + len(leaf.response_ids))
    return Batch(ids, torch.tensor(read_at), _targets(leaves), tuple(leaves))


def _targets(leaves: Sequence[Leaf]) -> Int[Tensor, " targets"]:
    return torch.tensor([*chain.from_iterable(leaf.response_ids for leaf in leaves)])


def _parts(tree: Sequence[Leaf], budget: int) -> Iterator[list[Leaf]]:
    part = list[Leaf]()
    for leaf in tree:
        if part and _unshared([*part, leaf]) > budget:
            yield part
            part = []
        part.append(leaf)
    yield part


def _unshared(part: Sequence[Leaf]) -> int:
    return len(part[0].prompt_ids) + sum(len(leaf.response_ids) - 1 for leaf in part)


def _spans(positions: Sequence[int]) -> tuple[Span, ...]:
    if not positions:
        return ()
    breaks = [i + 1 for i, (a, b) in enumerate(pairwise(positions)) if b != a + 1]
    edges = [0, *breaks, len(positions)]
    return tuple((positions[a], positions[b - 1] + 1) for a, b in pairwise(edges))


# --- Rotary embeddings whose frequencies depend on length -------------------------------------


def length_rule(config: Any) -> tuple[int, bool] | None:
    """Which texts the rotary embedding of a model lets share a pass.

    Args:
        config: The model's configuration.

    Returns:
        The longest text, in tokens, that has the original frequencies, and whether all longer ones
        share one other set (LongRoPE) or have theirs by their length (dynamic scaling); None if
        frequencies do not depend on length.

    Source:
        LongRoPE: Ding et al. 2024, arXiv:2402.13753; dynamic scaling as in transformers'
        `dynamic_rope_update`.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [rope] if "rope_type" in rope else [v for v in rope.values() if isinstance(v, dict)]
    for kind in kinds:
        name = str(kind.get("rope_type"))
        if name == "longrope" or "dynamic" in name:
            limit = kind.get("original_max_position_embeddings") or config.max_position_embeddings
            return int(limit), name == "longrope"
    return None


# Groups of responses that may share a pass, none empty.
def _separated(leaves: Sequence[Leaf], rule: tuple[int, bool] | None) -> list[list[Leaf]]:
    limit, alike = rule or (math.inf, True)
    # Texts that stand alone come shortest first: transformers only ever raises the length that
    # frequencies are computed for, so that a shorter text after a longer one would get those of
    # the longer.
    ordered = leaves if alike else sorted(leaves, key=lambda leaf: len(leaf.computed_ids))
    short = [leaf for leaf in leaves if len(leaf.computed_ids) <= limit]
    long = [leaf for leaf in ordered if len(leaf.computed_ids) > limit]
    return [group for group in (short, *([long] if alike else ([leaf] for leaf in long))) if group]
