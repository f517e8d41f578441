import math

import numpy as np
import pytest
import torch

from prefstage.core.errors import InputError
from prefstage.diagnosing.numbers import bootstrap_interval


def test_independent_pairs_get_the_normal_interval() -> None:
    values = (torch.arange(2000) % 4 == 0).double()
    found = bootstrap_interval(values, range(2000), resamples=2000)
    half = 1.96 * math.sqrt(0.25 * 0.75 / 2000)
    assert found.mean == 0.25
    assert found.high - found.low == pytest.approx(2 * half, rel=0.1)
    assert found.prompts == 2000


def test_pairs_of_one_prompt_are_one_draw() -> None:
    values = (torch.arange(100) % 2).double().repeat_interleave(25)
    prompts = np.arange(100).repeat(25).tolist()
    by_prompt = bootstrap_interval(values, prompts)
    by_pair = bootstrap_interval(values, range(2500))
    width = by_prompt.high - by_prompt.low
    assert width == pytest.approx(5 * (by_pair.high - by_pair.low), rel=0.15)


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        values = torch.from_numpy((rng.random(150) < 0.4).astype(float))
        found = bootstrap_interval(values, range(150), resamples=400, confidence=0.9, seed=trial)
        covered += found.low <= 0.4 <= found.high
    assert 165 <= covered <= 195  # 180 expected, standard deviation 4.2


def test_weights_are_by_pairs() -> None:
    found = bootstrap_interval(torch.tensor([0.0, 1.0, 1.0]), ["a", "b", "b"], resamples=50)
    assert found.mean == pytest.approx(2 / 3)
    assert (found.low, found.high) == (0.0, 1.0)


def test_a_seed_settles_the_draws() -> None:
    values = torch.rand(50, generator=torch.Generator().manual_seed(0))
    first, again, other = (bootstrap_interval(values, range(50), seed=s) for s in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ([], {}, "without a pair"),
        ([1.0], {"confidence": 1.0}, "confidence 1.0"),
        ([1.0, 2.0], {}, "2 values, 1 prompt ids"),
        ([1.0], {"resamples": 0}, "0 resamples"),
    ],
)
def test_bad_input_is_one_clear_line(values: list, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        bootstrap_interval(torch.tensor(values), ["a"] * min(1, len(values)), **options)
