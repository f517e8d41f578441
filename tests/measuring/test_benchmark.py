"""The simulation plays by the product's rules: same stop, same answer, on the same scores."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from prefstage.measuring import MeasureConfig, measure_stage
from tests.measuring.measuring_worlds import LargerIsBetter, answers

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "measuring.py"


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("measuring_benchmark", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)

    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("new_prompts", [False, True])
@pytest.mark.parametrize("skill", [-0.6, 0.0, 0.15, 0.5])
def test_a_simulated_run_ends_as_a_real_one(
    benchmark: ModuleType, skill: float, new_prompts: bool
) -> None:
    off, on = answers(300, skill=0.0), answers(300, skill=skill, seed=1)
    real, whole = (
        measure_stage(
            off,
            judge=LargerIsBetter(),
            on_policy=on,
            config=MeasureConfig(all_prompts=all_prompts, new_prompts=new_prompts),
        )
        for all_prompts in (False, True)
    )
    scores = np.array([[each.votes.score for each in whole.prompts]])
    truth = float(scores.mean())
    played = benchmark.play(scores, truth, None if new_prompts else 300)
    side = {"injection": -1.0, "fine-tuning": 1.0, "undecided": 0.0}[real.stage]
    assert (played["used"][0], played["side"][0]) == (real.prompts_used, side)
    low, high = real.interval
    assert bool(played["lost"][0]) == (not low <= truth <= high)


@pytest.mark.parametrize("world", ["votes", "ties half", "probabilities", "all or nothing"])
def test_a_world_has_the_score_it_says(benchmark: ModuleType, world: str) -> None:
    make, step = benchmark.WORLDS[world]
    rng = np.random.default_rng(0)
    scores = benchmark.settle(rng, make(rng, 0.4, (3, 2000)), 0.4, step)
    assert scores.mean(axis=1) == pytest.approx([0.4] * 3, abs=1e-9)
    assert ((scores >= 0.0) & (scores <= 1.0)).all()
    if step:
        assert (np.round(scores / step) * step == scores).all()


def test_a_cell_counts_what_happened(benchmark: ModuleType) -> None:
    cell = benchmark.simulate("votes", 0.25, runs=20, seed=0)
    assert (cell.wrong, cell.undecided, cell.runs) == (0.0, 0.0, 20)
    assert 8 <= cell.median <= cell.ninth_decile <= 100
