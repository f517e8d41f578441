"""Plans of micro-batches: complete, within the budget, balanced, and without much waste."""

import math
import random

import pytest
from hypothesis import example, given, settings, strategies as st

from prefstage.scoring.layout import build_row, leaves_of
from prefstage.training.step import Plan, plan_step
from tests.scoring.tiny_models import random_ids, realistic_trees

SIZES = st.lists(st.integers(1, 300), max_size=60)
BUDGETS = st.integers(1, 600)
PROCESSES = st.integers(1, 5)


def rounds(plan: Plan, sizes: list[int]) -> list[list[int]]:
    """Tokens of each process in each turn."""
    return [[sum(sizes[item] for item in own) for own in turn] for turn in zip(*plan, strict=True)]


@given(SIZES, BUDGETS, PROCESSES)
def test_every_item_is_planned_once_and_processes_have_equal_counts(
    sizes: list[int], budget: int, processes: int
) -> None:
    plan = plan_step(sizes, budget, processes)
    assert len(plan) == processes
    assert len({len(own) for own in plan}) == 1
    assert sorted(item for own in plan for batch in own for item in batch) == list(
        range(len(sizes))
    )
    assert plan == plan_step(sizes, budget, processes)


@given(SIZES, BUDGETS, PROCESSES)
def test_only_a_single_item_may_exceed_the_budget(
    sizes: list[int], budget: int, processes: int
) -> None:
    for own in plan_step(sizes, budget, processes):
        for batch in own:
            assert len(batch) <= 1 or sum(sizes[item] for item in batch) <= budget


@given(SIZES, BUDGETS, PROCESSES)
@example([300], 10, 2)
@example([1] * 60, 600, 5)
def test_micro_batches_are_about_as_few_as_can_be(
    sizes: list[int], budget: int, processes: int
) -> None:
    """With items that are small beside the budget b, a turn more would be no waste of tokens.

    If a turn fewer does not do, the fullest bin of that plan, which the LPT rule keeps
    below the mean plus one item, is beyond b: so the mean is beyond b minus an item.
    """
    count = len(plan_step(sizes, budget, processes)[0])
    if not sizes:
        assert count == 1
    elif max(sizes) < budget:
        assert count <= 1 + math.ceil(sum(sizes) / (processes * (budget - max(sizes))))
    else:
        assert count <= max(1, math.ceil(len(sizes) / processes))


@given(SIZES, BUDGETS, PROCESSES)
def test_processes_do_about_equal_work(sizes: list[int], budget: int, processes: int) -> None:
    plan = plan_step(sizes, budget, processes)
    work = [sum(sizes[item] for batch in own for item in batch) for own in plan]
    assert max(work) - min(work) <= 2 * max(sizes, default=0)


def test_a_realistic_step_is_filled_and_balanced() -> None:
    rng = random.Random(0)
    sizes = [int(rng.lognormvariate(5.3, 0.6)) for _ in range(128)]
    turns = rounds(plan_step(sizes, 2048, 4), sizes)
    assert sum(map(sum, turns)) / (len(turns) * 4 * 2048) > 0.8
    work = [sum(own) for own in zip(*turns, strict=True)]
    assert max(work) / (sum(work) / 4) < 1.02


@settings(max_examples=25)
@given(st.integers(0, 10_000), BUDGETS, PROCESSES)
def test_with_prompts_a_micro_batch_is_as_large_as_its_row(
    seed: int, budget: int, processes: int
) -> None:
    trees = realistic_trees(seed % 7)
    sizes = [len(t.prompt_ids) + sum(len(ids) - 1 for ids in t.response_ids) for t in trees]
    prompts = [tree.prompt_ids for tree in trees]
    plan = plan_step(sizes, budget, processes, prompts=prompts)
    assert sorted(item for own in plan for batch in own for item in batch) == list(
        range(len(sizes))
    )
    for own in plan:
        for batch in own:
            if len(batch) > 1:
                row = build_row(leaves_of([trees[item] for item in batch]))
                assert len(row.input_ids) <= budget


def test_items_that_begin_alike_are_put_together_where_that_pays() -> None:
    rng = random.Random(0)
    openings = [random_ids(rng, 400) for _ in range(4)]
    prompts = [openings[item % 4] + random_ids(rng, 10) for item in range(16)]
    plan = plan_step([450] * 16, 650, 2, prompts=prompts)
    assert [len(own) for own in plan] == [2, 2]
    for own in plan:
        for batch in own:
            assert len({item % 4 for item in batch}) == 1


def test_fewer_items_than_processes_leave_some_without() -> None:
    assert plan_step([5], 100, 3) == (((0,),), ((),), ((),))


@pytest.mark.parametrize("processes", [1, 2])
def test_a_budget_for_everything_gives_one_micro_batch_each(processes: int) -> None:
    assert [len(own) for own in plan_step([9] * 8, 10_000, processes)] == [1] * processes
