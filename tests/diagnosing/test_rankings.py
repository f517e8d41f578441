import math

import pytest
import torch
from hypothesis import given, strategies as st

from prefstage.core.errors import InputError
from prefstage.diagnosing.rankings import (
    mean_log_probs,
    order_accuracy,
    ranking_accuracy,
    ranking_accuracy_with_ties,
    reward_accuracy,
)

log_prob = st.floats(-3000, 0)
two_sides = st.lists(st.tuples(log_prob, log_prob), min_size=1, max_size=20)


def columns(rows: list, *, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    return [torch.tensor(column, dtype=dtype) for column in zip(*rows, strict=True)]


@given(two_sides)
def test_ranking_accuracy_is_the_definition(rows: list) -> None:
    assert ranking_accuracy(*columns(rows)).tolist() == [float(w >= ell) for w, ell in rows]


@given(two_sides)
def test_one_of_both_orders_is_right_and_both_only_in_a_tie(rows: list) -> None:
    chosen, rejected = columns(rows)
    both = ranking_accuracy(chosen, rejected) + ranking_accuracy(rejected, chosen)
    assert both.tolist() == [2.0 if w == ell else 1.0 for w, ell in rows]
    rewards = reward_accuracy(chosen, rejected) + reward_accuracy(rejected, chosen)
    assert rewards.tolist() == [1.0] * len(rows)


def test_length_normalisation_can_turn_the_order() -> None:
    chosen, rejected = torch.tensor([-30.0]), torch.tensor([-20.0])
    lengths = torch.tensor([30]), torch.tensor([10])
    assert ranking_accuracy(chosen, rejected).item() == 0
    normalised = mean_log_probs(chosen, lengths[0]), mean_log_probs(rejected, lengths[1])
    assert [each.item() for each in normalised] == [-1.0, -2.0]
    assert ranking_accuracy(*normalised).item() == 1


def test_sums_are_compared_beyond_float32() -> None:
    close = torch.tensor([-1000.0 - 1e-9], dtype=torch.float64)
    assert ranking_accuracy(close, torch.tensor([-1000.0])).item() == 0


def test_an_untrained_policy_has_a_reward_accuracy_of_one_half() -> None:
    assert reward_accuracy(torch.zeros(7), torch.zeros(7)).tolist() == [0.5] * 7


def test_a_policy_that_ranks_wrongly_can_have_full_reward_accuracy() -> None:
    reference_w, reference_l = torch.tensor([-20.0]), torch.tensor([-10.0])
    policy_w, policy_l = torch.tensor([-19.0]), torch.tensor([-12.0])
    assert ranking_accuracy(policy_w, policy_l).item() == 0
    assert reward_accuracy(policy_w - reference_w, policy_l - reference_l).item() == 1


@given(two_sides, st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]))
def test_ties_as_published(rows: list, alpha: float) -> None:
    found = ranking_accuracy_with_ties(*columns(rows), torch.full((len(rows),), alpha))
    assert found.tolist() == [published(math.exp(w), math.exp(ell), alpha) for w, ell in rows]


def published(first: float, second: float, alpha: float) -> float:
    """Eq. 14."""
    if alpha == 0.5:
        return float(abs(first - second) < 0.01)
    return float(first > second) if alpha > 0.5 else float(first < second)


def test_the_papers_tables_with_ties_do_not_follow_its_definition() -> None:
    """R of 14 models without (Table 4) and with ties (Table 5), in percent."""
    without = [39.1, 40.4, 40.2, 40.2, 42.1, 40.6, 41.2, 40.4, 40.2, 41.9, 42.1, 42.1, 42.1, 41.5]
    with_ties = [34.1, 35.2, 34.8, 34.8, 36.4, 35.0, 35.4, 34.8, 34.6, 36.2, 36.4, 36.4, 36.4, 35.9]
    kept = [one / other for one, other in zip(with_ties, without, strict=True)]
    assert max(kept) - min(kept) < 0.015  # one factor: no tie of any model counts as right
    ties = round(1000 * (1 - sum(kept) / len(kept)))  # of a thousand
    assert ties == 135
    # By Eq. 14 two responses of 30 tokens and more tie for every model.
    longer = torch.full((ties,), -30.0), torch.full((ties,), -90.0)
    found = ranking_accuracy_with_ties(*longer, torch.full((ties,), 0.5))
    assert found.mean().item() == 1


def test_any_two_long_responses_tie_on_probabilities_and_not_on_normalised_ones() -> None:
    chosen, rejected = torch.tensor([-100.0]), torch.tensor([-300.0])
    lengths, alpha = (torch.tensor([50]), torch.tensor([60])), torch.tensor([0.5])

    def right(scale: str) -> float:
        given_lengths = None if scale == "probability" else lengths
        return ranking_accuracy_with_ties(
            chosen, rejected, alpha, lengths=given_lengths, scale=scale
        ).item()

    assert right("probability") == 1
    assert right("normalised_probability") == 0  # e^-2 and e^-5
    assert right("normalised_log_prob") == 0


def test_ties_on_normalised_log_probs_are_relative_to_the_probability() -> None:
    first, second, alpha = torch.tensor([-50.0]), torch.tensor([-60.0]), torch.tensor([0.5])
    lengths = torch.tensor([10]), torch.tensor([10])  # e^-5 = 0.0067, e^-6 = 0.0025
    on = {
        scale: ranking_accuracy_with_ties(first, second, alpha, lengths=lengths, scale=scale).item()
        for scale in ("normalised_probability", "normalised_log_prob")
    }
    assert on == {"normalised_probability": 1.0, "normalised_log_prob": 0.0}


def test_whole_orders_must_match() -> None:
    values = [torch.tensor([-1.0, -3.0, -2.0])] * 3 + [torch.tensor([-1.0, -1.0, -5.0])]
    ranks = [
        torch.tensor([1, 3, 2]),  # the policy's order
        torch.tensor([2, 3, 1]),  # the best two are turned
        torch.tensor([1, 2, 2]),  # the last two are ranked alike: no order is asked of them
        torch.tensor([1, 2, 3]),  # equally likely responses have no order
    ]
    assert order_accuracy(values, ranks).tolist() == [1.0, 0.0, 1.0, 0.0]


@given(st.permutations(range(4)))
def test_a_random_policy_matches_one_order_of_four_in_24(order: list[int]) -> None:
    values = torch.tensor([-1.0, -2.0, -3.0, -4.0])
    right = order_accuracy([values], [torch.tensor(order)]).item()
    assert right == float(order == [0, 1, 2, 3])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: ranking_accuracy(torch.tensor([0.0, math.nan]), torch.zeros(2)),
            r"chosen\[1\] = nan",
        ),
        (lambda: mean_log_probs(torch.zeros(2), torch.tensor([1, 0])), "length of 0 tokens"),
        (
            lambda: ranking_accuracy_with_ties(torch.zeros(1), torch.zeros(1), torch.tensor([1.5])),
            "agreement from 1.5",
        ),
        (
            lambda: ranking_accuracy_with_ties(
                torch.zeros(1), torch.zeros(1), torch.ones(1), scale="normalised_log_prob"
            ),
            "without lengths",
        ),
        (
            lambda: ranking_accuracy_with_ties(
                torch.zeros(1), torch.zeros(1), torch.ones(1), tolerance=0.0
            ),
            "tolerance=0.0",
        ),
        (lambda: order_accuracy([torch.zeros(2)], []), "1 prompts with log-probs and 0"),
        (
            lambda: order_accuracy([torch.zeros(2)], [torch.tensor([1, 1])]),
            "at least two different ranks",
        ),
    ],
)
def test_bad_input_is_one_clear_line(call: object, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        call()  # type: ignore[operator] # a table of calls
    assert "\n" not in str(caught.value)
