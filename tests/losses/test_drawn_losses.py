"""Losses that draw at random: their closed forms, their draws, and the checks of SGDPO."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, strategies as st

from prefstage.losses import SGDPO, BetaDPO, PairBatch, Responses, Totals, parse_loss
from prefstage.losses.tokens import draw_tokens, pilot_counts
from tests.losses.closed_forms import Side, dpo, log_sigma, pairs_of
from tests.losses.loss_batches import draw_pairs, draw_responses

DRAWN_FORMS = ("sgdpo", "sampo", "beta_dpo")
ROWS = st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=5)


def drawn_sum(side: Side, count: int, seed: int, stream: int) -> torch.Tensor:
    """Log-ratio over the tokens drawn for one response alone, whatever the batch."""
    drawn = draw_tokens(
        torch.tensor([side.length]),
        torch.tensor([count]),
        torch.tensor([seed]),
        tokens=side.length,
        stream=stream,
    )[0]
    assert int(drawn.sum()) == count
    return (side.policy - side.reference)[drawn].sum()


def same_everywhere(lengths: list[int], *, value: float) -> Responses:
    """Every token of a response has the same log-ratio, so that no draw matters."""
    policy = torch.nn.utils.rnn.pad_sequence(
        [torch.full((length,), value, dtype=torch.float64) for length in lengths], batch_first=True
    )
    return Responses(policy.requires_grad_(), torch.tensor(lengths), torch.zeros_like(policy))


@given(
    rows=ROWS,
    seed=st.integers(0, 10**6),
    beta=st.floats(1e-3, 10),
    r1=st.floats(0.01, 1),
    r2=st.floats(0.01, 1),
    scale=st.sampled_from((0.0, 1.0, 1e3)),
)
def test_sgdpo(  # noqa: PLR0917 - Hypothesis passes by name
    rows: list[tuple[int, int]], seed: int, beta: float, r1: float, r2: float, scale: float
) -> None:
    batch = draw_pairs(*map(list, zip(*rows, strict=True)), seed=seed, scale=scale)
    spec = {"name": "sgdpo", "beta": beta, "r1": r1, "r2": r2}
    ours = parse_loss(spec).compute(batch, {}).values
    values = []
    assert batch.seeds is not None
    for (w, r), own in zip(pairs_of(batch), batch.seeds.tolist(), strict=True):
        shorter = min(w.length, r.length)
        counts = [max(math.floor(share * shorter + 1e-9), 1) for share in (r1, r2)]
        p_w = drawn_sum(w, counts[0], own, 0).detach()
        p_l = drawn_sum(r, counts[1], own, 1).detach()
        up = log_sigma(beta * (w.ratio - p_l))
        values.append(-0.5 * up - 0.5 * log_sigma(beta * (p_w - r.ratio)))
    assert_same(ours, torch.stack(values), batch)


@given(
    rows=ROWS,
    seed=st.integers(0, 10**6),
    beta=st.floats(1e-3, 10),
    scale=st.sampled_from((0, 1, 1e3)),
)
def test_sampo(rows: list[tuple[int, int]], seed: int, beta: float, scale: float) -> None:
    batch = draw_pairs(*map(list, zip(*rows, strict=True)), seed=seed, scale=scale)
    ours = parse_loss({"name": "sampo", "beta": beta}).compute(batch, {}).values
    assert batch.seeds is not None
    values = []
    for (w, r), own in zip(pairs_of(batch), batch.seeds.tolist(), strict=True):
        shorter = min(w.length, r.length)
        sums = drawn_sum(w, shorter, own, 0), drawn_sum(r, shorter, own, 1)
        values.append(dpo(sums[0] - sums[1], beta))
    assert_same(ours, torch.stack(values), batch)


@given(chosen=st.integers(1, 30), rejected=st.integers(1, 30), value=st.floats(-3, 3))
def test_sums_over_drawn_tokens_have_as_many_terms_as_printed(
    chosen: int, rejected: int, value: float
) -> None:
    """With one value a token, the draw does not matter and the loss is known by hand."""
    totals = Totals(1, chosen, rejected)
    sides = same_everywhere([chosen], value=value), same_everywhere([rejected], value=-value)
    batch = PairBatch(*sides, totals, seeds=torch.tensor([5]))
    m, a, b = min(chosen, rejected), chosen * value, -rejected * value
    sampo = parse_loss("sampo").compute(batch, {}).values.item()
    assert sampo == pytest.approx(math.log1p(math.exp(-0.1 * 2 * m * value)))
    p_w = max(int(0.6 * m + 1e-9), 1) * value
    p_l = -max(int(0.9 * m + 1e-9), 1) * value
    first = math.log1p(math.exp(-0.1 * (a - p_l)))
    expected = 0.5 * first + 0.5 * math.log1p(math.exp(-0.1 * (p_w - b)))
    assert parse_loss("sgdpo").compute(batch, {}).values.item() == pytest.approx(expected)


# --- SGDPO's own checks (appendix B to D) ---------------------------------------------------

LOG_RATIOS = st.floats(-8, 8)


@given(a=LOG_RATIOS, b=LOG_RATIOS, p_w=LOG_RATIOS, p_l=LOG_RATIOS, beta=st.floats(0.01, 2))
def test_sgdpo_slopes_by_likelihood_ratios(
    a: float, b: float, p_w: float, p_l: float, beta: float
) -> None:
    numbers = [torch.tensor([math.exp(v)], dtype=torch.float64) for v in (a, b, p_w, p_l)]
    x1, x2, pilot1, pilot2 = (each.requires_grad_() for each in numbers)
    loss = SGDPO(beta=beta).of_pilots(x1.log(), x2.log(), pilot1.log(), pilot2.log()).sum()
    slope1, slope2 = torch.autograd.grad(loss, (x1, x2))
    first = -(beta / 2) * pilot2**beta / (x1 * (x1**beta + pilot2**beta))
    second = (beta / 2) * x2 ** (beta - 1) / (pilot1**beta + x2**beta)
    torch.testing.assert_close(slope1, first.detach(), rtol=1e-9, atol=0)
    torch.testing.assert_close(slope2, second.detach(), rtol=1e-9, atol=0)
    assert torch.autograd.grad(
        SGDPO(beta=beta).of_pilots(x1.log(), x2.log(), pilot1.log(), pilot2.log()).sum(),
        (pilot1, pilot2),
        allow_unused=True,
    ) == (None, None)


@given(a=LOG_RATIOS, b=LOG_RATIOS, low=LOG_RATIOS, rise=st.floats(0.1, 4), beta=st.floats(0.05, 2))
def test_pilots_steer_the_slopes(a: float, b: float, low: float, rise: float, beta: float) -> None:
    """|∂L/∂X1| grows with P2; |∂L/∂X2| falls as P1 grows."""

    def slopes(p_w: float, p_l: float) -> tuple[float, float]:
        values = [torch.tensor([v], dtype=torch.float64) for v in (a, b, p_w, p_l)]
        sides = [each.requires_grad_() for each in values[:2]]
        loss = SGDPO(beta=beta).of_pilots(*sides, *values[2:]).sum()
        found = torch.autograd.grad(loss, sides)
        return found[0].abs().item(), found[1].abs().item()

    assert slopes(low, low + rise)[0] > slopes(low, low)[0]
    assert slopes(low + rise, low)[1] < slopes(low, low)[1]


@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=5), seed=st.integers(0, 10**6))
def test_sgdpo_with_whole_pilots_is_dpo_with_half_the_gradient(
    lengths: list[int], seed: int
) -> None:
    batch = draw_pairs(lengths, lengths, seed=seed, scale=2.0)
    ours = parse_loss({"name": "sgdpo", "r1": 1.0, "r2": 1.0}).compute(batch, {}).values
    theirs = parse_loss("sigmoid").compute(batch, {}).values
    torch.testing.assert_close(ours, theirs)
    sides = batch.chosen.policy, batch.rejected.policy
    halves = torch.autograd.grad(ours.sum(), sides)
    wholes = torch.autograd.grad(theirs.sum(), sides)
    for half, whole in zip(halves, wholes, strict=True):
        torch.testing.assert_close(2 * half, whole)


@given(length=st.integers(1, 2000), tenths=st.integers(1, 10))
def test_pilot_counts_are_exact_floors(length: int, tenths: int) -> None:
    """In whole numbers: 0.7 · 10 is 7, whatever its binary fraction."""
    found = pilot_counts(torch.tensor([length]), share=tenths / 10)
    assert found.item() == max(tenths * length // 10, 1)


# --- Draws ---------------------------------------------------------------------------------


def test_draws_are_uniform_without_replacement() -> None:
    seeds, length, count = torch.arange(6000), 7, 3
    many = torch.full((6000,), length)
    drawn = draw_tokens(many, torch.full_like(many, count), seeds, tokens=9)
    assert (drawn.sum(1) == count).all()
    assert not drawn[:, length:].any()
    # Each place is drawn in 3/7 of cases: within five standard errors.
    shares, error = drawn[:, :length].double().mean(0), math.sqrt(3 / 7 * 4 / 7 / 6000)
    assert (shares - count / length).abs().max() < 5 * error
    pairs = (drawn[:, 0] & drawn[:, 1]).double().mean().item()  # 3/7 · 2/6
    assert pairs == pytest.approx(1 / 7, abs=5 * math.sqrt(1 / 7 * 6 / 7 / 6000))


def test_the_two_sides_draw_apart_and_the_next_step_anew() -> None:
    lengths = torch.full((200,), 12)
    counts, seeds = torch.full_like(lengths, 6), torch.arange(200)
    sides = [draw_tokens(lengths, counts, seeds, tokens=12, stream=stream) for stream in (0, 1)]
    later = draw_tokens(lengths, counts, seeds + 1000, tokens=12)
    for other in (sides[1], later):
        same = (sides[0] == other).all(1).double().mean()
        assert same < 0.05  # 1/924 by chance


# --- β-DPO ---------------------------------------------------------------------------------


@given(
    items=st.integers(1, 12),
    seed=st.integers(0, 10**6),
    beta=st.floats(1e-3, 3),
    gain=st.floats(0, 2),
    keep=st.floats(0.05, 1),
    scale=st.sampled_from((0.0, 1.0, 1e3)),
)
def test_beta_dpo(  # noqa: PLR0917 - Hypothesis passes by name
    items: int, seed: int, beta: float, gain: float, keep: float, scale: float
) -> None:
    batch = draw_pairs([3] * items, [4] * items, seed=seed, scale=scale)
    loss = BetaDPO(beta=beta, gain=gain, keep=keep)
    state = {"mean": 0.2, "std": 1.5, "count": 40}
    found = loss(batch, state)
    kept = found.metrics["kept"].bool()
    assert int(kept.sum()) == max(1, math.floor(keep * items + 1e-9))
    margins = [w.ratio - r.ratio for w, r in pairs_of(batch)]
    used = [m.item() for m, own in zip(margins, kept.tolist(), strict=True) if own]
    numbers = torch.tensor([m.item() for m in margins], dtype=torch.float64)
    # As in the official code, the moving mean of the step's margins is one with that step in it.
    mean = 0.9 * 0.2 + 0.1 * numbers.mean().item()
    own_beta = max(1e-3, beta * (1 + gain * (sum(used) / len(used) - mean)))
    assert found.metrics["beta"].item() == pytest.approx(own_beta, rel=1e-9)
    # The mean over the batch is the mean over the pairs kept.
    share = items / len(used)
    values = [
        share * dpo(margin, own_beta) if own else 0 * margin
        for margin, own in zip(margins, kept.tolist(), strict=True)
    ]
    assert_same(found.values, torch.stack(values), batch)
    assert found.state["mean"] == pytest.approx(mean)
    spread = numbers.std(correction=0).item()
    assert found.state["std"] == pytest.approx(0.9 * 1.5 + 0.1 * spread)


def test_the_filter_draws_by_the_normal_density() -> None:
    """One of two pairs is kept in proportion to the weights e^-½(Δ-μ)²/s²."""
    margins = torch.tensor([0.0, 1.5], dtype=torch.float64)
    trials = 4000
    kept = [
        BetaDPO(keep=0.5).filter(margins, torch.tensor([2 * n, 2 * n + 1]), mean=0.0, std=1.0)[0]
        for n in range(trials)
    ]
    share = float(torch.stack(kept).double().mean())
    weights = 1.0, math.exp(-0.5 * 1.5**2)
    expected = weights[0] / sum(weights)
    assert share == pytest.approx(expected, abs=5 * math.sqrt(expected * (1 - expected) / trials))


def test_beta_dpo_has_a_floor_and_its_first_batch_is_its_own_past() -> None:
    margins = torch.tensor([-50.0, -60.0], dtype=torch.float64)
    assert BetaDPO().dynamic_beta(margins, 0.0).item() == pytest.approx(1e-3)
    batch = draw_pairs([3] * 5, [4] * 5, seed=1)
    found = BetaDPO(keep=1.0)(batch)
    assert found.metrics["beta"].item() == pytest.approx(0.1)  # kept mean = past mean
    mean = (batch.chosen.log_ratios - batch.rejected.log_ratios).mean().item()
    assert found.state["mean"] == pytest.approx(mean)
    assert found.state["count"] == 5


def assert_same(ours: torch.Tensor, closed: torch.Tensor, batch: Any) -> None:
    """Values and gradients agree, each pair by itself."""
    torch.testing.assert_close(ours, closed, rtol=1e-9, atol=1e-9)
    weights = torch.arange(1.0, len(ours) + 1, dtype=torch.float64)
    sides = batch.chosen, batch.rejected
    policies = [side.policy for side in sides]
    left = torch.autograd.grad((ours * weights).sum(), policies)
    right = torch.autograd.grad((closed * weights).sum(), policies)
    for one, other, side in zip(left, right, sides, strict=True):
        torch.testing.assert_close(one[side.mask], other[side.mask], rtol=1e-8, atol=1e-9)


def test_responses_of_the_helpers_are_padded_with_zeros() -> None:
    side = draw_responses([2, 5], seed=0)
    assert side.mask.sum(1).tolist() == [2, 5]
    assert not side.policy[~side.mask].any()
