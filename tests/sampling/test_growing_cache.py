"""Keys and values that grow in place are those of transformers' own cache."""

import torch
from hypothesis import given, settings, strategies as st
from transformers import LlamaConfig, MistralConfig
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from prefstage.sampling.decoding import GrowingLayer, growing_cache

HEADS, WIDTH = 2, 3
STEPS = ["grow", "choose", "drop", "select", "crop"]


def states(rows: int, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(rows, HEADS, tokens, WIDTH), torch.randn(rows, HEADS, tokens, WIDTH)


def assert_same(one: DynamicLayer, other: DynamicLayer) -> None:
    assert one.get_seq_length() == other.get_seq_length()
    assert torch.equal(one.keys, other.keys)
    assert torch.equal(one.values, other.values)


@given(data=st.data(), most_tokens=st.integers(1, 12))
@settings(max_examples=150, deadline=None)
def test_any_steps_give_what_a_dynamic_layer_gives(data: st.DataObject, most_tokens: int) -> None:
    layers = GrowingLayer(most_tokens), DynamicLayer()
    rows = data.draw(st.integers(2, 4))
    for step in data.draw(st.lists(st.sampled_from(STEPS), min_size=5)):
        if step == "grow":
            new = states(rows, data.draw(st.integers(1, 3)))
            results = [layer.update(*new) for layer in layers]
            assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
        elif layers[1].get_seq_length() == 0:
            continue
        elif step == "crop":
            tokens = min(layers[1].get_seq_length() - 1, 2)
            for layer in layers:
                layer.crop(-tokens)
        else:
            places = st.integers(0, rows - 1)
            chosen = data.draw(st.lists(places, min_size=1, max_size=6, unique=step == "drop"))
            index = torch.tensor(sorted(chosen) if step == "drop" else chosen)
            for layer in layers:
                (layer.batch_select_indices if step == "select" else layer.reorder_cache)(index)
            rows = len(index)
        if layers[1].get_seq_length():
            assert_same(*layers)


def test_tokens_up_to_the_most_and_fewer_rows_take_no_further_memory() -> None:
    layer = GrowingLayer(8)
    layer.update(*states(4, 3))
    layer.reorder_cache(torch.tensor([0, 0, 1, 1, 3]))
    places = layer.keys.data_ptr(), layer.values.data_ptr()
    for index in ([0, 1, 2, 4], [0, 2, 3], [2, 1, 0], [1, 1, 2], [2]):
        layer.update(*states(len(layer.keys), 1))
        layer.reorder_cache(torch.tensor(index))
        assert (layer.keys.data_ptr(), layer.values.data_ptr()) == places
    layer.update(*states(1, 1))
    assert layer.get_seq_length() == 9
    assert layer.keys.data_ptr() != places[0]


def test_layers_that_look_at_a_window_are_left_as_they_are() -> None:
    kinds = {type(layer) for layer in growing_cache(MistralConfig(sliding_window=4), 10).layers}
    assert kinds == {DynamicSlidingWindowLayer}
    kinds = {type(layer) for layer in growing_cache(LlamaConfig(), 10).layers}
    assert kinds == {GrowingLayer}
