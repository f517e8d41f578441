import subprocess
import sys

from hypothesis import given, strategies as st

from prefstage.core.files import seed_for

NAME = st.text() | st.integers()


@given(seed=st.integers(), names=st.lists(NAME, max_size=4))
def test_seed_is_a_positive_64_bit_number(seed: int, names: list[str | int]) -> None:
    assert 0 <= seed_for(seed, *names) < 2**63


@given(one=st.lists(NAME, max_size=3), other=st.lists(NAME, max_size=3))
def test_different_names_give_different_seeds(one: list[str | int], other: list[str | int]) -> None:
    assert (seed_for(0, *one) == seed_for(0, *other)) == (one == other)


def test_types_and_borders_of_names_count() -> None:
    assert seed_for(0, "1") != seed_for(0, 1)
    assert seed_for(0, "a", "b") != seed_for(0, "a\x1fstr:b")
    assert seed_for(0, "a") != seed_for(1, "a")


def test_seed_is_the_same_in_another_process() -> None:
    script = "from prefstage.core.files import seed_for; print(seed_for(7, 'sample', 'x', 1))"
    printed = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    ).stdout
    assert int(printed) == seed_for(7, "sample", "x", 1)
