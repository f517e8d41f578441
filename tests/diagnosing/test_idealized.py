import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, strategies as st

from prefstage.core.errors import InputError
from prefstage.diagnosing.rankings import (
    BETAS,
    IdealizedAccuracy,
    alignment_gap,
    idealized_log_ratio,
    idealized_ranking_accuracy,
)

log_prob = st.floats(-600, 0)
share = st.sampled_from([0.5, 0.75, 0.9, 1.0])


def column(values: Sequence[float]) -> torch.Tensor:
    return torch.tensor(list(values), dtype=torch.float64)


@given(st.floats(-5, 0), st.floats(-5, 0), st.floats(0.01, 0.99), st.sampled_from(BETAS[1:]))
def test_the_optimum_is_the_papers_product(w: float, ell: float, alpha: float, beta: float) -> None:
    found = idealized_log_ratio(column([w]), column([ell]), column([alpha]), beta=beta)
    ratio = math.exp(w) / math.exp(ell) * (alpha / (1 - alpha)) ** (1 / beta)
    assert found.item() == pytest.approx(math.log(ratio), rel=1e-9, abs=1e-9)


def test_hand_computed_cases() -> None:
    # c = 2, 20, 200 nats wrong; three of four raters: log 3 = 1.0986 is added 1/β times.
    chosen, rejected = column([-12.0, -30.0, -210.0]), column([-10.0, -10.0, -10.0])
    found = idealized_ranking_accuracy(chosen, rejected, column([0.75] * 3))
    assert found.by_beta == {
        0.01: pytest.approx(2 / 3),  # 109.9 > 2, 20
        0.1: pytest.approx(1 / 3),  # 10.99 > 2
        1.0: 0.0,  # 1.0986 < 2
        5.0: 0.0,
        10.0: 0.0,
    }
    assert (found.min, found.median, found.max) == (0.0, 0.0, pytest.approx(2 / 3))


def test_unanimity_is_read_as_one_in_a_thousand_and_nothing_else_is_touched() -> None:
    found = idealized_log_ratio(
        column([0.0] * 3), column([0.0] * 3), column([1.0, 0.0, 0.9999]), beta=1.0
    )
    assert found.tolist() == pytest.approx([math.log(999), -math.log(999), math.log(9999)])


@given(st.lists(st.tuples(log_prob, log_prob, share), min_size=1, max_size=20))
def test_it_falls_with_beta_where_the_reference_is_wrong_and_most_raters_agree(rows: list) -> None:
    wrong = [(min(w, ell), max(w, ell), max(a, 0.75)) for w, ell, a in rows]
    values = list(
        idealized_ranking_accuracy(*map(column, zip(*wrong, strict=True))).by_beta.values()
    )
    assert values == sorted(values, reverse=True)


@given(st.lists(st.tuples(log_prob, log_prob), min_size=1, max_size=20))
def test_split_raters_leave_the_references_strict_order(rows: list) -> None:
    chosen, rejected = map(column, zip(*rows, strict=True))
    found = idealized_ranking_accuracy(chosen, rejected, torch.full_like(chosen, 0.5))
    assert set(found.by_beta.values()) == {sum(w > ell for w, ell in rows) / len(rows)}


@given(st.lists(st.tuples(log_prob, log_prob, st.floats(0.01, 0.99)), min_size=1, max_size=20))
def test_exchanging_the_responses_and_the_votes_turns_every_order(rows: list) -> None:
    chosen, rejected, alpha = map(column, zip(*rows, strict=True))
    for beta in BETAS:
        one = idealized_log_ratio(chosen, rejected, alpha, beta=beta)
        other = idealized_log_ratio(rejected, chosen, 1 - alpha, beta=beta)
        assert one.tolist() == pytest.approx((-other).tolist(), rel=1e-9, abs=1e-9)


whole = st.integers(-600, 0).map(float)


@given(st.lists(st.tuples(whole, whole, share), min_size=1, max_size=20))
def test_between_the_raters_order_and_the_references(rows: list) -> None:
    """β → 0 is the raters' order, β → ∞ the reference's."""
    columns = list(map(column, zip(*rows, strict=True)))
    limits = {
        1e-9: [w > ell if alpha == 0.5 else alpha > 0.5 for w, ell, alpha in rows],
        1e12: [w > ell or (w == ell and alpha > 0.5) for w, ell, alpha in rows],
    }
    for beta, right in limits.items():
        found = idealized_ranking_accuracy(*columns, betas=[beta]).median
        assert found == pytest.approx(sum(right) / len(right))


@given(st.lists(st.tuples(log_prob, log_prob, share), min_size=1, max_size=20))
def test_where_the_reference_is_right_and_most_raters_agree_it_is_always_right(rows: list) -> None:
    right = [(max(w, ell), min(w, ell), max(a, 0.75)) for w, ell, a in rows]
    found = idealized_ranking_accuracy(*map(column, zip(*right, strict=True)))
    assert set(found.by_beta.values()) == {1.0}


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9), st.floats(0, 1))
def test_the_gap_is_what_lacks_to_the_median(values: list[float], observed: float) -> None:
    ideal = IdealizedAccuracy({float(beta): value for beta, value in enumerate(values)})
    gap = alignment_gap(ideal, observed)
    assert gap + observed == pytest.approx(ideal.median)
    assert ideal.min <= ideal.median <= ideal.max
    assert -1 <= gap <= 1


@pytest.mark.parametrize(
    ("gap", "idealized", "observed"),
    [
        (0.57, (0.90, 0.99, 1.00), 0.42),  # Zephyr-7B-DPO, R
        (0.59, (0.91, 0.99, 1.00), 0.40),  # Llama-2-7B-Chat, R: the largest
        (0.19, (0.73, 0.73, 0.97), 0.54),  # Gemma-7B-IT, R̃: the smallest
    ],
)
def test_gaps_of_table_1(gap: float, idealized: tuple, observed: float) -> None:
    least, middle, most = idealized
    # Five values of β of which the table prints three.
    five = dict(zip(BETAS, (most, most, middle, least, least), strict=True))
    assert alignment_gap(IdealizedAccuracy(five), observed) == pytest.approx(gap)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: idealized_ranking_accuracy(column([]), column([]), column([])),
            "without a pair",
        ),
        (
            lambda: idealized_ranking_accuracy(column([0]), column([0]), column([1]), betas=()),
            "no β",
        ),
        (
            lambda: idealized_log_ratio(column([0]), column([0]), column([-0.1]), beta=1.0),
            "agreement from -0.1",
        ),
        (lambda: idealized_log_ratio(column([0]), column([0]), column([1]), beta=0.0), "beta=0"),
    ],
)
def test_bad_input_is_one_clear_line(call: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()  # type: ignore[operator] # a table of calls
