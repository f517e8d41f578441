"""Rows: every response in its own context, every shared prefix once."""

import random

import torch
from hypothesis import given, strategies as st

from prefstage.data.messages import common_prefix
from prefstage.data.tokenising import TokenTree
from prefstage.scoring.attention import visible_keys
from prefstage.scoring.layout import (
    Leaf,
    Row,
    Segment,
    build_batch,
    build_row,
    leaves_of,
    pack_batches,
    pack_rows,
)
from tests.scoring.tiny_models import realistic_trees


def unique_prefixes(leaves: list[Leaf]) -> int:
    return len(
        {leaf.computed_ids[:n] for leaf in leaves for n in range(1, len(leaf.computed_ids) + 1)}
    )


def test_a_small_row_by_hand() -> None:
    row = build_row([Leaf(0, 0, (1, 2), (5, 6, 7)), Leaf(0, 1, (1, 2), (3, 4))])
    # In the order of tokens: 1 2 3, then 5 6 below 2. The last tokens predict nothing.
    assert row.input_ids.tolist() == [1, 2, 3, 5, 6]
    assert row.position_ids.tolist() == [0, 1, 2, 2, 3]
    assert row.subtree_stop.tolist() == [5, 5, 3, 5, 5]
    assert row.segments == (Segment(0, 3, ()), Segment(3, 5, ((0, 2),)))
    assert row.read_at.tolist() == [1, 2, 1, 3, 4]
    assert row.target_ids.tolist() == [3, 4, 5, 6, 7]
    assert [(leaf.response, len(leaf.response_ids)) for leaf in row.leaves] == [(1, 2), (0, 3)]


tokens = st.lists(st.integers(0, 2), min_size=1, max_size=7).map(tuple)
forests = st.lists(
    st.tuples(tokens, st.lists(tokens, min_size=1, max_size=4)), min_size=1, max_size=5
)


@given(forest=forests, budget=st.integers(1, 60))
def test_every_response_token_sees_exactly_its_own_text(
    forest: list[tuple[tuple[int, ...], list[tuple[int, ...]]]], budget: int
) -> None:
    trees = [TokenTree(str(i), prompt, tuple(ids)) for i, (prompt, ids) in enumerate(forest)]
    rows = pack_rows(leaves_of(trees), token_budget=budget)
    met = []
    for row in rows:
        check_row(row, trees)
        met += [(leaf.tree, leaf.response) for leaf in row.leaves]
        used = [leaf for leaf in leaves_of(trees) if (leaf.tree, leaf.response) in set(met)]
        assert len(used) == len(met)
    assert sorted(met) == [(leaf.tree, leaf.response) for leaf in leaves_of(trees)]


def check_row(row: Row, trees: list[TokenTree]) -> None:
    seen = visible_keys(row, window=None, device=torch.device("cpu"))[0, 0]
    by_segment = torch.zeros_like(seen)
    for segment in row.segments:
        for place in range(segment.start, segment.stop):
            for start, stop in (*segment.context, (segment.start, place + 1)):
                by_segment[place, start:stop] = True
    assert torch.equal(seen, by_segment)
    start = 0
    for leaf in row.leaves:
        tree = trees[leaf.tree]
        response = tree.response_ids[leaf.response]
        stop = start + len(response)
        assert tuple(row.target_ids[start:stop].tolist()) == response
        for count, place in enumerate(row.read_at[start:stop].tolist()):
            text = tree.prompt_ids + response[:count]
            assert tuple(row.input_ids[seen[place]].tolist()) == text
            assert row.position_ids[seen[place]].tolist() == list(range(len(text)))
        start = stop
    assert start == len(row.target_ids) == len(row.read_at)


@given(forest=forests)
def test_a_row_computes_each_prefix_once(
    forest: list[tuple[tuple[int, ...], list[tuple[int, ...]]]],
) -> None:
    leaves = leaves_of([TokenTree("", prompt, tuple(ids)) for prompt, ids in forest])
    assert len(build_row(leaves).input_ids) == unique_prefixes(leaves)


def test_rows_keep_to_the_budget_and_trees_together() -> None:
    leaves = leaves_of(realistic_trees())
    rows = pack_rows(leaves, token_budget=600)
    assert len(rows) == 3
    for row in rows:
        assert len(row.input_ids) <= 600
    trees_of_rows = [{leaf.tree for leaf in row.leaves} for row in rows]
    assert sum(map(len, trees_of_rows)) == len({leaf.tree for leaf in leaves})


def test_a_tree_beyond_the_budget_is_divided_and_no_further_than_needed() -> None:
    tree = TokenTree("", tuple(range(10)), tuple((20 + i,) * 6 for i in range(7)))
    rows = pack_rows(leaves_of([tree]), token_budget=25)
    assert [len(row.leaves) for row in rows] == [3, 3, 1]
    assert [len(row.input_ids) for row in rows] == [25, 25, 15]


def test_batches_pad_little_and_hold_every_response_once() -> None:
    rng = random.Random(0)
    trees = [
        TokenTree("", (1,) * rng.randrange(1, 90), ((2,) * rng.randrange(1, 60),) * 2)
        for _ in range(40)
    ]
    batches = pack_batches(leaves_of(trees), token_budget=700)
    met = [(leaf.tree, leaf.response) for batch in batches for leaf in batch.leaves]
    assert sorted(met) == [(leaf.tree, leaf.response) for leaf in leaves_of(trees)]
    for batch in batches:
        assert batch.input_ids.numel() <= 700
        assert (batch.input_ids == 0).sum() <= 0.1 * batch.input_ids.numel()


def test_a_small_batch_by_hand() -> None:
    batch = build_batch([Leaf(0, 0, (1, 2), (5, 6)), Leaf(1, 0, (3,), (4,))])
    assert batch.input_ids.tolist() == [[1, 2, 5], [3, 0, 0]]
    assert batch.read_at.tolist() == [1, 2, 3]
    assert batch.target_ids.tolist() == [5, 6, 4]


def test_common_prefix_counts_leading_tokens() -> None:
    assert common_prefix((1, 2, 3), (1, 2, 4, 5)) == 2
    assert common_prefix((1, 2), (1, 2, 3)) == 2
    assert common_prefix((), (1,)) == 0
