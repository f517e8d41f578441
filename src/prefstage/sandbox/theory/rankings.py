"""What losses say about rankings (arXiv:2405.19534), and self-guided DPO (arXiv:2505.12435)."""

import torch
from torch import Tensor

from prefstage.diagnosing import (
    dpo_losses,
    flip_threshold,
    idealized_log_ratio,
    idealized_ranking_accuracy,
    ipo_flip_threshold,
    ranking_accuracy,
    reference_log_ratio,
    threshold_violations,
)
from prefstage.losses import DPO, IPO, SGDPO
from prefstage.sandbox.theory.evidence import (
    Evidence,
    Figure,
    check,
    counterexample,
    curve,
    equality,
    rule,
)
from prefstage.sandbox.theory.worlds import (
    Worlds,
    dpo_gradient,
    dpo_optimum,
    draw_worlds,
    generator_of,
    labelled,
    normal,
    optimum,
    uniform,
)

RANKINGS = "Rankings, arXiv:2405.19534"

BETA = 0.1
TAU = 0.2
SANE_LOSS = 0.6
RAISED_LOSS = 0.7
SMALL = 1e-3
PROBE_BETAS = (0.01, 0.1, 1.0)


def _pairs(count: int, *, seed: int) -> Tensor:
    # ℓ_w, ℓ_l under policy and reference: long responses, so log-probs far from 0. [4, count].
    return -50 + 8 * normal(generator_of(seed), 4, count)


@check(
    "rankings-2.6",
    f"{RANKINGS}, Proposition 2.6",
    "If π_ref(y_w) >= π_ref(y_l) and the DPO loss is at most 0.6, the order is right.",
    "Any β. The bound may be raised to log 2 = 0.693, and no further.",
    draw=_pairs,
)
def _sanity(pairs: Tensor) -> Evidence:
    policy_w, policy_l, reference_w, reference_l = pairs
    right = ranking_accuracy(policy_w, policy_l) > 0
    better = torch.maximum(reference_w, reference_l), torch.minimum(reference_w, reference_l)
    loss, turned = (
        dpo_losses(policy_w, policy_l, reference_log_ratio(*sides), beta=BETA)
        for sides in (better, better[::-1])
    )
    # A tied reference, and a policy that is a little wrong: a loss just above log 2.
    edge_wrong = -(better[0] - better[1]) / 100
    edge = dpo_losses(edge_wrong, 0 * edge_wrong, 0 * edge_wrong, beta=BETA)
    at = torch.linspace(0.02, 1.2, 60, dtype=torch.float64)
    wrong, imperfect = (
        [(~right[losses <= bound]).double().sum() / len(right) for bound in at]
        for losses in (loss, turned)
    )
    return Evidence(
        [
            rule("a right reference and a loss <= 0.6 give the right order",
                 (loss <= SANE_LOSS) & ~right),
            rule("so does a loss <= log 2, the sharp bound",
                 (loss <= torch.tensor(2.0).double().log()) & ~right),
            counterexample("without a right reference a loss <= 0.6 gives the right order",
                           (turned <= SANE_LOSS) & ~right),
            counterexample("a right reference and a loss <= 0.7 give the right order",
                           (edge <= RAISED_LOSS) & (edge_wrong < 0)),
        ],
        Figure("Wrong orders below a DPO loss", "bound on the loss (nats)", "share of all pairs",
               [curve("reference right", at, wrong), curve("reference wrong", at, imperfect)]),
    )  # fmt: skip


def _pair_of(worlds: Worlds) -> tuple[Tensor, Tensor, Tensor]:
    # Reference log-probs of the first two responses, and α. [worlds · prompts].
    reference = worlds.log_reference.reshape(-1, worlds.log_reference.shape[-1])
    return reference[:, 0], reference[:, 1], worlds.preference[..., 0, 1].reshape(-1)


def _idealized_ratios(worlds: Worlds) -> Tensor:
    # The library's log π*(y_w)/π*(y_l). [worlds, prompts]. It takes one β, and every world
    # has another: the part that β divides is asked for at β = 1.
    first, second, agreement = _pair_of(worlds)
    none, shape = torch.zeros_like(first), worlds.reward.shape[:2]
    unit = idealized_log_ratio(none, none, agreement, beta=1.0)
    return (first - second).reshape(shape) + unit.reshape(shape) / worlds.beta[..., 0]


@check(
    "rankings-3.1",
    f"{RANKINGS}, Theorem 3.1",
    "π*(y_w)/π*(y_l) = π_ref(y_w)/π_ref(y_l) · (α/(1-α))^(1/β).",
    "Preferences of all pairs together are Bradley-Terry, and 0 < α < 1. Data of a single "
    "pair a prompt always are.",
    draw=draw_worlds,
)
def _optimal_ratio(worlds: Worlds) -> Evidence:
    best = optimum(worlds.log_reference, worlds.reward, worlds.beta)
    even = torch.full_like(best, 1 / best.shape[-1])
    circular = worlds.preferring("intransitive")
    reached = (
        worlds.log_reference + dpo_optimum(labelled(even, even, circular.preference)) / worlds.beta
    )
    betas = torch.logspace(-2, 1, 40, dtype=torch.float64)
    ratios = [
        idealized_log_ratio(*_pair_of(worlds), beta=float(beta)).abs().mean() for beta in betas
    ]
    return Evidence(
        [
            equality("RLHF's optimum has the ratio of Eq. 2",
                     (best[..., 0] - best[..., 1]) - _idealized_ratios(worlds)),
            equality("and it is where DPO's gradient vanishes",
                     dpo_gradient(best - worlds.log_reference, worlds.beta,
                                  labelled(even, even, worlds.preference))),
            counterexample("without Bradley-Terry DPO's optimum has the ratio of Eq. 2",
                           (reached[..., 0] - reached[..., 1]
                            - _idealized_ratios(circular)).abs() > SMALL),
        ],
        Figure("How far perfect training parts a pair", "β", "mean |log π*(y_w)/π*(y_l)| (nats)",
               [curve("Eq. 2", betas, ratios)], log="xy"),
    )  # fmt: skip


@check(
    "rankings-3.3",
    f"{RANKINGS}, Corollary 3.3",
    "R* is the ranking accuracy of the optimum.",
    "Where π* ties nothing: Eq. 3 counts a tie as wrong, Eq. 1 as right.",
    draw=draw_worlds,
)
def _idealized(worlds: Worlds) -> Evidence:
    first, second, agreement = _pair_of(worlds)
    ideal = idealized_ranking_accuracy(first, second, agreement, betas=PROBE_BETAS).by_beta
    gaps = []
    for beta in PROBE_BETAS:
        best = optimum(worlds.log_reference, worlds.reward, torch.full_like(worlds.beta, beta))
        right = ranking_accuracy(best[..., 0].reshape(-1), best[..., 1].reshape(-1))
        gaps.append(torch.tensor(ideal[beta]).double() - torch.tensor(float(right.mean())).double())
    alike = torch.zeros(len(worlds.reward), dtype=torch.float64)
    split = idealized_ranking_accuracy(alike, alike, alike + 0.5, betas=[1.0]).by_beta[1.0]
    swept = idealized_ranking_accuracy(
        first, second, agreement, betas=torch.logspace(-2, 2, 40).tolist()
    ).by_beta
    return Evidence(
        [
            equality("R* is the ranking accuracy of π*, counted",
                     torch.stack(gaps).expand(len(worlds.reward), -1)),
            counterexample("a tie of π* counts the same in Eq. 3 (>) and Eq. 1 (>=)",
                           ranking_accuracy(alike, alike) != split),
        ],
        Figure("Idealized ranking accuracy", "β", "R*",
               [curve("random worlds", [*swept], [*swept.values()])], log="x"),
    )  # fmt: skip


@check(
    "rankings-4.1",
    f"{RANKINGS}, Theorem 4.1",
    "The order is right if and only if the DPO loss is at most -log σ(βc).",
    "Everywhere; in floating point the policy's log-ratio must be taken first.",
    draw=_pairs,
)
def _threshold(pairs: Tensor) -> Evidence:
    policy_w, policy_l, reference_w, reference_l = pairs
    c = reference_log_ratio(reference_w, reference_l)
    loss, bar = dpo_losses(policy_w, policy_l, c, beta=BETA), flip_threshold(c, beta=BETA)
    right = ranking_accuracy(policy_w, policy_l) > 0
    reach = torch.linspace(-40, 40, 161, dtype=torch.float64)
    return Evidence(
        [
            rule("right if and only if the loss is at most -log σ(βc)", right != (loss <= bar)),
            rule("so says the library's own watch", threshold_violations(loss, bar, right)),
            equality("a tie stands on the threshold",
                     dpo_losses(policy_w, policy_w, c, beta=BETA) - bar),
        ],
        Figure("The loss that flips a ranking", "reference log-ratio c (nats)",
               "-log σ(βc) (nats)",
               [curve(f"β = {beta:g}", reach, flip_threshold(reach, beta=beta))
                for beta in (0.05, 0.1, 0.5)], log="y"),
    )  # fmt: skip


@check(
    "rankings-a.7",
    f"{RANKINGS}, Proposition A.7",
    "IPO: if log π_ref(y_w)/π_ref(y_l) < -1/(2τ), zero loss means the wrong order; otherwise "
    "a loss of at most (log π_ref(y_w)/π_ref(y_l) + 1/(2τ))² guarantees the right one.",
    "The loss on sums of token log-probs. One direction only: a policy far beyond the goal "
    "has a large loss and the right order.",
    draw=_pairs,
)
def _ipo(pairs: Tensor) -> Evidence:
    policy_w, policy_l, reference_w, reference_l = pairs
    c = reference_log_ratio(reference_w, reference_l)
    loss = IPO(tau=TAU).of_ratios(policy_w - reference_w, policy_l - reference_l)
    bar = ipo_flip_threshold(c, tau=TAU)
    right = ranking_accuracy(policy_w, policy_l) > 0
    goal = 1 / (2 * TAU) - c
    hopeless = bar.isnan()
    reach = torch.linspace(-10, 10, 201, dtype=torch.float64)
    return Evidence(
        [
            rule("where -c < -1/(2τ), zero loss has the wrong order",
                 hopeless & (ranking_accuracy(goal, torch.zeros_like(goal)) > 0)),
            rule("elsewhere a loss <= (1/(2τ) - c)² guarantees the right order",
                 ~hopeless & (loss <= bar * (1 - 1e-12)) & ~right),
            counterexample("the guarantee is an equivalence, as DPO's is",
                           ~hopeless & right & (loss > bar)),
        ],
        Figure("IPO's loss by the policy's log-ratio (right of 0 the order is right)",
               "log π(y_w)/π(y_l) (nats)", f"IPO loss at τ = {TAU:g}",
               [curve(f"c = {ratio:g}", reach, (reach + ratio - 1 / (2 * TAU)).square())
                for ratio in (-2.0, 0.0, 4.0)]),
    )  # fmt: skip


SELF_GUIDED = "Self-Guided DPO, arXiv:2505.12435"


def _pilots(count: int, *, seed: int) -> Tensor:
    # a, b, p_w, p_l of random pairs, nats; and a number in [0, 1) for each. [5, count].
    generator = generator_of(seed)
    pairs = [normal(generator, count) * 2 for _ in range(4)]
    return torch.stack([*pairs, uniform(generator_of(seed + 1), count)])


def slopes(a: Tensor, b: Tensor, p_w: Tensor, p_l: Tensor) -> tuple[Tensor, ...]:
    """∂L/∂X1 and ∂L/∂X2 at X1 = e^a, X2 = e^b, by automatic differentiation.

    Args:
        a: Log-ratio of the chosen response. [pairs], nats.
        b: Of the rejected response. [pairs], nats.
        p_w: Pilot of the chosen response. [pairs], nats.
        p_l: Pilot of the rejected response. [pairs], nats.

    Returns:
        Both derivatives. [pairs].
    """
    x1, x2 = (ratio.exp().requires_grad_() for ratio in (a, b))
    return torch.autograd.grad(
        SGDPO(beta=BETA).of_pilots(x1.log(), x2.log(), p_w, p_l).sum(), [x1, x2]
    )


@check(
    "sgdpo-1",
    f"{SELF_GUIDED}, appendix A.1, Theorem 1",
    "The derivatives of the loss by X1 = e^a and X2 = e^b, pilots held fixed.",
    "Everywhere. The pilots carry no gradient.",
    draw=_pilots,
)
def _gradients(drawn: Tensor) -> Evidence:
    a, b, p_w, p_l, _ = drawn
    exact, (x1, x2, pilot_w, pilot_l) = slopes(a, b, p_w, p_l), drawn[:4].exp()
    ratios = drawn[:2].clone().requires_grad_()
    full = SGDPO(beta=BETA).of_pilots(ratios[0], ratios[1], a, b)
    dpo = DPO(beta=BETA).of_ratios(ratios[0], ratios[1])
    ours, theirs = (torch.autograd.grad(v.sum(), ratios)[0] for v in (full, dpo))
    reach = torch.linspace(-4, 4, 81, dtype=torch.float64)
    none = torch.zeros_like(reach)
    return Evidence(
        [
            equality(
                "∂L/∂X1 = -(β/2)·P2^β / [X1(X1^β + P2^β)]",
                exact[0] + BETA / 2 * pilot_l**BETA / (x1 * (x1**BETA + pilot_l**BETA)),
            ),
            equality(
                "∂L/∂X2 = (β/2)·X2^(β-1) / (P1^β + X2^β)",
                exact[1] - BETA / 2 * x2 ** (BETA - 1) / (pilot_w**BETA + x2**BETA),
            ),
            equality("with full pilots the loss is DPO's", full - dpo),
            equality("with full pilots the gradient is half of DPO's", (ours - theirs / 2).mT),
        ],
        Figure(
            "SGDPO: slope by the chosen response's own log-ratio",
            "a (nats)",
            "|∂L/∂a|",
            # By the chain rule the slope by a is that by X1 = e^a times X1.
            [
                curve(
                    f"pilot p_l = {pilot:g}",
                    reach,
                    (slopes(reach, none, none, none + pilot)[0] * reach.exp()).abs(),
                )
                for pilot in (-2.0, 0.0, 2.0)
            ],
        ),
    )


@check(
    "sgdpo-2",
    f"{SELF_GUIDED}, appendix A.1, Theorem 2",
    "|∂L/∂X1| grows with the rejected response's pilot P2, |∂L/∂X2| falls with P1.",
    "In absolute value: ∂L/∂X1 itself is negative, so it falls as P2 grows.",
    draw=_pilots,
)
def _monotone(drawn: Tensor) -> Evidence:
    a, b, p_w, p_l, up = drawn
    base, moved_w, moved_l = (
        slopes(a, b, p_w + w, p_l + low)
        for w, low in ((0 * up, 0 * up), (up, 0 * up), (0 * up, up))
    )
    reach = torch.linspace(-4, 4, 81, dtype=torch.float64)
    none = torch.zeros_like(reach)
    by_rejected, by_chosen = slopes(none, none, reach, reach)
    return Evidence(
        [
            rule("|∂L/∂X1| grows with P2", moved_l[0].abs() <= base[0].abs()),
            rule("|∂L/∂X2| falls with P1", moved_w[1].abs() >= base[1].abs()),
            equality("∂L/∂X1 does not depend on P1", moved_w[0] - base[0]),
            equality("∂L/∂X2 does not depend on P2", moved_l[1] - base[1]),
        ],
        Figure(
            "SGDPO: slopes by the pilots, at X1 = X2 = 1",
            "pilot (nats)",
            "slope",
            [
                curve("|∂L/∂X1| by p_l", reach, by_rejected.abs()),
                curve("|∂L/∂X2| by p_w", reach, by_chosen.abs()),
            ],
        ),
    )


def guided_share(a: Tensor, b: Tensor, p_w: Tensor, p_l: Tensor) -> Tensor:
    """h, the factor by which pilots change DPO's ratio of slopes X2/X1.

    ``h = [P2^β (P1^β + X2^β)] / [X2^β (X1^β + P2^β)]``

    Args:
        a: As for `slopes`.
        b: Likewise.
        p_w: Likewise.
        p_l: Likewise.

    Returns:
        h. [pairs]; 1 with full pilots.
    """
    x1, x2, pilot_w, pilot_l = ((BETA * ratio).exp() for ratio in (a, b, p_w, p_l))
    return pilot_l * (pilot_w + x2) / (x2 * (x1 + pilot_l))


@check(
    "sgdpo-3",
    f"{SELF_GUIDED}, appendix A.1, Theorem 3",
    "The ratio of the chosen response's slope to the rejected one's is DPO's times a "
    "monotone function h of X1/X2: increasing under one condition on the pilots, decreasing "
    "under its converse.",
    "With pilots P1 = γ1 X1 and P2 = γ2 X2: increasing if γ1γ2 > 1, decreasing if γ1γ2 < 1, "
    "and 1, as for DPO, between. The theorem's formulas are lost in the text at hand; this "
    "condition is the one that Theorem 1 gives in the form of its sentence. With X1 and X2 fixed h "
    "grows with either pilot.",
    draw=_pilots,
)
def _slope_ratio(drawn: Tensor) -> Evidence:
    a, b, p_w, p_l, up = drawn
    first, second = slopes(a, b, p_w, p_l)
    share = guided_share(a, b, p_w, p_l)
    # Pilots as multiples of what they are drawn from, log γ1 and log γ2, which stay as X1 grows.
    more_w, more_l = p_w - a, p_l - b
    both, grown = more_w + more_l, guided_share(a + up, b, p_w + up, p_l) - share
    odds, low = (BETA * (a - b)).exp(), (BETA * more_l).exp()
    reach = torch.linspace(-4, 4, 81, dtype=torch.float64)
    none = torch.zeros_like(reach)
    return Evidence(
        [
            equality(
                "log ratio of slopes = log(X2/X1) + log h",
                (first.abs() / second).log() - (b - a) - share.log(),
            ),
            equality(
                "h = γ2^β (γ1^β t + 1) / (t + γ2^β), t = (X1/X2)^β",
                share - low * ((BETA * more_w).exp() * odds + 1) / (odds + low),
            ),
            rule("h increases with X1/X2 where γ1γ2 > 1", (both > SMALL) & (grown <= 0)),
            rule("h decreases with X1/X2 where γ1γ2 < 1", (both < -SMALL) & (grown >= 0)),
            equality("h = 1 where γ1γ2 = 1", guided_share(a, b, a - more_l, p_l) - 1),
            counterexample("h increases with X1/X2, whatever the pilots", grown < 0),
            equality("h = 1 with full pilots, which is DPO", guided_share(a, b, a, b) - 1),
            rule("h grows with P1", guided_share(a, b, p_w + up, p_l) <= share),
            rule("h grows with P2", guided_share(a, b, p_w, p_l + up) <= share),
        ],
        Figure(
            "SGDPO: how pilots tilt the ratio of slopes (X1 = X2 = 1)",
            "pilot (nats)",
            "h",
            [
                curve("by p_w", reach, guided_share(none, none, reach, none)),
                curve("by p_l", reach, guided_share(none, none, none, reach)),
            ],
        ),
    )


CHECKS = (
    *(_sanity, _optimal_ratio, _idealized, _threshold, _ipo),
    *(_gradients, _monotone, _slope_ratio),
)
