import math

import pytest
import torch
from hypothesis import assume, given, strategies as st

from prefstage.core.errors import InputError
from prefstage.diagnosing.flips import (
    FLIP_GROUPS,
    at_threshold,
    dpo_losses,
    flip_groups,
    flip_threshold,
    ipo_flip_threshold,
    largest_flippable,
    reference_log_ratio,
    summarise_flip_groups,
    threshold_violations,
)
from prefstage.diagnosing.rankings import ranking_accuracy

log_prob = st.floats(-3000, 0)
BETAS = (0.01, 0.1, 1.0, 10.0)
"""Those that the paper searched (App. D.1)."""


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@given(*[st.floats(-40, 0)] * 4, st.sampled_from(BETAS))
def test_the_loss_is_dpos(w: float, ell: float, ref_w: float, ref_l: float, beta: float) -> None:
    c = reference_log_ratio(column(ref_w), column(ref_l))
    found = dpo_losses(column(w), column(ell), c, beta=beta).item()
    z = beta * ((w - ref_w) - (ell - ref_l))
    expected = math.log1p(math.exp(-z)) if z > -30 else -z + math.log1p(math.exp(z))
    assert found == pytest.approx(expected, rel=1e-9)


@given(
    st.lists(st.tuples(log_prob, log_prob, log_prob, log_prob), min_size=1, max_size=40),
    st.sampled_from(BETAS),
)
def test_theorem_4_1_has_no_exception(rows: list, beta: float) -> None:
    w, ell, ref_w, ref_l = (column(*each) for each in zip(*rows, strict=True))
    c = reference_log_ratio(ref_w, ref_l)
    loss, threshold = dpo_losses(w, ell, c, beta=beta), flip_threshold(c, beta=beta)
    correct = ranking_accuracy(w, ell).bool()
    assert not threshold_violations(loss, threshold, correct).any()
    # And where a loss can tell, it tells: both directions, without the ranking.
    apart = ~at_threshold(loss, threshold)
    assert (loss <= threshold)[apart].tolist() == correct[apart].tolist()


@given(log_prob, log_prob, log_prob, st.sampled_from(BETAS))
def test_a_tie_is_right_and_stands_on_the_threshold(
    same: float, ref_w: float, ref_l: float, beta: float
) -> None:
    c = reference_log_ratio(column(ref_w), column(ref_l))
    loss = dpo_losses(column(same), column(same), c, beta=beta)
    assert loss.tolist() == flip_threshold(c, beta=beta).tolist()
    assert at_threshold(loss, flip_threshold(c, beta=beta)).all()


@given(log_prob, log_prob, st.sampled_from(BETAS), st.floats(1e-3, 50))
def test_what_is_wrongly_paired_is_found(
    ref_w: float, ref_l: float, beta: float, apart: float
) -> None:
    c = reference_log_ratio(column(ref_w), column(ref_l))
    assume(beta * abs(c.item()) < 500)  # beyond, losses of float64 are alike
    right, wrong = (dpo_losses(column(0.0), column(-gap), c, beta=beta) for gap in (apart, -apart))
    threshold = flip_threshold(c, beta=beta)
    told_apart = not at_threshold(right, threshold) and not at_threshold(wrong, threshold)
    assert told_apart
    assert threshold_violations(right, threshold, torch.tensor([False])).all()
    assert threshold_violations(wrong, threshold, torch.tensor([True])).all()


def test_a_loss_beyond_float64_decides_nothing() -> None:
    c = column(9000.0)
    loss, threshold = (
        dpo_losses(column(-1.0), column(0.0), c, beta=1.0),
        flip_threshold(c, beta=1.0),
    )
    assert loss.item() == threshold.item() == 0.0
    assert at_threshold(loss, threshold).all()
    assert not threshold_violations(loss, threshold, torch.tensor([False])).any()


def test_known_thresholds() -> None:
    assert flip_threshold(column(0.0), beta=0.1).item() == pytest.approx(math.log(2))
    # Large c: e^(-βc). Very negative c: -βc, a loss that no pair is trained to.
    assert flip_threshold(column(400.0), beta=0.1).item() == pytest.approx(math.exp(-40), rel=1e-9)
    assert flip_threshold(column(-400.0), beta=0.1).item() == pytest.approx(40, rel=1e-9)


@pytest.mark.parametrize(
    ("log_ratio", "loss", "right"),
    [
        (457.6, 3.05, False),  # Table 7: hard to learn
        (423.4, 2.2, False),
        (418.7, 0.95, False),
        (-675.9, 0.16, True),  # Table 8: easy to learn
        (-562.1, 0.052, True),
        (-522.5, 0.003, True),
        (0.26, 0.86, False),  # Table 9: easy to flip; the first one was not
        (0.28, 0.19, True),
        (0.45, 0.16, True),
    ],
)
@pytest.mark.parametrize("beta", [0.01, 0.1])
def test_examples_that_the_paper_prints(
    log_ratio: float, loss: float, right: bool, beta: float
) -> None:
    assert (loss <= flip_threshold(column(log_ratio), beta=beta).item()) == right
    assert (log_ratio <= largest_flippable(loss, beta=beta)) == right


@given(st.floats(0, 3000), st.floats(0.01, 10), st.floats(-1000, 1000), st.floats(-1000, 1000))
def test_a_loss_of_0_6_keeps_what_the_reference_has_right(
    by: float, beta: float, w: float, ell: float
) -> None:
    """Proposition 2.6."""
    c = column(-by)
    loss = dpo_losses(column(w), column(ell), c, beta=beta).item()
    if loss <= 0.6:
        assert w >= ell


@given(st.floats(1e-6, 30), st.floats(0.01, 10))
def test_largest_flippable_inverts_the_threshold(loss: float, beta: float) -> None:
    c = largest_flippable(loss, beta=beta)
    assert flip_threshold(column(c), beta=beta).item() == pytest.approx(loss, rel=1e-6)


@given(st.floats(-100, 100), st.floats(0.01, 1), st.floats(-100, 100))
def test_ipo_guarantee(c: float, tau: float, log_ratio: float) -> None:
    """Proposition A.7; the loss in the form of its decomposition."""
    rho = -c
    loss = (log_ratio - rho - 1 / (2 * tau)) ** 2
    threshold = ipo_flip_threshold(column(c), tau=tau).item()
    if rho < -1 / (2 * tau):
        assert math.isnan(threshold)
        assert rho + 1 / (2 * tau) < 0  # the log-ratio at zero loss
    else:
        assert threshold == pytest.approx((rho + 1 / (2 * tau)) ** 2)
        if loss < threshold * (1 - 1e-9):
            assert log_ratio > 0


def test_the_four_groups() -> None:
    reference = torch.tensor([True, True, False, False, False])
    policy = torch.tensor([True, False, True, False, False])
    groups = flip_groups(reference, policy)
    assert [FLIP_GROUPS[group] for group in groups] == [
        "correct->correct",
        "correct->incorrect",
        "incorrect->correct",
        "incorrect->incorrect",
        "incorrect->incorrect",
    ]
    loss, margin = column(1, 2, 3, 4, 6), column(-1, -2, -3, -4, -6)
    found = summarise_flip_groups(groups, loss, margin)
    assert [(each.pairs, each.share) for each in found.values()] == [
        (1, 0.2),
        (1, 0.2),
        (1, 0.2),
        (2, 0.4),
    ]
    assert [each.loss for each in found.values()] == [1, 2, 3, 5]
    assert [each.reward_margin for each in found.values()] == [-1, -2, -3, -5]


def test_an_empty_group_has_no_mean() -> None:
    found = summarise_flip_groups(torch.tensor([0, 0]), column(1, 2), column(0, 0))
    empty = found["incorrect->correct"]
    assert (empty.pairs, empty.share, empty.loss, empty.reward_margin) == (0, 0.0, None, None)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: flip_threshold(column(1), beta=0.0), "beta=0"),
        (lambda: flip_threshold(column(math.inf), beta=1.0), r"log_ratio\[0\] = inf"),
        (lambda: largest_flippable(0.0, beta=0.1), "loss=0.0"),
        (lambda: ipo_flip_threshold(column(1), tau=-1.0), "tau=-1"),
        (
            lambda: summarise_flip_groups(torch.zeros(0, dtype=torch.long), column(), column()),
            "without a pair",
        ),
    ],
)
def test_bad_input_is_one_clear_line(call: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()  # type: ignore[operator] # a table of calls
