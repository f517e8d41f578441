import numpy as np
import pytest
from hypothesis import given, strategies as st
from hypothesis.extra.numpy import arrays

from prefstage.data import storage
from prefstage.data.storage import DiskNumbers, count_different, different, pieces, text_number
from prefstage.diagnosing.numbers import describe_sorted, histogram

floats = st.one_of(st.floats(-1e6, 1e6), st.just(float("nan")))


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(storage, "_PIECE", 3)


@given(st.lists(arrays(np.float64, st.integers(0, 5), elements=floats), max_size=5))
def test_figures_on_disk_are_those_of_numpy(chunks):
    values = np.concatenate([np.zeros(0), *chunks])
    with DiskNumbers() as numbers:
        for chunk in chunks:
            numbers.extend(chunk)
        assert len(numbers) == len(values)
        np.testing.assert_array_equal(numbers.sort(), np.sort(values))
        found = describe_sorted(numbers.sort())
    there = values[~np.isnan(values)]
    assert (found["count"], found["missing"]) == (len(there), len(values) - len(there))
    if not len(there):
        assert found["mean"] is None
        return
    assert found["mean"] == pytest.approx(there.mean(), abs=1e-6)
    names = {"min": 0, "q25": 0.25, "median": 0.5, "q75": 0.75, "max": 1}
    for name, share in names.items():
        assert found[name] == pytest.approx(np.quantile(there, share), abs=1e-6)
    if len(there) > 1:
        assert found["std"] == pytest.approx(there.std(ddof=1), rel=1e-9, abs=1e-6)
    assert describe_sorted(np.sort(values)) == found
    shown = histogram(values)
    assert sum(shown["counts"]) == len(there)
    if np.ptp(there) == 0 or np.ptp(there) > 1e-6:
        assert shown["edges"] == pytest.approx(np.histogram_bin_edges(there, bins=20).tolist())


def test_numbers_that_differ_by_rounding_have_a_histogram():
    shown = histogram(np.array([0.3, 0.1 + 0.2, 0.3]))
    assert (shown["edges"][0], shown["edges"][-1]) == pytest.approx((-0.2, 0.8))
    assert sum(shown["counts"]) == 3
    assert sum(histogram(np.array([0.0, 5e-324]))["counts"]) == 2


@given(st.lists(st.integers(0, 9)))
def test_different_numbers_are_found_across_pieces(values):
    with DiskNumbers("uint64") as numbers:
        numbers.extend(values)
        assert count_different(numbers) == len(set(values))
        assert [each for piece in different(numbers) for each in piece] == sorted(set(values))


def test_equal_texts_have_equal_hashes_and_files_go():
    with DiskNumbers("uint64", map(text_number, ["a", "b", "a", "c", "b"])) as hashes:
        stream = hashes._stream  # a temporary file, which goes when it is closed
        assert not stream.closed
        assert len(hashes) == 5
        assert count_different(hashes) == 3
    assert stream.closed


def test_pieces_cover_everything_in_order():
    values = np.arange(10)
    assert np.concatenate(list(pieces(values))).tolist() == values.tolist()
