import math

import pytest
import torch

from prefstage.core.errors import InputError
from prefstage.diagnosing.flips import fluctuation_range, intra_diversity


def test_mean_spread_and_quantiles() -> None:
    found = intra_diversity(torch.tensor([-1.0, -2.0, -3.0]), torch.tensor([-3.0, -2.0, -1.0]))
    assert (found.mean, found.pairs) == (0.0, 3)
    assert found.std == pytest.approx(math.sqrt(8 / 3))
    assert found.quantiles[0.5] == 0.0
    assert found.quantiles[0.25] == -1.0
    assert found.quantiles[0.95] == pytest.approx(1.8)


def test_fluctuation_is_greatest_less_least() -> None:
    assert fluctuation_range([1.0, -2.0, 3.5]) == 5.5


def test_nothing_to_measure_is_an_error() -> None:
    with pytest.raises(InputError, match="without a pair"):
        intra_diversity(torch.zeros(0), torch.zeros(0))
    with pytest.raises(InputError, match="no evaluation"):
        fluctuation_range([])
