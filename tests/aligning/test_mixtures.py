import pytest

from prefstage.aligning import Grid
from prefstage.aligning.cells import read_cell
from prefstage.aligning.runs import align
from prefstage.judging.base import Judge, judgment_of_rewards
from prefstage.sandbox import true_reward
from tests.aligning.tiny_world import settings


class TrueRewards(Judge):
    """The world's truth as a reward for each response."""

    name = fingerprint = "true rewards"

    def score(self, items):
        return [true_reward(*item) for item in items]

    def compare(self, comparisons):
        scores = [self.score([(c.prompt, c.a), (c.prompt, c.b)]) for c in comparisons]
        return [judgment_of_rewards(a, b) for a, b in scores]


def figures_of(world, folder, schedule, judge):
    changed = {"iterations": 1, "measure": False, "evaluate": None}
    grid = Grid(recipe=settings(world, **changed), axes={"schedule": [schedule]})
    (cell,) = grid.cells
    align(cell.recipe, out=folder, judge=judge, store=folder.parent / "store")
    return read_cell(cell, folder, {})["policies"][-1]["figures"]


def test_a_mixture_by_rewards_never_scores_lower_than_what_it_was_mixed_of(world, tmp_path):
    off, mix = (
        figures_of(world, tmp_path / str(number), schedule, TrueRewards())
        for number, schedule in enumerate(("off", {"mix": 0.5}))
    )
    assert off["pairs"] == mix["pairs"]
    assert mix["avg_chosen"] >= off["avg_chosen"]
    assert mix["avg_chosen"] <= 1
    assert mix["avg_gap"] != pytest.approx(off["avg_gap"])


def test_a_mixture_by_comparisons_has_no_mean_score(world, tmp_path):
    off, mix = (
        figures_of(world, tmp_path / str(number), schedule, None)
        for number, schedule in enumerate(("off", {"mix": 0.5}))
    )
    assert "avg_chosen" in off
    assert not {"avg_chosen", "avg_gap"} & {*mix}
