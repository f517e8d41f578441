"""Limits, ties and running statistics, by hand."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, strategies as st

from prefstage.core.errors import ConfigError
from prefstage.losses import (
    AOT,
    BCO,
    DPO,
    REPO,
    GammaDPO,
    PairBatch,
    UnpairedBatch,
    get_loss,
    parse_loss,
)
from prefstage.losses.unpaired import reference_point
from tests.losses.loss_batches import draw_batch, draw_pairs, take

SEEDS = st.integers(0, 10**6)


def values(spec: Any, batch: Any, state: Any = None) -> torch.Tensor:
    mix = parse_loss(spec)
    return mix.compute(batch, mix.start_state() if state is None else state).values


# --- Weights of pairs --------------------------------------------------------------------------


@given(seed=SEEDS)
def test_wpo_and_ld_dpo_are_weights_on_dpo(seed: int) -> None:
    batch = draw_batch("pairs", seed=seed, scale=3.0)
    weighed = values({"name": "sigmoid", "use_weighting": True}, batch)
    torch.testing.assert_close(weighed, values("wpo", batch))
    damped = values({"name": "sigmoid", "ld_alpha": 0.5}, batch)
    torch.testing.assert_close(damped, values("ld_dpo", batch))
    both = values({"name": "simpo", "ld_alpha": 1.0, "use_weighting": True}, batch)
    share = weighed / values("sigmoid", batch)
    torch.testing.assert_close(both, share * values("simpo", batch))


def test_weights_of_pairs_are_kept_and_refused_where_they_mean_nothing() -> None:
    mix = parse_loss([{"name": "ipo", "use_weighting": True, "ld_alpha": 0.2}, "0.1*sft"])
    assert mix.needs == {"reference", "tokens", "log_sum_squares"}
    assert parse_loss(mix.resolved()) == mix
    assert "use_weighting" not in parse_loss("ipo").resolved()[0]
    for wrong in (
        {"name": "kto", "use_weighting": True},
        {"name": "sft", "ld_alpha": 0.5},
        {"name": "aot", "use_weighting": True},
        {"name": "ipo", "use_weighting": "yes"},
        {"name": "ipo", "ld_alpha": 1.5},
        {"name": "ipo", "ld_alpha": math.nan},
        {"name": "wpo", "use_weighting": True},
    ):
        with pytest.raises(ConfigError, match=str(wrong["name"])):
            parse_loss(wrong)


@given(seed=SEEDS)
def test_kto_with_imitation_counts_desirable_tokens(seed: int) -> None:
    batch = draw_batch("unpaired", seed=seed)
    total = values("kto + 0.2*sft", batch).mean()
    wanted = batch.responses.policy[batch.desirable]
    tokens = batch.responses.lengths[batch.desirable].sum()
    torch.testing.assert_close(total, values("kto", batch).mean() - 0.2 * wanted.sum() / tokens)


# --- γ-DPO and the limits of other losses -----------------------------------------------------


@given(seed=SEEDS)
def test_gamma_of_one_is_dpo_and_of_none_has_no_reference(seed: int) -> None:
    batch = draw_batch("pairs", seed=seed, scale=3.0)
    torch.testing.assert_close(values("gamma", batch), values("sigmoid", batch))
    free = values({"name": "gamma", "gamma": 0.0}, batch)
    torch.testing.assert_close(free, values({"name": "cpo", "imitation": 0.0}, batch))


@given(policy=st.floats(-50, 50), reference=st.floats(-50, 50), gamma=st.floats(0, 2))
def test_gamma_moves_the_point_where_half_the_loss_is_left(
    policy: float, reference: float, gamma: float
) -> None:
    """Loss ≤ ln 2 if and only if the margin is at least γ times the reference's."""
    own, theirs = (torch.tensor([v], dtype=torch.float64) for v in (policy, reference))
    loss = GammaDPO(beta=0.1, gamma=gamma).of_margins(own, theirs).item()
    if abs(policy - gamma * reference) > 1e-9:
        assert (loss <= math.log(2)) == (policy >= gamma * reference)


@given(seed=SEEDS)
def test_limits_of_losses_are_dpo(seed: int) -> None:
    batch = draw_batch("pairs", seed=seed, scale=3.0)
    dpo = values("sigmoid", batch)
    for spec in (
        {"name": "robust", "flip_rate": 0.0},
        {"name": "r_dpo", "alpha": 0.0},
        {"name": "ld_dpo", "alpha": 1.0},
        {"name": "dpop", "penalty": 0.0},
    ):
        torch.testing.assert_close(values(spec, batch), dpo)
    same_lengths = draw_pairs([4, 7], [4, 7], seed=seed)
    torch.testing.assert_close(values("sampo", same_lengths), values("sigmoid", same_lengths))
    even = take(batch, [0])
    torch.testing.assert_close(  # one pair has one quantile
        values({"name": "aot", "beta": 0.1}, even), values("sigmoid", even)
    )


@given(seed=SEEDS)
def test_robust_is_dpo_on_average_over_flips(seed: int) -> None:
    """E over flips of the robust loss is DPO's: the reason for its constants."""
    batch = draw_batch("pairs", seed=seed, scale=3.0)
    assert isinstance(batch, PairBatch)
    flipped = replace(batch, chosen=batch.rejected, rejected=batch.chosen)
    rate, spec = 0.2, {"name": "robust", "flip_rate": 0.2}
    mean = (1 - rate) * values(spec, batch) + rate * values(spec, flipped)
    torch.testing.assert_close(mean, values("sigmoid", batch))


@given(seed=SEEDS)
def test_soft_preferences_of_one_are_the_hard_loss(seed: int) -> None:
    batch = draw_batch("pairs", seed=seed)
    sure = replace(batch, preference=torch.ones(6, dtype=torch.float64))
    torch.testing.assert_close(values("sppo", sure), values("sppo_hard", batch))
    turned = replace(
        batch, chosen=batch.rejected, rejected=batch.chosen, preference=1 - batch.preference
    )
    torch.testing.assert_close(values("sppo", turned), values("sppo", batch))


@pytest.mark.parametrize(
    ("name", "at_start"),
    [
        ("sigmoid", math.log(2)),
        ("sigmoid_norm", math.log(2)),
        ("sgdpo", math.log(2)),
        ("sampo", math.log(2)),
        ("dpop", math.log(2)),
        ("ld_dpo", math.log(2)),
        ("beta_dpo", None),
        ("aot", math.log(2)),
        ("re_po", math.log(2)),
        ("nca", 2 * math.log(2)),
        ("bco", 2 * math.log(2)),
        ("hinge", 1.0),
        ("ipo", 25.0),
        ("apo_zero", 1.0),
        ("apo_down", 1.0),
        ("sppo_hard", 250000.0),
        ("cal_dpo", 250000.0 + math.log(2)),
        ("discopop", 0.5 * math.log(2) + 0.5),
    ],
)
def test_losses_where_policy_and_reference_are_one(name: str, at_start: float | None) -> None:
    found = values(name, draw_batch("pairs", equal=True))
    if at_start is None:  # β-DPO: of the pairs kept; the others weigh nothing
        assert sorted({round(v, 9) for v in found.tolist()}) == [0.0, round(math.log(2) * 6 / 4, 9)]
        assert found.mean().item() == pytest.approx(math.log(2))
    else:
        assert found.tolist() == pytest.approx([at_start] * 6)


# --- Sums -------------------------------------------------------------------------------------


@given(seed=SEEDS, weight=st.floats(0.01, 5))
def test_a_sum_is_the_weighted_sum(seed: int, weight: float) -> None:
    batch = draw_batch("pairs", seed=seed)
    mix = parse_loss(["sigmoid", {"name": "sft", "weight": weight}])
    found = mix.compute(batch, mix.start_state())
    parts = values("sigmoid", batch), values("sft", batch)
    torch.testing.assert_close(found.values, parts[0] + weight * parts[1])
    torch.testing.assert_close(found.metrics["loss/sigmoid"], parts[0])
    torch.testing.assert_close(found.metrics["loss/sft"], parts[1])


def test_a_sum_answers_what_its_terms_would() -> None:
    mix = parse_loss("0.5*bco + sgdpo + 2e-1*sft")
    assert [term.weight for term in mix.terms] == [0.5, 1.0, 0.2]
    assert mix.data == {"pairs"}
    assert mix.needs == {"reference", "tokens"}
    assert mix.whole_batch
    assert mix.random
    assert mix.start_state() == {"bco": {"mean": 0.0, "count": 0}}
    after = mix.compute(draw_batch("pairs"), mix.start_state()).state
    assert after["bco"]["count"] == 6
    assert parse_loss("sft").data == {"pairs", "responses", "unpaired"}
    assert parse_loss("ipo").beta == 0.1
    assert parse_loss("sft").beta is None


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("sigmod", "did you mean 'sigmoid'"),
        ("exo_pear", "did you mean 'exo_pair'"),
        ("sigmoid - 0.2*sft", "mend 'sigmoid - 0.2*sft'"),
        ("sigmoid + ", "mend ''"),
        ("0*sigmoid", "leave a loss out"),
        ("sigmoid + sigmoid", "add the weights"),
        ("sigmoid + dpo", "add the weights"),
        ("sigmoid + kto", "different data"),
        ({"beta": 0.1}, "add name"),
        ({"name": "sigmoid", "weight": -1}, "a number above 0"),
        ({"name": "sigmoid", "weight": True}, "a number above 0"),
        ({"name": "sigmoid", "f_alpha": 0.3}, "has no effect"),
        ([], "name a loss"),
        (3, "a name, a mapping"),
        ("1.2.3*sft", "mend '1.2.3*sft'"),
    ],
)
def test_a_faulty_spec_is_told_in_one_line(spec: Any, told: str) -> None:
    with pytest.raises(ConfigError) as found:
        parse_loss(spec)
    assert told in str(found.value)
    assert "\n" not in str(found.value)


def test_trls_names_lead_to_our_losses() -> None:
    names = {"exo_pair": "exo", "nca_pair": "nca", "bco_pair": "bco", "nll": "sft", "lcpo": "re_po"}
    assert {name: get_loss(name).name for name in names} == names


# --- Running statistics -----------------------------------------------------------------------


def test_bcos_shift_is_the_mean_of_all_rewards_so_far() -> None:
    loss, state, rewards = BCO(), BCO.start_state(), []
    for seed in range(5):
        batch = draw_pairs([3] * (seed + 1), [4] * (seed + 1), seed=seed, scale=4.0)
        rewards += (0.05 * (batch.chosen.log_ratios + batch.rejected.log_ratios)).tolist()
        state = loss(batch, state).state
        assert state["mean"] == pytest.approx(sum(rewards) / len(rewards))
        assert state["count"] == len(rewards)


def test_each_annotator_has_a_reliability_of_their_own() -> None:
    loss, batch = REPO(), draw_batch("pairs", scale=20.0)
    assert isinstance(batch, PairBatch)
    before = {"reliability": {"ada": 0.6}}
    found = loss(batch, before)
    p = torch.sigmoid(0.1 * (batch.chosen.log_ratios - batch.rejected.log_ratios)).tolist()
    names = batch.annotators or ()
    first = {"ada": 0.6, "ben": 0.9, "eve": 0.9}
    trust = [
        own * first[name] / (own * first[name] + (1 - own) * (1 - first[name]))
        for own, name in zip(p, names, strict=True)
    ]
    assert found.metrics["trust"].tolist() == pytest.approx(trust)
    for name, eta in first.items():
        seen = [w for w, each in zip(trust, names, strict=True) if each == name]
        expected = 0.9 * eta + 0.1 * sum(seen) / len(seen)
        assert found.state["reliability"][name] == pytest.approx(expected)
    assert before == {"reliability": {"ada": 0.6}}


@pytest.mark.parametrize("reliability", [0.0, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_annotator_is_certain_for_ever(reliability: float, dtype: torch.dtype) -> None:
    loss, batch = REPO(beta=1.0), draw_pairs([4], [4], seed=0, dtype=dtype)
    sign = 1 if reliability == 0 else -1  # what speaks against the annotator's record
    policy = (batch.chosen.reference + sign * 100).detach().requires_grad_()
    against = replace(batch, chosen=replace(batch.chosen, policy=policy))
    state = {"reliability": dict.fromkeys(("ada", "ben", "eve"), reliability)}
    found = loss(against, state)
    assert found.metrics["trust"].item() == pytest.approx(1 - reliability)
    assert torch.isfinite(found.values).all()


@given(seed=SEEDS)
def test_ktos_point_is_the_mean_cut_off_at_zero(seed: int) -> None:
    batch = draw_batch("unpaired", seed=seed, scale=3.0)
    assert isinstance(batch, UnpairedBatch)
    assert batch.mismatched is not None
    ratios = batch.mismatched.log_ratios
    point = reference_point(batch.mismatched)
    assert not point.requires_grad
    assert point.item() == pytest.approx(max(0.0, sum(ratios.tolist()) / len(ratios)))


# --- Quantiles --------------------------------------------------------------------------------

NUMBERS = st.lists(st.floats(-20, 20) | st.sampled_from([0.0, 1.0]), min_size=1, max_size=8)


@given(left=NUMBERS, data=st.data())
def test_aot_compares_quantiles_and_values_belong_to_items(
    left: list[float], data: st.DataObject
) -> None:
    right = data.draw(st.lists(st.floats(-20, 20), min_size=len(left), max_size=len(left)))
    one, other = (torch.tensor(v, dtype=torch.float64) for v in (left, right))
    found = AOT(beta=0.3).of_samples(one, other)
    quantiles = DPO(beta=0.3).of_ratios(one.sort().values, other.sort().values)
    torch.testing.assert_close(found.sort().values, quantiles.sort().values)
    for item, value in enumerate(left):
        rank = sum(each < value for each in left)
        ties = left.count(value)
        candidates = other.sort().values[rank : rank + ties]
        expected = DPO(beta=0.3).of_ratios(one[item].expand(ties), candidates)
        assert (found[item] - expected).abs().min() < 1e-12


def test_equal_values_take_one_quantile_each() -> None:
    left = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    right = torch.tensor([3.0, 1.0, 2.0], dtype=torch.float64)
    found = AOT(beta=1.0).of_samples(left, right)
    assert sorted(found.tolist()) == pytest.approx([math.log1p(math.exp(v)) for v in (1, 2, 3)])
    (slopes,) = torch.autograd.grad(found.sum(), left)
    assert torch.isfinite(slopes).all()
