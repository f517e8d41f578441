"""What the registry says of a loss is true: one suite over all of them."""

import json
import math
from dataclasses import fields, replace
from typing import Any

import pytest
import torch

from prefstage.core.errors import ConfigError, InputError
from prefstage.losses import LOSSES, Loss, LossBatch, Responses, get_loss, parse_loss
from prefstage.losses.base import PairBatch, Totals
from prefstage.losses.mixing import TRL_SETTINGS, reward_accuracies
from tests.losses.loss_batches import (
    ITEMS,
    change_responses,
    draw_batch,
    kinds_of,
    learners,
    pad,
    take,
)

CASES = [(name, kind) for name in LOSSES for kind in kinds_of(LOSSES[name])]
every_loss = pytest.mark.parametrize("name", list(LOSSES))
every_case = pytest.mark.parametrize(("name", "kind"), CASES)

ON_SIDES = ("reference", "scores", "log_sum_squares")
ON_BATCHES = ("preference", "mismatched", "annotators", "seeds", "gold", "density_ratio")


def compute(name: str, batch: LossBatch, state: Any = None) -> Any:
    loss = LOSSES[name]
    return loss()(batch, state)


def without(batch: LossBatch, field: str) -> LossBatch:
    if field in ON_SIDES:
        return change_responses(batch, lambda side: replace(side, **{field: None}))
    return replace(batch, **{field: None})


def has(batch: LossBatch, field: str) -> bool:
    return field in ON_SIDES or field in {each.name for each in fields(batch)}


def reads(loss: type[Loss]) -> set[str]:
    return {*loss.needs, *loss.optional, *(["seeds"] if loss.random else [])}


# --- Names and settings ---------------------------------------------------------------------


def test_names_and_aliases_are_unique() -> None:
    names = [*LOSSES, *(alias for loss in LOSSES.values() for alias in loss.aliases)]
    assert len(names) == len(set(names))
    assert all(get_loss(alias) is loss for loss in LOSSES.values() for alias in loss.aliases)


@every_loss
def test_an_entry_says_what_it_is(name: str) -> None:
    loss = LOSSES[name]
    assert loss.name == name
    assert loss.summary
    assert loss.formula
    assert loss.source
    assert loss.data
    assert not loss.needs & loss.optional
    assert all(each.description for each in loss.model_fields.values())


@every_case
def test_defaults_are_accepted(name: str, kind: str) -> None:
    found = compute(name, draw_batch(kind))
    assert found.values.shape == (ITEMS,)
    assert torch.isfinite(found.values).all()
    mix = parse_loss(name)
    assert mix.resolved() == [{"name": name, "weight": 1.0, **LOSSES[name]().model_dump()}]
    assert parse_loss(mix.resolved()) == mix
    assert parse_loss(json.loads(json.dumps(mix.resolved()))) == mix


@every_loss
def test_an_unknown_setting_names_the_nearest(name: str) -> None:
    for field in [*LOSSES[name].model_fields, "weight"]:
        with pytest.raises(ConfigError, match=f"did you mean '{field}'") as found:
            parse_loss({"name": name, f"{field}x": 1.0})
        assert f"loss {name}: unknown setting '{field}x'" in str(found.value)
        assert "\n" not in str(found.value)


@every_loss
def test_no_setting_is_not_a_number(name: str) -> None:
    for field in LOSSES[name].model_fields:
        for wrong in (math.nan, math.inf, "much", -1e9):
            if (field, wrong) == ("f_alpha", -1e9):
                continue  # every α is one, though it says where it has no effect
            with pytest.raises(ConfigError, match=field):
                parse_loss({"name": name, field: wrong})


@pytest.mark.parametrize(
    ("name", "trl"),
    [
        ("sigmoid", "label_smoothing"),
        ("sigmoid", "f_divergence_type"),
        ("sigmoid", "f_alpha_divergence_coef"),
        ("ipo", "beta"),
        ("discopop", "discopop_tau"),
        ("ld_dpo", "ld_alpha"),
        ("cpo", "cpo_alpha"),
        ("simpo", "simpo_gamma"),
        ("simpo", "label_smoothing"),
        ("alphapo", "simpo_gamma"),
        ("cpo", "label_smoothing"),
        ("cpo", "loss_type"),
        ("tpo", "loss_type"),
        ("tpo", "tpo_alpha"),
        ("tpo-l", "tpo_l_gamma"),
        ("bco_udm", "min_density_ratio"),
    ],
)
def test_trls_name_of_a_setting_leads_to_ours(name: str, trl: str) -> None:
    with pytest.raises(ConfigError, match=f"did you mean '{TRL_SETTINGS[trl]}'"):
        parse_loss({"name": name, trl: 0.1})


def test_a_name_in_capitals_leads_to_ours() -> None:
    for name, ours in (("TPO", "tpo"), ("SimPO", "simpo"), ("chi-po", "chi_po")):
        with pytest.raises(ConfigError, match=f"did you mean '{ours}'"):
            get_loss(name)


# --- What a loss needs ----------------------------------------------------------------------


@every_case
def test_a_loss_without_what_it_needs_says_so(name: str, kind: str) -> None:
    loss, batch = LOSSES[name], draw_batch(kind)
    needed = sorted({*loss.needs, *(["seeds"] if loss.random else [])} - {"tokens"})
    for field in needed:
        with pytest.raises(InputError) as found:
            compute(name, without(batch, field))
        message = str(found.value)
        assert message.startswith(f"loss {name!r} on a batch without {field}; expected ")
        assert "\n" not in message


@every_case
def test_what_a_loss_does_not_need_changes_nothing(name: str, kind: str) -> None:
    loss, batch = LOSSES[name], draw_batch(kind)
    plain = compute(name, batch)
    for field in {*ON_SIDES, *ON_BATCHES} - reads(loss):
        if has(batch, field):
            found = compute(name, without(batch, field))
            assert torch.equal(found.values, plain.values)
            assert found.state == plain.state


@every_case
def test_what_a_loss_needs_it_reads(name: str, kind: str) -> None:
    """Another value of a needed field gives another loss or state."""
    loss, batch = LOSSES[name], draw_batch(kind)
    other = change_responses(
        draw_batch(kind), lambda side: replace(side, policy=torch.zeros_like(side.policy))
    )
    strange = {
        "annotators": ("zoe",) * ITEMS,
        "seeds": torch.arange(ITEMS) + 77,
        "preference": torch.linspace(0, 1, ITEMS, dtype=torch.float64),
        "mismatched": getattr(other, "responses", None),
        "gold": getattr(other, "gold", None),
        "density_ratio": torch.linspace(0.6, 9, ITEMS, dtype=torch.float64),
    }
    state = {"reliability": {"ada": 0.6, "ben": 0.7}} if name == "re_po" else None
    plain = compute(name, batch, state)
    for field in reads(loss) - {"tokens"}:
        if field in ON_SIDES:
            changed = change_responses(batch, lambda side, field=field: _shifted(side, field))
        else:
            changed = replace(batch, **{field: strange[field]})
        assert not torch.equal(compute(name, changed, state).values, plain.values), field


def _shifted(side: Responses, field: str) -> Responses:
    """The values of one field changed, each otherwise."""
    value = getattr(side, field)
    steps = torch.linspace(0.1, 1, value.numel(), dtype=value.dtype).reshape(value.shape)
    return replace(side, **{field: value * (1 + steps)})  # not alike on both sides


@every_case
def test_optional_fields_may_be_missing(name: str, kind: str) -> None:
    batch = draw_batch(kind)
    for field in LOSSES[name].optional:
        assert torch.isfinite(compute(name, without(batch, field)).values).all()


@every_loss
def test_another_kind_of_data_is_refused(name: str) -> None:
    for kind in {"pairs", "groups", "unpaired", "responses"} - LOSSES[name].data:
        with pytest.raises(InputError, match=f"loss {name!r} with a"):
            compute(name, draw_batch(kind))


# --- Items and batches ----------------------------------------------------------------------


@every_case
def test_whole_batch_is_true(name: str, kind: str) -> None:
    """An item's value depends on the others of its batch if and only if the entry says so."""
    batch = draw_batch(kind, scale=3.0)
    whole = compute(name, batch).values
    parts = [compute(name, take(batch, own)).values for own in ([0, 1, 2], [3], [4, 5])]
    alone = torch.allclose(torch.cat(parts), whole, rtol=1e-12, atol=1e-12)
    assert alone is not LOSSES[name].whole_batch


@pytest.mark.parametrize(
    ("name", "kind"), [each for each in CASES if not LOSSES[each[0]].whole_batch]
)
def test_parts_add_up_to_the_objective(name: str, kind: str) -> None:
    """Sum over parts, divided by all items, is the mean; its gradient too."""
    batch = draw_batch(kind)
    whole = compute(name, batch).values.mean()
    slopes = torch.autograd.grad(
        whole, [side.policy for side in learners(batch)], allow_unused=True
    )
    total = sum(compute(name, take(batch, own)).values.sum() for own in ([0, 4], [5], [1, 2, 3]))
    objective = total / batch.totals.items
    torch.testing.assert_close(objective, whole)
    again = torch.autograd.grad(
        objective, [side.policy for side in learners(batch)], allow_unused=True
    )
    for one, other in zip(slopes, again, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other)


@every_case
def test_the_order_of_items_does_not_matter(name: str, kind: str) -> None:
    batch, order = draw_batch(kind, scale=3.0), [3, 0, 5, 1, 4, 2]
    plain, turned = compute(name, batch), compute(name, take(batch, order))
    torch.testing.assert_close(turned.values, plain.values[order], rtol=1e-12, atol=1e-12)
    assert flat(turned.state) == pytest.approx(flat(plain.state))


@every_case
def test_padding_does_not_matter(name: str, kind: str) -> None:
    batch = draw_batch(kind)
    plain, padded = compute(name, batch), compute(name, pad(batch, 13))
    torch.testing.assert_close(padded.values, plain.values, rtol=1e-12, atol=1e-12)
    assert flat(padded.state) == pytest.approx(flat(plain.state))


def flat(state: dict[str, Any]) -> dict[str, float]:
    """Numbers of a state, nested ones by both names."""
    found: dict[str, float] = {}
    for name, value in state.items():
        inner = value.items() if isinstance(value, dict) else [("", value)]
        found |= {f"{name}/{key}": number for key, number in inner}
    return found


# --- Random draws ---------------------------------------------------------------------------


@every_case
def test_random_losses_depend_on_their_seeds_alone(name: str, kind: str) -> None:
    loss, batch = LOSSES[name], draw_batch(kind, scale=3.0)
    torch.manual_seed(1)
    first, before = compute(name, batch).values, torch.random.get_rng_state()
    torch.manual_seed(2)
    again = compute(name, batch).values
    assert torch.equal(first, again)
    torch.manual_seed(1)
    compute(name, batch)
    assert torch.equal(before, torch.random.get_rng_state())  # and leave the global state alone
    if loss.random:
        others = [compute(name, replace(batch, seeds=batch.seeds + n)).values for n in (1, 2, 3)]
        assert any(not torch.equal(each, first) for each in others)


# --- State ----------------------------------------------------------------------------------


@every_case
def test_state_goes_on_exactly_after_a_trip_through_json(name: str, kind: str) -> None:
    batches = [draw_batch(kind, seed=seed, scale=2.0) for seed in range(4)]
    whole, broken = LOSSES[name].start_state(), LOSSES[name].start_state()
    for batch in batches:
        kept = json.loads(json.dumps(broken))
        one, other = compute(name, batch, whole), compute(name, batch, kept)
        assert torch.equal(one.values, other.values)
        assert one.state == other.state
        whole, broken = one.state, other.state
    assert bool(whole) == bool(LOSSES[name].initial)
    assert whole != LOSSES[name].start_state() or not whole


@every_case
def test_computing_does_not_change_the_state_it_was_given(name: str, kind: str) -> None:
    state = LOSSES[name].start_state()
    kept = json.dumps(state)
    compute(name, draw_batch(kind), state)
    assert json.dumps(state) == kept
    assert json.dumps(LOSSES[name].start_state()) == kept


@every_case
def test_a_strange_state_is_refused(name: str, kind: str) -> None:
    with pytest.raises(InputError, match="begin with start_state"):
        compute(name, draw_batch(kind), {"strange": 1.0})


# --- Gradients, dtypes, metrics -------------------------------------------------------------


@every_case
def test_the_gradient_reaches_the_policy_alone(name: str, kind: str) -> None:
    """Not the reference, scores, statistics, nor mismatched responses."""

    def learning(side: Responses) -> Responses:
        held = {field: getattr(side, field).clone().requires_grad_() for field in ON_SIDES}
        return replace(side, policy=side.policy.detach().clone().requires_grad_(), **held)

    batch = change_responses(draw_batch(kind, scale=3.0), learning)
    others = [getattr(side, field) for side in learners(batch) for field in ON_SIDES]
    if kind == "pairs":
        batch = replace(batch, preference=batch.preference.clone().requires_grad_())
        others.append(batch.preference)
    if kind == "unpaired":
        others += [getattr(batch.mismatched, field) for field in ("policy", *ON_SIDES)]
    found = compute(name, batch)
    slopes = torch.autograd.grad(found.values.sum(), others, allow_unused=True, retain_graph=True)
    assert all(slope is None or not slope.any() for slope in slopes)
    own = torch.autograd.grad(
        found.values.sum(), [side.policy for side in learners(batch)], allow_unused=True
    )
    assert any(slope is not None and slope.any() for slope in own)
    assert not any(metric.requires_grad for metric in found.metrics.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@every_case
def test_type_and_device_are_the_policys(name: str, kind: str, dtype: torch.dtype) -> None:
    found = compute(name, draw_batch(kind, dtype=dtype))
    assert found.values.dtype == dtype
    assert found.values.device == torch.device("cpu")


@pytest.mark.gpu
@every_case
def test_a_gpu_gives_the_same(name: str, kind: str) -> None:
    def moved(side: Responses) -> Responses:
        own = {each.name: getattr(side, each.name) for each in fields(side)}
        return Responses(**{key: None if v is None else v.cuda() for key, v in own.items()})

    batch = draw_batch(kind, scale=3.0)
    there = change_responses(batch, moved)
    for field in ("group", "desirable", "preference", "density_ratio"):
        if has(there, field):
            there = replace(there, **{field: getattr(there, field).cuda()})
    found = compute(name, there)
    assert found.values.device.type == "cuda"
    torch.testing.assert_close(found.values.cpu(), compute(name, batch).values)


# Losses on means over tokens, whose constant goes by another name or is divided by the length.
OF_MEANS = {"sigmoid_norm": "beta", "ipo": "tau", "orpo": "odds_weight"} | dict.fromkeys(
    ("simpo", "alphapo", "tpo_l"), "beta"
)


def rewards_of(loss: Loss, side: Responses) -> Any:
    values = side.log_ratios if "reference" in loss.needs or loss.name == "sft" else side.log_probs
    if loss.name in OF_MEANS:
        return getattr(loss, OF_MEANS[loss.name]) * values / side.lengths
    if not hasattr(loss, "beta"):
        return side.log_ratios
    return loss.beta * values


def test_rewards_are_the_losses_own() -> None:
    long, short = torch.full((1, 8), -0.5), torch.tensor([[-1.0] * 2 + [0.0] * 6])
    batch = PairBatch(
        Responses(long.double(), torch.tensor([8])),
        Responses(short.double(), torch.tensor([2])),
        Totals(1, 8, 2),
    )
    # The chosen response is the likelier by token (-0.5 against -1) and not as a whole (-4, -2).
    for loss, scale in (("simpo", 2.0), ("orpo", 0.1)):
        metrics = parse_loss(loss).compute(batch, {}).metrics
        assert metrics["rewards/chosen"].tolist() == pytest.approx([scale * -0.5])
        assert metrics["rewards/rejected"].tolist() == pytest.approx([scale * -1.0])
        assert metrics["rewards/accuracies"].tolist() == [1.0]
    metrics = parse_loss("cpo").compute(batch, {}).metrics
    assert metrics["rewards/chosen"].tolist() == pytest.approx([0.1 * -4.0])
    assert metrics["rewards/accuracies"].tolist() == [0.0]


@every_case
def test_metrics_stand_under_trls_names(name: str, kind: str) -> None:
    batch, mix = draw_batch(kind), parse_loss(name)
    found = mix.compute(batch, mix.start_state()).metrics
    if kind == "pairs":
        a, b = (rewards_of(mix.terms[0].loss, side) for side in (batch.chosen, batch.rejected))
        expected = {"rewards/chosen": a, "rewards/rejected": b, "rewards/margins": a - b}
        expected["rewards/accuracies"] = (a > b).double()
    elif kind == "unpaired":
        rewards = (mix.beta or 1.0) * batch.responses.log_ratios
        expected = {
            "rewards/chosen": rewards[batch.desirable],
            "rewards/rejected": rewards[~batch.desirable],
        }
    else:
        expected = {}
    sides = {"pairs": ("chosen", "rejected"), "unpaired": ("chosen", "rejected")}.get(kind, ("",))
    for side in sides:
        responses = getattr(batch, side) if kind == "pairs" else batch.responses
        rows: Any = ...
        if kind == "unpaired":
            rows = batch.desirable if side == "chosen" else ~batch.desirable
        end = f"/{side}" if side else ""
        expected[f"logps{end}"] = responses.policy.sum(1)[rows]
        expected[f"lengths{end}"] = responses.lengths[rows].to(responses.policy.dtype)
    own = set(found) - set(expected)
    assert own == {"beta_dpo": {"beta", "kept"}, "re_po": {"trust"}}.get(name, set())
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value.detach(), rtol=1e-9, atol=1e-12)
    assert not any(value.requires_grad for value in found.values())


def test_a_tie_is_half_right() -> None:
    batch = draw_batch("pairs", equal=True)
    metrics = parse_loss("sigmoid").compute(batch, {}).metrics
    assert metrics["rewards/accuracies"].tolist() == [0.5] * ITEMS


def test_margins_of_rounding_are_ties() -> None:
    """As before the first update; what is larger than rounding counts, however small."""
    size = torch.full((5,), 20.0)
    margins = torch.tensor([0.0, 1e-5, -1e-5, 1e-3, -1e-3])
    assert reward_accuracies(margins, size).tolist() == [0.5, 0.5, 0.5, 1.0, 0.0]
