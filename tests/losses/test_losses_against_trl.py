"""Our losses against TRL 1.16's own code, on the same log-probs: value and gradient."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from prefstage.losses import PairBatch, Totals, UnpairedBatch, parse_loss
from tests.losses.loss_batches import draw_batch, draw_pairs, draw_responses, learners
from tests.losses.trl_trainers import (
    dpo_trainer,
    kto_trainer,
    tpo_loss,
    trl_dpo_loss,
    trl_kto_loss,
    without_reference,
)

pytest.importorskip("trl")
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:trl.*"),
    pytest.mark.filterwarnings("ignore::UserWarning:trl.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:trl.*"),
]

# TRL's settings -> ours, of each of its loss types.
SAME: dict[str, tuple[dict[str, Any], Any]] = {
    "sigmoid": ({"beta": 0.3}, {"name": "sigmoid", "beta": 0.3}),
    "hinge": ({"beta": 0.2}, {"name": "hinge", "beta": 0.2}),
    "ipo": ({"beta": 0.2}, {"name": "ipo", "tau": 0.2}),
    "exo_pair": (
        {"label_smoothing": 1e-3, "beta": 0.2},
        {"name": "exo_pair", "flip_rate": 1e-3, "beta": 0.2},
    ),
    "nca_pair": ({"beta": 0.2}, {"name": "nca_pair", "beta": 0.2}),
    "robust": ({"label_smoothing": 0.2}, {"name": "robust", "flip_rate": 0.2}),
    "bco_pair": ({"beta": 0.2}, {"name": "bco_pair", "beta": 0.2, "shift": "none"}),
    "aot": (
        {"beta": 0.2, "label_smoothing": 0.1},
        {"name": "aot", "beta": 0.2, "flip_rate": 0.1},
    ),
    "aot_unpaired": (
        {"beta": 0.2, "label_smoothing": 0.1},
        {"name": "aot_unpaired", "beta": 0.2, "flip_rate": 0.1},
    ),
    "apo_zero": ({"beta": 0.2}, {"name": "apo_zero", "beta": 0.2}),
    "apo_down": ({"beta": 0.2}, {"name": "apo_down", "beta": 0.2}),
    "discopop": ({"discopop_tau": 0.3}, {"name": "discopop", "tau": 0.3}),
    "sft": ({}, "sft"),
    "sigmoid_norm": ({"beta": 2.0}, {"name": "sigmoid_norm", "beta": 2.0}),
}
HALVED = {"sppo_hard": ({"beta": 0.05}, {"name": "sppo_hard", "beta": 0.05})}
DIVERGENT = ("sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop")
TOLERANCE = 1e-6
"""Relative; TRL keeps some constants in float32. Measured: see docs/losses.md."""


def both(trl: Tensor, ours: Tensor, batch: Any, *, factor: float = 1.0) -> tuple[float, float]:
    """Largest relative differences of value and gradient: TRL's is `factor` times ours."""
    sides = learners(batch)
    policies = [side.policy for side in sides]
    slopes = [
        torch.autograd.grad(loss, policies, allow_unused=True, retain_graph=True)
        for loss in (trl, ours)
    ]
    pairs = [
        (theirs[side.mask], factor * own[side.mask])
        for theirs, own, side in zip(*slopes, sides, strict=True)
        if own is not None and own.any()
    ]
    assert pairs
    theirs, own = (torch.cat(each) for each in zip(*pairs, strict=True))
    value = float(((trl - factor * ours).abs() / trl.abs()).detach())
    return value, float((theirs - own).abs().max() / theirs.abs().max())


def assert_equal(trl: Tensor, ours: Tensor, batch: Any, *, factor: float = 1.0) -> None:
    value, slope = both(trl, ours, batch, factor=factor)
    assert value < TOLERANCE
    assert slope < TOLERANCE


def ours(spec: Any, batch: Any) -> Tensor:
    mix = parse_loss(spec)
    return mix.compute(batch, mix.start_state()).values.mean()


def test_every_type_of_trl_is_compared(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Unknown loss type: all") as found:
        trl_dpo_loss(dpo_trainer(tmp_path, loss_type="all"), draw_batch("pairs"))
    named = str(found.value).split("one of [")[1].rstrip("]").replace("'", "").split(", ")
    assert {*SAME, *HALVED} == set(named)
    assert len(named) == 15


@pytest.mark.parametrize("loss_type", SAME)
def test_losses_are_trls(loss_type: str, tmp_path: Path) -> None:
    settings, spec = SAME[loss_type]
    trainer = dpo_trainer(tmp_path, loss_type=loss_type, **settings)
    for seed, scale in enumerate((1e-3, 3.0, 30.0)):
        batch = draw_batch("pairs", seed=seed, scale=scale)
        assert_equal(trl_dpo_loss(trainer, batch), ours(spec, batch), batch)


def test_sppo_hard_is_half_of_trls(tmp_path: Path) -> None:
    """The paper's objective has the ½; TRL's has not."""
    settings, spec = HALVED["sppo_hard"]
    trainer = dpo_trainer(tmp_path, loss_type="sppo_hard", **settings)
    for seed in range(3):
        batch = draw_batch("pairs", seed=seed, scale=3.0)
        assert_equal(trl_dpo_loss(trainer, batch), ours(spec, batch), batch, factor=2)


@pytest.mark.parametrize("divergence", ["forward_kl", "js_divergence", "alpha_divergence"])
@pytest.mark.parametrize("loss_type", DIVERGENT)
def test_divergences_are_trls(loss_type: str, divergence: str, tmp_path: Path) -> None:
    """In float32, the widest type that TRL's α-divergence takes."""
    settings, spec = SAME[loss_type]
    trainer = dpo_trainer(
        tmp_path,
        loss_type=loss_type,
        f_divergence_type=divergence,
        f_alpha_divergence_coef=0.3,
        **settings,
    )
    alpha = {"f_alpha": 0.3} if divergence == "alpha_divergence" else {}
    batch = draw_batch("pairs", seed=1, scale=2.0, dtype=torch.float32)
    found = both(
        trl_dpo_loss(trainer, batch),
        ours({**spec, "f_divergence": divergence, **alpha}, batch),
        batch,
    )
    assert max(found) < 3e-6


def test_an_alpha_of_one_is_the_reverse_kl(tmp_path: Path) -> None:
    trainer = dpo_trainer(
        tmp_path, f_divergence_type="alpha_divergence", f_alpha_divergence_coef=1.0
    )
    batch = draw_batch("pairs", seed=1)
    spec = {"name": "sigmoid", "f_divergence": "alpha_divergence", "f_alpha": 1.0}
    assert_equal(trl_dpo_loss(trainer, batch), ours(spec, batch), batch)
    assert torch.equal(ours(spec, batch), ours("sigmoid", batch))


def test_where_trls_forward_kl_is_no_number_ours_is(tmp_path: Path) -> None:
    """A chosen response 100 nats down: e^100 overflows float32."""
    trainer = dpo_trainer(tmp_path, loss_type="ipo", f_divergence_type="forward_kl")
    batch = draw_pairs([4], [4], seed=0, dtype=torch.float32)
    fallen = replace(batch.chosen, policy=(batch.chosen.reference - 25).requires_grad_())
    batch = replace(batch, chosen=fallen)
    assert not torch.isfinite(trl_dpo_loss(trainer, batch))
    found = ours({"name": "ipo", "f_divergence": "forward_kl"}, batch)
    assert torch.isfinite(found)
    (slope,) = torch.autograd.grad(found, fallen.policy)
    assert torch.isfinite(slope).all()
    assert (slope < 0).all()  # and the response is still pulled up


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_ld_alpha_is_ld_dpo(alpha: float, tmp_path: Path) -> None:
    trainer = dpo_trainer(tmp_path, ld_alpha=alpha)
    batch = draw_batch("pairs", seed=2, scale=3.0)
    spec = {"name": "ld_dpo", "alpha": alpha}
    assert_equal(trl_dpo_loss(trainer, batch), ours(spec, batch), batch)


def test_use_weighting_is_wpo_up_to_its_cap(tmp_path: Path) -> None:
    """Equal while the policy would write the pair less often than its weight's cap of 1."""
    trainer = dpo_trainer(tmp_path, use_weighting=True)
    exponents = []
    for seed, item in [(seed, item) for seed in range(3) for item in range(6)]:
        batch = draw_batch("pairs", seed=seed)
        one = _one(batch, item)
        exponents.append(_exponent(batch, item))
        factor = math.exp(max(0.0, exponents[-1]))
        assert_equal(trl_dpo_loss(trainer, one), ours("wpo", one), one, factor=factor)
    assert min(exponents) < -0.1
    assert max(exponents) > 0.1


WEIGHED = {name: spec for name, spec in SAME.items() if name not in ("aot", "aot_unpaired", "sft")}


@pytest.mark.parametrize("loss_type", WEIGHED)
def test_ld_alpha_and_weighting_are_trls_on_any_loss(loss_type: str, tmp_path: Path) -> None:
    settings, spec = WEIGHED[loss_type]
    spec = spec if isinstance(spec, dict) else {"name": spec}
    batch = draw_batch("pairs", seed=2, scale=2.0)
    trainer = dpo_trainer(tmp_path, loss_type=loss_type, ld_alpha=0.3, **settings)
    assert_equal(trl_dpo_loss(trainer, batch), ours({**spec, "ld_alpha": 0.3}, batch), batch)
    trainer = dpo_trainer(tmp_path, loss_type=loss_type, use_weighting=True, **settings)
    if loss_type == "hinge":  # TRL multiplies in place what the backward pass needs, and fails
        pytest.skip("TRL has no gradient of a weighted hinge")
    for item in range(3):
        one = _one(batch, item)
        factor = math.exp(max(0.0, _exponent(batch, item)))  # TRL's weights have no cap
        weighed = ours({**spec, "use_weighting": True}, one)
        assert_equal(trl_dpo_loss(trainer, one), weighed, one, factor=factor)


def _exponent(batch: PairBatch, item: int) -> float:
    """A_w + A_l of a pair."""
    total = 0.0
    for side in (batch.chosen, batch.rejected):
        assert side.log_sum_squares is not None
        own = slice(0, int(side.lengths[item]))
        total += float((side.policy - side.log_sum_squares).detach()[item, own].mean())
    return total


def _one(batch: PairBatch, item: int) -> PairBatch:
    from tests.losses.loss_batches import take

    found = take(batch, [item])
    assert isinstance(found, PairBatch)
    return found


def test_a_sum_of_losses_is_trls_list(tmp_path: Path) -> None:
    """RPO: sigmoid and imitation; and three at once."""
    batch = draw_batch("pairs", seed=4, scale=2.0)
    rpo = dpo_trainer(tmp_path, loss_type=["sigmoid", "sft"], loss_weights=[1.0, 0.2])
    assert_equal(trl_dpo_loss(rpo, batch), ours("sigmoid + 0.2*sft", batch), batch)
    three = dpo_trainer(
        tmp_path, loss_type=["sigmoid", "aot", "sft"], loss_weights=[0.8, 0.5, 1.5], beta=0.1
    )
    spec = [
        "0.8*sigmoid",
        {"name": "aot", "weight": 0.5, "beta": 0.1},
        {"name": "sft", "weight": 1.5},
    ]
    assert_equal(trl_dpo_loss(three, batch), ours(spec, batch), batch)


# --- Where METHODS and TRL differ ------------------------------------------------------------


def test_bco_departs_by_its_shift(tmp_path: Path) -> None:
    """TRL leaves δ out; with rewards that cancel, δ = 0 and both agree."""
    trainer = dpo_trainer(tmp_path, loss_type="bco_pair", beta=0.1)
    batch = draw_batch("pairs", seed=5, scale=3.0)
    assert both(trl_dpo_loss(trainer, batch), ours("bco", batch), batch)[1] > 1e-3
    lengths = [3, 4, 2]
    chosen = draw_responses(lengths, seed=1)
    opposite = replace(
        chosen, policy=(2 * chosen.reference - chosen.policy.detach()).requires_grad_()
    )
    batch = PairBatch(chosen, opposite, Totals(3, 9, 9))
    assert_equal(trl_dpo_loss(trainer, batch), ours("bco", batch), batch)


def test_trls_sigmoid_ignores_label_smoothing(tmp_path: Path) -> None:
    batch = draw_batch("pairs", seed=6, scale=3.0)
    plain, smoothed = (
        trl_dpo_loss(dpo_trainer(tmp_path, label_smoothing=rate), batch) for rate in (0.0, 0.2)
    )
    assert torch.equal(plain, smoothed)
    assert not torch.equal(ours({"name": "sigmoid", "flip_rate": 0.2}, batch), plain)


def test_ipo_over_sums_is_trls_times_lengths(tmp_path: Path) -> None:
    """With responses of one token, means are sums."""
    trainer = dpo_trainer(tmp_path, loss_type="ipo", beta=0.2)
    batch = draw_pairs([1, 1, 1], [1, 1, 1], seed=3)
    spec = {"name": "ipo", "tau": 0.2, "per_token": False}
    assert_equal(trl_dpo_loss(trainer, batch), ours(spec, batch), batch)
    longer = draw_pairs([2, 5, 3], [4, 1, 2], seed=3)
    assert both(trl_dpo_loss(trainer, longer), ours(spec, longer), longer)[0] > 1e-3


def test_trls_exo_refuses_the_label_without_smoothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="greater than 0"):
        dpo_trainer(tmp_path, loss_type="exo_pair", label_smoothing=0.0)
    with pytest.raises(ValueError, match="flip_rate"):
        parse_loss({"name": "exo", "flip_rate": 0.0})


def test_defaults_that_differ_from_trls(tmp_path: Path) -> None:
    trl = dpo_trainer(tmp_path).args
    assert (trl.beta, trl.label_smoothing, trl.discopop_tau) == (0.1, 0.0, 0.05)
    betas = {name: getattr(parse_loss(name).terms[0].loss, "beta", None) for name in SAME}
    departing = {name: beta for name, beta in betas.items() if beta not in (0.1, None)}
    assert departing == {"hinge": 0.05, "nca_pair": 0.01, "aot": 0.01, "aot_unpaired": 0.01}


# --- KTO, CPO, SimPO, ORPO --------------------------------------------------------------------


def test_kto_is_trls(tmp_path: Path) -> None:
    trainer = kto_trainer(tmp_path, beta=0.2, desirable_weight=1.3, undesirable_weight=0.7)
    spec = {"name": "kto", "beta": 0.2, "desirable_weight": 1.3, "undesirable_weight": 0.7}
    points = []
    for seed in range(6):
        batch = draw_batch("unpaired", seed=seed, scale=2.0)
        assert isinstance(batch, UnpairedBatch)
        assert batch.mismatched is not None
        points.append(float(batch.mismatched.log_ratios.detach().mean()))
        assert_equal(trl_kto_loss(trainer, batch), ours(spec, batch), batch)
    assert min(points) < 0 < max(points)  # z is cut off at 0, and is not


def test_apo_zero_unpaired_is_trls(tmp_path: Path) -> None:
    weights = {"beta": 0.2, "desirable_weight": 1.3, "undesirable_weight": 0.7}
    trainer = kto_trainer(tmp_path, loss_type="apo_zero_unpaired", **weights)
    for seed in range(3):
        batch = draw_batch("unpaired", seed=seed, scale=2.0)
        spec = {"name": "apo_zero_unpaired", **weights}
        assert_equal(trl_kto_loss(trainer, batch), ours(spec, batch), batch)


@pytest.fixture
def experimental(monkeypatch: pytest.MonkeyPatch) -> None:
    """TRL's experimental trainers may be imported without a warning."""
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")


@pytest.mark.usefixtures("experimental")
def test_simpo_is_trls() -> None:
    batch = draw_batch("pairs", seed=7)
    trl = without_reference("simpo", batch, beta=2.0, simpo_gamma=1.0, cpo_alpha=0.0)
    assert_equal(trl, ours("simpo", batch), batch)


@pytest.mark.usefixtures("experimental")
def test_cpo_and_orpo_depart_by_the_mean_of_their_imitation() -> None:
    """Ours is a mean over each response's tokens, as printed; TRL's over the batch's."""
    even = draw_pairs([5, 5, 5], [2, 7, 4], seed=8)
    odd = draw_pairs([1, 9, 5], [2, 7, 4], seed=8)
    for name, trl in (
        ("cpo", {"beta": 0.1, "cpo_alpha": 1.0}),
        ("orpo", {"beta": 0.1}),
    ):
        assert_equal(without_reference(name, even, **trl), ours(name, even), even)
        assert both(without_reference(name, odd, **trl), ours(name, odd), odd)[0] > 1e-3
    spec = [{"name": "cpo", "imitation": 0.0}, "sft"]
    trl = without_reference("cpo", odd, beta=0.1, cpo_alpha=1.0)
    assert_equal(trl, ours(spec, odd), odd)


@pytest.mark.usefixtures("experimental")
@pytest.mark.parametrize(
    ("kind", "trl", "spec"),
    [
        (
            "simpo",
            {"beta": 2.0, "simpo_gamma": 0.7, "label_smoothing": 0.2},
            {"name": "simpo", "margin": 0.7, "flip_rate": 0.2},
        ),
        (
            "simpo",  # what loss_type="alphapo" becomes
            {"beta": 2.0, "simpo_gamma": 0.7, "alpha": 0.25},
            {"name": "alphapo", "margin": 0.7},
        ),
        (
            "simpo",
            {"beta": 2.0, "simpo_gamma": 0.7, "alpha": -0.5, "label_smoothing": 0.1},
            {"name": "alphapo", "margin": 0.7, "alpha": -0.5, "flip_rate": 0.1},
        ),
        (
            "cpo",
            {"beta": 0.3, "label_smoothing": 0.2},
            {"name": "cpo", "beta": 0.3, "flip_rate": 0.2},
        ),
        (
            "cpo",
            {"beta": 0.3, "loss_type": "hinge"},
            {"name": "cpo", "beta": 0.3, "contrast": "hinge"},
        ),
        (
            "cpo",
            {"beta": 0.3, "loss_type": "ipo"},
            {"name": "cpo", "beta": 0.3, "contrast": "ipo"},
        ),
    ],
    ids=str,
)
def test_smoothing_shapes_and_contrasts_are_trls(
    kind: str, trl: dict[str, Any], spec: dict[str, Any]
) -> None:
    for seed in range(3):
        batch = draw_batch("pairs", seed=seed, scale=2.0)
        theirs = without_reference(kind, batch, cpo_alpha=0.0, **trl)
        without = {"imitation": 0.0} if kind == "cpo" else {}
        assert_equal(theirs, ours({**spec, **without}, batch), batch)


@pytest.mark.usefixtures("experimental")
@pytest.mark.parametrize(
    ("loss_type", "spec"),
    [
        ("sigmoid", {"name": "tpo", "flip_rate": 0.1}),
        ("hinge", {"name": "tpo", "contrast": "hinge"}),
        ("ipo", {"name": "tpo", "contrast": "ipo"}),
        ("tpo-l", {"name": "tpo-l", "flip_rate": 0.1, "margin": 0.4}),
    ],
)
def test_tpo_is_trls(loss_type: str, spec: dict[str, Any]) -> None:
    """Imitation as in CPO: of each response's tokens; with one length, TRL's is the same."""
    trl = {"loss_type": loss_type, "beta": 0.3, "label_smoothing": spec.get("flip_rate", 0.0)}
    trl |= {"tpo_l_gamma": 0.4}
    for lengths in ([3, 3, 3], [1, 2, 6]):
        batch = draw_pairs([2, 7, 4], lengths, seed=4, scale=2.0)
        alone = tpo_loss(batch, tpo_alpha=0.0, **trl)
        assert_equal(alone, ours({**spec, "beta": 0.3, "imitation": 0.0}, batch), batch)
        whole = tpo_loss(batch, tpo_alpha=0.5, **trl)
        mine = ours({**spec, "beta": 0.3, "imitation": 0.5}, batch)
        if len({*lengths}) == 1:
            assert_equal(whole, mine, batch)
        else:
            assert both(whole, mine, batch)[0] > 1e-3


def test_trls_alphapo_overflows_where_ours_does_not() -> None:
    batch = draw_pairs([1], [1], seed=0, dtype=torch.float32)
    fallen = replace(batch.chosen, policy=torch.full((1, 1), -500.0).requires_grad_())
    found = ours("alphapo", replace(batch, chosen=fallen))
    (slope,) = torch.autograd.grad(found, fallen.policy)
    assert torch.isfinite(found)
    assert float(slope) < 0
