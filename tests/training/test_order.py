"""The order of training depends on seed and epoch alone, and leaves nothing out."""

import random

import pytest
import torch
from accelerate import skip_first_batches
from hypothesis import given, strategies as st

from prefstage.training.batches import StepLoader, StepSampler, epoch_order


@given(items=st.integers(0, 200), step=st.integers(1, 40), epoch=st.integers(0, 3))
def test_every_item_comes_once_an_epoch(items: int, step: int, epoch: int) -> None:
    sampler = StepSampler(items, step, seed=1)
    sampler.set_epoch(epoch)
    steps = list(sampler)
    assert sorted(index for each in steps for index in each) == list(range(items))
    assert [len(each) for each in steps[:-1]] == [step] * (len(steps) - 1)
    assert len(steps) == len(sampler)


def test_the_order_is_that_of_seed_and_epoch_whatever_was_drawn_before() -> None:
    first = epoch_order(50, seed=4, epoch=2)
    torch.manual_seed(123)
    random.seed(9)
    assert epoch_order(50, seed=4, epoch=2) == first
    assert epoch_order(50, seed=4, epoch=3) != first
    assert epoch_order(50, seed=5, epoch=2) != first


def test_going_through_the_loader_draws_no_global_random_number() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert len(list(StepLoader(StepSampler(10, 3, seed=0)))) == 4
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("skipped", [0, 1, 3])
def test_skipping_steps_leaves_the_rest_as_they_are(skipped: int) -> None:
    whole = StepLoader(StepSampler(11, 3, seed=7))
    whole.set_epoch(2)
    expected = [each["items"] for each in whole][skipped:]
    loader = StepLoader(StepSampler(11, 3, seed=7))
    rest = skip_first_batches(loader, skipped)
    loader.set_epoch(2)
    assert [each["items"] for each in rest] == expected


def test_without_shuffling_the_order_is_that_of_the_set() -> None:
    assert list(StepSampler(5, 2, seed=0, shuffle=False)) == [[0, 1], [2, 3], [4]]
