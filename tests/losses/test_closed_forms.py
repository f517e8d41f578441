"""Value and gradient of every loss against a closed form, over random batches."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st

from prefstage.losses import LOSSES, Loss, parse_loss
from tests.losses.closed_forms import CLOSED_FORMS
from tests.losses.loss_batches import draw_batch, kinds_of, learners
from tests.losses.test_drawn_losses import DRAWN_FORMS

CASES = [(name, kind) for name in CLOSED_FORMS for kind in kinds_of(LOSSES[name])]
SCALES = (0.0, 1e-3, 1.0, 30.0, 1e3)
"""Sizes of log-ratios, nats."""

# What a random setting is drawn from; the defaults stand for the rest.
RANGES: dict[str, tuple[float, float]] = {
    "beta": (1e-4, 1e2),
    "tau": (1e-2, 1e1),
    "gamma": (0, 2),
    "flip_rate": (1e-6, 0.49),
    "alpha": (0, 1),
    "penalty": (0, 100),
    "margin": (0, 10),
    "imitation": (0, 3),
    "odds_weight": (0, 3),
    "temperature": (1e-2, 1e2),
    "desirable_weight": (0, 3),
    "undesirable_weight": (0, 3),
    "reliability": (1e-3, 0.999),
    "max_reward": (0.1, 10),
    "min_ratio": (0, 1.5),
    "max_ratio": (1.6, 3),
    "prior": (1e-3, 0.9),
}


def drawn_settings(loss: type[Loss], share: float) -> Loss:
    """A loss with constants at a point of their ranges; those of β span orders of magnitude."""
    chosen: dict[str, Any] = {}
    for name in loss.model_fields:
        if name in RANGES:
            low, high = RANGES[name]
            logs = name in ("beta", "tau", "temperature")
            value = low * (high / low) ** share if logs else low + (high - low) * share
            chosen[name] = min(value, 1.0) if (loss.name, name) == ("discopop", "tau") else value
    return loss(**chosen)


def state_of(loss: type[Loss]) -> dict[str, Any]:
    """A state in the midst of training."""
    unpaired = {"means": {"desirable": 0.4, "undesirable": -0.1}, "counts": {}}
    unpaired["counts"] = {"desirable": 7, "undesirable": 12}
    known = {
        "bco": {"mean": -0.3, "count": 12},
        "re_po": {"reliability": {"ada": 0.7}},
        "bco_unpaired": unpaired,
        "bco_udm": unpaired,
    }
    return known.get(loss.name, {})


def test_every_loss_has_a_closed_form() -> None:
    assert {*CLOSED_FORMS, *DRAWN_FORMS} == set(LOSSES)
    assert CLOSED_FORMS.keys().isdisjoint(DRAWN_FORMS)


@pytest.mark.parametrize(("name", "kind"), CASES)
@settings(max_examples=15)
@given(
    seed=st.integers(0, 10**6),
    items=st.integers(1, 5),
    scale=st.sampled_from(SCALES),
    equal=st.booleans(),
    share=st.floats(0, 1) | st.none(),
)
def test_value_and_gradient_are_those_of_the_closed_form(  # noqa: PLR0917 - passed by name
    name: str, kind: str, seed: int, items: int, scale: float, equal: bool, share: float | None
) -> None:
    loss, batch = LOSSES[name], draw_batch(kind, seed=seed, items=items, scale=scale, equal=equal)
    constants = loss() if share is None else drawn_settings(loss, share)
    ours = constants(batch, state_of(loss)).values
    closed = CLOSED_FORMS[name](batch, constants, state_of(loss))
    size = 1 + float(closed.detach().abs().max())
    torch.testing.assert_close(ours, closed, rtol=1e-9, atol=1e-11 * size)
    weights = torch.arange(1.0, len(ours) + 1, dtype=torch.float64)  # each item by itself
    left = gradients((ours * weights).sum(), batch)
    right = gradients((closed * weights).sum(), batch)
    size = 1 + float(right.abs().max())
    torch.testing.assert_close(left, right, rtol=1e-8, atol=1e-10 * size)


def gradients(total: torch.Tensor, batch: Any) -> torch.Tensor:
    """By the log-prob of each token, padding left out."""
    sides = learners(batch)
    policies = [side.policy for side in sides]
    found = torch.autograd.grad(total, policies, allow_unused=True, retain_graph=True)
    return torch.cat(
        [
            (torch.zeros_like(side.policy) if slope is None else slope)[side.mask]
            for slope, side in zip(found, sides, strict=True)
        ]
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("name", "kind"), [(n, k) for n in LOSSES for k in kinds_of(LOSSES[n])])
@settings(max_examples=8)
@given(
    seed=st.integers(0, 10**6),
    items=st.integers(1, 4),
    scale=st.sampled_from((0.0, 1e-6, 1.0, 1e3, 1e4)),
    equal=st.booleans(),
    share=st.sampled_from((None, 0.0, 0.5, 1.0)),
    divergence=st.sampled_from(("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence")),
)
def test_extremes_stay_finite(  # noqa: PLR0917 - pytest and Hypothesis pass by name
    name: str,
    kind: str,
    dtype: torch.dtype,
    seed: int,
    items: int,
    scale: float,
    equal: bool,
    share: float | None,
    divergence: str,
) -> None:
    loss = LOSSES[name]
    batch = draw_batch(kind, seed=seed, items=items, scale=scale, equal=equal, dtype=dtype)
    constants = loss() if share is None else drawn_settings(loss, share)
    if "f_divergence" in loss.model_fields:
        constants = constants.model_copy(update={"f_divergence": divergence})
    state = loss.start_state()
    for _ in range(2):  # the second time with running statistics
        computed = constants(batch, state)
        state = computed.state
        assert torch.isfinite(computed.values).all()
        assert computed.values.dtype == dtype
        assert torch.isfinite(gradients(computed.values.sum(), batch)).all()


@pytest.mark.parametrize(
    "spec",
    [
        *(
            {"name": n, "contrast": c, "beta": b}
            for n in ("cpo", "tpo")
            for c in ("hinge", "ipo")
            for b in (0.1, 2.0)
        ),
        {"name": "odpo", "offset": "difference", "alpha": 0.7},
        {"name": "alphapo", "alpha": -0.5},
        {"name": "alphapo", "alpha": 0.0},
    ],
    ids=str,
)
def test_choices_of_a_loss_are_closed_forms_too(spec: dict[str, Any]) -> None:
    loss = parse_loss(spec).terms[0].loss
    for seed in range(3):
        batch = draw_batch("pairs", seed=seed, scale=2.0)
        ours, closed = loss(batch).values, CLOSED_FORMS[loss.name](batch, loss, {})
        torch.testing.assert_close(ours, closed, rtol=1e-9, atol=1e-10)
        slopes = [gradients(values.sum(), batch) for values in (ours, closed)]
        torch.testing.assert_close(*slopes, rtol=1e-8, atol=1e-9)


DIVERGENT = [name for name in LOSSES if "f_divergence" in LOSSES[name].model_fields]


def plain_score(t: torch.Tensor, divergence: str, alpha: float) -> torch.Tensor:
    """f'(t) as printed, at a ratio t."""
    return {
        "reverse_kl": torch.log(t),
        "forward_kl": 1 - 1 / t,
        "js_divergence": torch.log(2 * t / (1 + t)),
        "alpha_divergence": (t ** (alpha - 1) - 1) / (alpha - 1),
    }[divergence]


@given(
    ratio=st.floats(-14, 14),
    alpha=st.floats(-1, 2).filter(lambda a: abs(a - 1) > 1e-3),
    divergence=st.sampled_from(("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence")),
)
def test_divergences_score_as_printed(ratio: float, alpha: float, divergence: str) -> None:
    from prefstage.losses.pairwise import divergence_score

    ours, theirs = (torch.tensor([ratio], dtype=torch.float64).requires_grad_() for _ in "ab")
    left = divergence_score(ours, divergence=divergence, alpha=alpha)
    right = plain_score(theirs.exp(), divergence, alpha)
    slopes = [torch.autograd.grad(v.sum(), x)[0] for v, x in ((left, ours), (right, theirs))]
    torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(slopes[0], slopes[1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("divergence", ["forward_kl", "alpha_divergence"])
def test_divergences_go_on_straight_beyond_the_largest_exponent(divergence: str) -> None:
    from prefstage.losses.pairwise import MAX_EXPONENT, divergence_score

    signs = {"forward_kl": -1.0, "alpha_divergence": -2.0}
    places = torch.tensor([0.999, 1.0, 2.0, 30.0], dtype=torch.float64) * MAX_EXPONENT
    ratios = (places * signs[divergence]).requires_grad_()
    score = divergence_score(ratios, divergence=divergence, alpha=0.5)
    (slopes,) = torch.autograd.grad(score.sum(), ratios)
    assert slopes[1] == pytest.approx(math.exp(MAX_EXPONENT), rel=1e-9)
    assert slopes[2:].tolist() == pytest.approx([slopes[1].item()] * 2)
    rise = (score[3] - score[2]) / (ratios[3] - ratios[2])
    assert rise.item() == pytest.approx(slopes[1].item())


@pytest.mark.parametrize("name", DIVERGENT)
@pytest.mark.parametrize("divergence", ["forward_kl", "js_divergence", "alpha_divergence"])
def test_a_divergence_scores_what_the_loss_takes(name: str, divergence: str) -> None:
    """The loss of scores is the loss of log-ratios that are such scores."""
    batch = draw_batch("pairs", seed=3, scale=0.5)
    spec = {"name": name, "f_divergence": divergence}
    found = parse_loss(spec).compute(batch, {}).values
    sides = []
    for side in (batch.chosen, batch.rejected):
        scores = plain_score(side.log_ratios.exp(), divergence, 0.5)
        first = torch.arange(side.policy.shape[1]) == 0
        sides.append(scores[:, None] * first + side.reference)
    changed = type(batch)(
        *(
            type(side)(policy, side.lengths, side.reference)
            for side, policy in zip((batch.chosen, batch.rejected), sides, strict=True)
        ),
        batch.totals,
    )
    torch.testing.assert_close(found, parse_loss(name).compute(changed, {}).values)
