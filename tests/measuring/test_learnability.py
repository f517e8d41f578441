import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prefstage.core.errors import InputError
from prefstage.measuring.flips import dpo_losses
from prefstage.measuring.learnability import LEARNABILITY_GROUPS, learnability_groups, right_at_loss


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


def test_limits_out_of_order_are_an_error() -> None:
    with pytest.raises(InputError, match="easy_below=1"):
        learnability_groups(torch.zeros(1), easy_below=1.0)
