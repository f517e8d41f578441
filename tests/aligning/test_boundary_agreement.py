import math

import pytest
from hypothesis import given, strategies as st

from prefstage.aligning.tables import Start, agreement

COUNT = st.integers(0, 30)


@given(COUNT, COUNT, COUNT, COUNT)
def test_the_exact_test_counts_all_tables_that_are_no_likelier(a, b, c, d):
    row, column, total = a + b, a + c, a + b + c + d
    ways = [
        math.comb(row, k) * math.comb(total - row, column - k)
        for k in range(max(0, column - (total - row)), min(row, column) + 1)
    ]
    seen = math.comb(row, a) * math.comb(total - row, column - a)
    p = sum(way for way in ways if way <= seen) / sum(ways)
    counted = agreement(
        [
            Start("", score, off, 1.0)
            for count, score, off in ((a, 0.3, 2.0), (b, 0.3, 0.5), (c, 0.8, 2.0), (d, 0.8, 0.5))
            for _ in range(count)
        ]
    )["gain"]
    assert counted["counts"] == ((a, b), (c, d))
    assert counted["p_value"] == pytest.approx(p, rel=1e-9)


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
    found = agreement(starts)
    assert found["starts"][0] == {"where": "a", "boundary_score": 0.3, "off": 2.0, "on": 1.0}
    ratio, gain = found["ratio"], found["gain"]
    assert (ratio["counts"], ratio["left_out"]) == (((1, 1), (1, 1)), 2)
    assert ratio["agreement"] == 0.5
    assert ratio["p_value"] == 1.0
    assert (gain["counts"], gain["left_out"]) == (((1, 1), (1, 2)), 1)
    assert gain["agreement"] == 0.6


def test_nothing_counted_is_no_agreement():
    for kind in ("ratio", "gain"):
        empty = agreement([])[kind]
        assert empty["agreement"] is None
        assert empty["p_value"] == 1.0
