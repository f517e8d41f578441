"""Rows: token trees laid out so that every shared prefix stands once.

A row is a forest in depth-first order. The tokens that are visible to a token are its
ancestors and itself, so a row gives each response exactly the context that it has alone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

import torch
from jaxtyping import Int
from torch import Tensor

from prefstage.core.errors import InputError
from prefstage.data.tokenising import TokenTree

Span = tuple[int, int]
"""Half-open range of places in a row."""


@dataclass(frozen=True)
class Segment:
    """A run of places, each the only predecessor of the next.

    Attributes:
        start: First place in the row.
        stop: One after the last.
        context: Places of the ancestors, as spans in the order of the text. Their
            lengths add up to the position of the segment's first token.
    """

    start: int
    stop: int
    context: tuple[Span, ...]

    @property
    def position(self) -> int:
        """Position of the first token in its own text."""
        return sum(stop - start for start, stop in self.context)

    @property
    def path(self) -> tuple[Span, ...]:
        """Places of the ancestors and its own, in as few spans as can be."""
        *before, last = (*self.context, (self.start, self.stop))
        if before and before[-1][1] == last[0]:
            return (*before[:-1], (before[-1][0], last[1]))
        return (*before, last)


@dataclass(frozen=True)
class Slot:
    """Where the log-probs of one response stand among a row's targets.

    Attributes:
        tree: Index of the tree in the caller's list.
        response: Index of the response in its tree.
        start: First of its targets.
        stop: One after the last.
    """

    tree: int
    response: int
    start: int
    stop: int


@dataclass(frozen=True)
class Row:
    """One forward pass: places to compute, and response tokens to read off them.

    Attributes:
        input_ids: Token at each place. [places].
        position_ids: Position in its own text, from 0. [places].
        subtree_stop: One after the last descendant: the key at place j is visible from
            place i if j <= i < subtree_stop[j]. [places].
        segments: The same visibility as runs of places.
        read_at: Place whose hidden state predicts each response token. [targets].
        target_ids: The response tokens. [targets].
        slots: Which targets belong to which response.
    """

    input_ids: Int[Tensor, " places"]
    position_ids: Int[Tensor, " places"]
    subtree_stop: Int[Tensor, " places"]
    segments: tuple[Segment, ...]
    read_at: Int[Tensor, " targets"]
    target_ids: Int[Tensor, " targets"]
    slots: tuple[Slot, ...]


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


def check_trees(trees: Sequence[TokenTree]) -> None:
    """Check that every response token has a predecessor.

    Raises:
        InputError: If a prompt or a response has no token.
    """
    for index, tree in enumerate(trees):
        if not tree.prompt_ids and tree.response_ids:
            raise InputError.of(
                saw=f"tree {index} ({tree.prompt_id}): a prompt without tokens",
                expected="at least one token before the response, since nothing predicts the first",
                cure="begin the prompt with the tokenizer's begin-of-sequence token",
            )
        for response, ids in enumerate(tree.response_ids):
            if not ids:
                raise InputError.of(
                    saw=f"tree {index} ({tree.prompt_id}): response {response} has no token",
                    expected="at least the end-of-turn token",
                    cure="encode it with ResponseEncoder, or leave it out",
                )


def pack_rows(leaves: Sequence[Leaf], *, token_budget: int) -> list[Row]:
    """Lay responses out in rows of at most `token_budget` places.

    Trees are taken in the order of their prompts, so that prompts which begin alike
    (system message, earlier turns) share a row and that beginning. A tree is divided only
    if it is larger than the budget; then its prompt is computed once a part. A single
    response that is larger than the budget gets a row of its own.

    Args:
        leaves: Responses with their prompts, those of a tree together.
        token_budget: Places a row, >= 1.

    Returns:
        The rows; every response stands in exactly one slot.
    """
    rows, members, size, last = list[Row](), list[Leaf](), 0, tuple[int, ...]()
    trees = [list(tree) for _, tree in groupby(leaves, key=lambda leaf: leaf.tree)]
    for tree in sorted(trees, key=lambda tree: tree[0].prompt_ids):
        for part in _parts(tree, token_budget):
            prompt = part[0].prompt_ids
            added = _unshared(part) - (common_prefix(prompt, last) if members else 0)
            if members and size + added > token_budget:
                rows.append(build_row(members))
                members, size, added = [], 0, _unshared(part)
            members += part
            size, last = size + added, prompt
    if members:
        rows.append(build_row(members))
    return rows


def build_row(leaves: Sequence[Leaf]) -> Row:
    """Merge responses with their prompts into one forest, each shared prefix once.

    Args:
        leaves: At least one response.

    Returns:
        The row that holds them all.
    """
    ordered = sorted(leaves, key=lambda leaf: leaf.computed_ids)
    ids, positions, stops = list[int](), list[int](), list[int]()
    segments, read_at, targets, slots = list[Segment](), list[int](), list[int](), list[Slot]()
    path, before = list[int](), tuple[int, ...]()
    for leaf in ordered:
        computed = leaf.computed_ids
        shared = common_prefix(computed, before)
        for place in path[shared:]:
            stops[place] = len(ids)
        new = range(len(ids), len(ids) + len(computed) - shared)
        if new:
            segments.append(Segment(new.start, new.stop, _spans(path[:shared])))
        path = [*path[:shared], *new]
        ids += computed[shared:]
        positions += range(shared, len(computed))
        stops += [0] * len(new)
        slots.append(
            Slot(leaf.tree, leaf.response, len(targets), len(targets) + len(leaf.response_ids))
        )
        read_at += path[len(leaf.prompt_ids) - 1 :]
        targets += leaf.response_ids
        before = computed
    for place in path:
        stops[place] = len(ids)
    return Row(
        input_ids=torch.tensor(ids),
        position_ids=torch.tensor(positions),
        subtree_stop=torch.tensor(stops),
        segments=tuple(segments),
        read_at=torch.tensor(read_at),
        target_ids=torch.tensor(targets),
        slots=tuple(slots),
    )


def leaves_of(trees: Sequence[TokenTree]) -> list[Leaf]:
    """Every response with its prompt, in the order of the trees."""
    return [
        Leaf(index, response, tree.prompt_ids, ids)
        for index, tree in enumerate(trees)
        for response, ids in enumerate(tree.response_ids)
    ]


def common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """Number of leading tokens that two texts share."""
    shorter = min(len(left), len(right))
    if left[:shorter] == right[:shorter]:
        return shorter
    return next(i for i in range(shorter) if left[i] != right[i])


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


def _spans(places: Sequence[int]) -> tuple[Span, ...]:
    if not places:
        return ()
    breaks = [i + 1 for i, (a, b) in enumerate(pairwise(places)) if b != a + 1]
    edges = [0, *breaks, len(places)]
    return tuple((places[a], places[b - 1] + 1) for a, b in pairwise(edges))
