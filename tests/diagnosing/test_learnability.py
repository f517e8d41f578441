import pytest
import torch
from hypothesis import given, strategies as st

from prefstage.core.errors import InputError
from prefstage.diagnosing.flips import (
    LEARNABILITY_GROUPS,
    dpo_losses,
    learnability_groups,
    right_at_loss,
)


def test_groups_by_the_papers_examples() -> None:
    ratios = [457.6, 418.7, -675.9, -522.5, 0.26, 0.45, 0.0, -3.0, 20.0]  # Tables 7, 8, 9; others
    found = [LEARNABILITY_GROUPS[each] for each in learnability_groups(torch.tensor(ratios))]
    assert found == ["hard"] * 2 + ["easy"] * 2 + ["easy to flip"] * 2 + ["between"] * 3


def test_limits_are_in_the_reader_s_hand() -> None:
    ratios = torch.tensor([-1.0, 1.0, 3.0, 9.0])
    found = learnability_groups(ratios, easy_below=-1.0, flip_below=2.0, hard_above=9.0)
    assert [LEARNABILITY_GROUPS[each] for each in found] == [
        "easy",
        "easy to flip",
        "between",
        "hard",
    ]


@given(st.floats(-200, 200), st.floats(0.01, 2), st.floats(-200, 200))
def test_reaching_the_loss_is_being_right(c: float, beta: float, apart: float) -> None:
    ratio = torch.tensor([c], dtype=torch.float64)
    policy = torch.tensor([apart], dtype=torch.float64)
    loss = dpo_losses(policy, torch.zeros_like(policy), ratio, beta=beta).item()
    if loss > 1e-12 and abs(apart) > 1e-3:
        assert right_at_loss(ratio, loss=loss, beta=beta).item() == (apart > 0)


ratios = st.lists(st.floats(-500, 500), min_size=1, max_size=30)


@given(ratios)
def test_every_pair_is_in_one_group_and_hard_ones_are_harder(values: list[float]) -> None:
    c = torch.tensor(values, dtype=torch.float64)
    groups = learnability_groups(c)
    assert sum(int((groups == n).sum()) for n in range(len(LEARNABILITY_GROUPS))) == len(values)
    by_name = {name: c[groups == n] for n, name in enumerate(LEARNABILITY_GROUPS)}
    assert (by_name["easy"] <= -50).all()
    assert ((by_name["easy to flip"] > 0) & (by_name["easy to flip"] <= 5)).all()
    assert (by_name["hard"] >= 50).all()


@given(ratios, st.floats(0.01, 5), st.floats(0.01, 5), st.floats(0.01, 1))
def test_a_lower_loss_mends_more(
    values: list[float], one: float, other: float, beta: float
) -> None:
    c = torch.tensor(values, dtype=torch.float64)
    low, high = (right_at_loss(c, loss=each, beta=beta) for each in sorted((one, other)))
    assert (low | ~high).all()  # what is right at the higher loss is right at the lower one


@given(ratios, st.floats(0.01, 0.69), st.floats(0.01, 1), st.floats(0.01, 1))
def test_below_log_2_a_smaller_beta_mends_more(
    values: list[float], loss: float, one: float, other: float
) -> None:
    c = torch.tensor(values, dtype=torch.float64)
    small, large = (right_at_loss(c, loss=loss, beta=each) for each in sorted((one, other)))
    assert (small | ~large).all()


def test_thresholds_by_hand() -> None:
    # L = 0.5: c* = -ln(e^0.5 - 1)/β = 0.43275/β.
    c = torch.tensor([4.32, 4.33, 43.2, 43.3], dtype=torch.float64)
    assert right_at_loss(c, loss=0.5, beta=0.1).tolist() == [True, False, False, False]
    assert right_at_loss(c, loss=0.5, beta=0.01).tolist() == [True, True, True, False]


def test_limits_out_of_order_are_an_error() -> None:
    with pytest.raises(InputError, match="easy_below=1"):
        learnability_groups(torch.zeros(1), easy_below=1.0)
