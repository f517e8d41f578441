"""Tree = flat = the model's own forward pass, on every verified architecture."""

import random

import pytest
import torch
from hypothesis import given, settings, strategies as st

from prefstage.data.tokenising import TokenTree
from prefstage.scoring.engine import response_log_probs
from prefstage.scoring.layout import leaves_of
from tests.scoring.tiny_models import (
    TREE_ARCHITECTURES,
    largest_difference,
    plain_log_probs,
    random_ids,
    realistic_trees,
    tiny_model,
    weighted_sum,
)

FORMS = [("tree", "blockwise"), ("tree", "sdpa"), ("flat", None)]


@pytest.mark.parametrize("name", [*TREE_ARCHITECTURES, "mamba"])
def test_log_probs_and_gradients_equal_the_plain_forward_pass(name: str) -> None:
    model, trees = tiny_model(name), realistic_trees()
    if name == "mamba":  # its scan is slow in plain PyTorch
        trees = [trees[0], trees[2], trees[4]]
    plain = plain_log_probs(model, trees)
    parameters = list(model.parameters())
    expected = torch.autograd.grad(weighted_sum(plain), parameters)
    for layout, backend in FORMS if name != "mamba" else FORMS[2:]:
        found = response_log_probs(model, trees, layout=layout, backend=backend)
        assert largest_difference([tree.per_token for tree in found], plain) < 1e-4
        gradients = torch.autograd.grad(
            weighted_sum([tree.per_token for tree in found]), parameters
        )
        for ours, theirs in zip(gradients, expected, strict=True):
            assert (ours - theirs).norm() <= 1e-4 * theirs.norm() + 1e-7


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
@pytest.mark.parametrize("name", TREE_ARCHITECTURES)
def test_flex_attention_equals_the_plain_forward_pass(name: str) -> None:
    model, trees = tiny_model(name), realistic_trees()[2:]
    with torch.no_grad():
        found = response_log_probs(model, trees, backend="flex")
        plain = plain_log_probs(model, trees)
    assert largest_difference([tree.per_token for tree in found], plain) < 1e-4


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
def test_budget_changes_rows_but_no_result(name: str) -> None:
    model, trees = tiny_model(name), realistic_trees()
    with torch.no_grad():
        plain = plain_log_probs(model, trees)
        for budget in (1, 100, 400):
            for layout in ("tree", "flat"):
                found = response_log_probs(model, trees, token_budget=budget, layout=layout)
                assert largest_difference([tree.per_token for tree in found], plain) < 1e-4


lengths = st.lists(st.integers(1, 90), min_size=1, max_size=5)


@given(
    seed=st.integers(0, 10**6),
    shapes=st.lists(
        st.tuples(st.integers(0, 4), st.integers(1, 80), lengths), min_size=1, max_size=4
    ),
    budget=st.integers(1, 700),
)
@settings(max_examples=25, deadline=None)
def test_any_shapes_equal_the_plain_forward_pass(
    seed: int, shapes: list[tuple[int, int, list[int]]], budget: int
) -> None:
    model, rng = tiny_model("mistral"), random.Random(seed)
    beginnings = [random_ids(rng, n) for n in (0, 1, 9, 30, 70)]
    trees = [
        TokenTree(
            str(index),
            beginnings[begin] + random_ids(rng, size),
            tuple(random_ids(rng, length) for length in responses),
        )
        for index, (begin, size, responses) in enumerate(shapes)
    ]
    with torch.no_grad():
        found = response_log_probs(model, trees, token_budget=budget)
        plain = plain_log_probs(model, trees)
    assert largest_difference([tree.per_token for tree in found], plain) < 1e-4
    for tree in found:
        torch.testing.assert_close(tree.sums, torch.stack([t.sum() for t in tree.per_token]))


ROPES = {
    "longrope": {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "short_factor": [1.0] * 4,
        "long_factor": [1.0, 3.0, 5.0, 9.0],
        "original_max_position_embeddings": 60,
        "factor": 4.0,
    },
    "dynamic": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0},
}


@pytest.mark.parametrize("layout", ["tree", "flat"])
@pytest.mark.parametrize("rope", ROPES)
def test_frequencies_that_depend_on_length_are_those_of_each_text(rope: str, layout: str) -> None:
    model = tiny_model("llama", max_position_embeddings=60, rope_parameters=ROPES[rope])
    texts = leaves_of(realistic_trees())
    expected = {}
    with torch.no_grad():
        # One at a time by length, since transformers keeps the frequencies of longer texts.
        for leaf in sorted(texts, key=lambda leaf: len(leaf.computed_ids)):
            logits = model(torch.tensor([leaf.computed_ids])).logits[0, len(leaf.prompt_ids) - 1 :]
            targets = torch.tensor(leaf.response_ids)[:, None]
            expected[leaf.tree, leaf.response] = logits.log_softmax(-1).gather(-1, targets)[:, 0]
        model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
        found = response_log_probs(model, realistic_trees(), layout=layout)
    assert any(len(leaf.computed_ids) > 60 for leaf in texts)
    for (tree, response), tokens in expected.items():
        assert (found[tree].per_token[response] - tokens).abs().max() < 1e-4
