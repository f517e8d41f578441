import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import fisher_exact as of_scipy

from prefstage.aligning.agreement import Start, by_gain, by_ratio, fisher_exact

COUNT = st.integers(0, 30)


@given(COUNT, COUNT, COUNT, COUNT)
def test_the_exact_test_is_scipys(a, b, c, d):
    counts = [[a, b], [c, d]]
    assert fisher_exact(counts) == pytest.approx(of_scipy(counts).pvalue, rel=1e-9)


def test_the_ratio_is_the_papers():
    assert Start("", 0.4, 12.65, 5.58).ratio == pytest.approx(2.27, abs=0.005)  # Zephyr, Table 1
    assert Start("", 0.2, 0.16, -1.60).ratio == math.inf  # Phi-2: only off gains
    assert Start("", 0.66, -0.70, -11.93).ratio is None  # Llama-3 with SLiC-HF: nothing gains
    assert Start("", 0.7, -1.0, 2.0).ratio == -0.5


def test_starts_are_counted_by_both_questions():
    starts = [
        Start("a", 0.3, 2.0, 1.0),
        Start("b", 0.3, 1.0, 2.0),
        Start("c", 0.8, 1.0, 2.0),
        Start("d", 0.5, 1.0, -1.0),
        Start("e", 0.9, -2.0, -1.0),
        Start("f", 0.9, 0.0, 0.0),
    ]
    ratio, gain = by_ratio(starts), by_gain(starts)
    assert (ratio.counts, ratio.left_out) == (((1, 1), (1, 1)), 2)
    assert ratio.agreement == 0.5
    assert ratio.p_value == 1.0
    assert (gain.counts, gain.left_out) == (((1, 1), (1, 2)), 1)
    assert gain.agreement == 0.6


def test_nothing_counted_is_no_agreement():
    empty = by_ratio([])
    assert empty.agreement is None
    assert empty.as_dict()["p_value"] == 1.0
