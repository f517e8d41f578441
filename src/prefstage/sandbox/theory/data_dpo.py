"""DataDPO (arXiv:2508.18312): what the distribution of the data does to DPO's optimum."""

import torch
from torch import Tensor

from prefstage.sandbox.theory.evidence import (
    Check,
    Evidence,
    Figure,
    Setting,
    counterexample,
    curve,
    equality,
    order,
    rule,
)
from prefstage.sandbox.theory.worlds import (
    Worlds,
    dpo_gradient,
    dpo_loss,
    dpo_optimum,
    draw_worlds,
    generator_of,
    kl,
    labelled,
    log_normalised,
)

RATE = 0.5
ROUNDING = 1e-12
SMALL = 1e-6
UNSEEN = 0


def _others(worlds: Worlds, seed: int, count: int) -> list[Tensor]:
    """Further random distributions over the responses. [worlds, prompts, responses]."""
    generator = generator_of(seed + 1)
    shape = worlds.reward.shape
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64).softmax(-1)
        for _ in range(count)
    ]


def _stepped(worlds: Worlds, joint: Tensor, rate: float) -> tuple[Tensor, Tensor, Tensor]:
    """F before and after a functional gradient step, and log π after it."""
    before = worlds.log_policy - worlds.log_reference
    after = before - rate * dpo_gradient(before, worlds.beta, joint)
    return before, after, log_normalised(worlds.log_reference + after)


def check_support(setting: Setting) -> Evidence:
    """Theorem 4.1: a response that the data never show."""
    worlds = draw_worlds(setting.worlds, seed=setting.seed)
    (drawn,) = _others(worlds, setting.seed, 1)
    drawn[..., UNSEEN] = 0
    drawn = drawn / drawn.sum(-1, keepdim=True)
    joint = labelled(drawn, drawn, worlds.preference)
    before, after, policy = _stepped(worlds, joint, RATE)
    moved = policy[..., UNSEEN] - worlds.log_policy[..., UNSEEN]
    normaliser = torch.logsumexp(worlds.log_reference + after, -1)
    rates = torch.logspace(-4, -1, 10, dtype=torch.float64)
    changes = torch.stack(
        [
            (_stepped(worlds, joint, float(rate))[2] - worlds.log_policy)[..., UNSEEN].abs().mean()
            for rate in rates
        ]
    )
    return Evidence(
        [
            equality("f = log π/π_ref of an unseen response stays", (after - before)[..., UNSEEN]),
            counterexample("π itself of an unseen response stays", moved.abs() > SMALL),
            equality("π changes by the normaliser alone", moved + normaliser),
            order("the change of log π is first order in the step", rates, changes, wanted=1.0,
                  worlds=worlds.count),
        ],
        Figure("An unseen response moves all the same", "step size", "mean |Δ log π(y_h)|",
               [curve("unseen response", rates, changes)], log="xy"),
    )  # fmt: skip


def check_signs(setting: Setting) -> Evidence:
    """Proposition 4.2: which way a response moves."""
    worlds = draw_worlds(setting.worlds, seed=setting.seed)
    first, second = _others(worlds, setting.seed, 2)
    before, after, policy = _stepped(worlds, labelled(first, first, worlds.preference), RATE)
    scaled = worlds.beta * before
    modelled = (scaled[..., :, None] - scaled[..., None, :]).sigmoid()
    excess = worlds.preference - modelled
    mean_excess = (excess * first[..., None, :]).sum(-1)
    rise = after - before
    moved = policy - worlds.log_policy
    unlike = _stepped(worlds, labelled(first, second, worlds.preference), RATE)
    conditional = (excess * second[..., None, :]).sum(-1)
    wrong = ((rise > 0) != (mean_excess > 0)) & (mean_excess.abs() > ROUNDING)
    order_of = mean_excess.reshape(-1).argsort()[:: max(1, mean_excess.numel() // 400)]
    return Evidence(
        [
            equality("rise of f = 2·step·β·μ(y)·(P̄ - P̄_BT)",
                     rise - 2 * RATE * worlds.beta * first * mean_excess),
            rule("f rises if and only if P̄ > P̄_BT", wrong),
            counterexample("π itself rises if and only if P̄ > P̄_BT",
                           (moved > 0) != (mean_excess > 0)),
            counterexample("the sign holds when y_1 and y_2 are drawn from different sources",
                           ((unlike[1] - unlike[0]) > 0) != (conditional > 0)),
        ],
        Figure("Movement of a response after one step", "P̄ - P̄_BT", "change",
               [curve("of f", mean_excess.reshape(-1)[order_of], rise.reshape(-1)[order_of]),
                curve("of log π", mean_excess.reshape(-1)[order_of],
                      moved.reshape(-1)[order_of])], points=True),
    )  # fmt: skip


def ratio_optimum(worlds: Worlds, chosen: Tensor, rejected: Tensor) -> Tensor:
    """Log π_DPO of Eq. 7: ``π_DPO ∝ (π_w/π_l)^(1/β) π_ref``.

    Args:
        worlds: Reference and β.
        chosen: π_w. [worlds, prompts, responses].
        rejected: π_l, likewise.

    Returns:
        log π_DPO. [worlds, prompts, responses].
    """
    return log_normalised(worlds.log_reference + (chosen / rejected).log() / worlds.beta)


def check_optimum(setting: Setting) -> Evidence:
    """Theorem 4.3: the optimum for independent chosen and rejected responses."""
    worlds = draw_worlds(setting.worlds, seed=setting.seed)
    chosen, rejected = _others(worlds, setting.seed, 2)
    joint = chosen[..., :, None] * rejected[..., None, :]
    best = ratio_optimum(worlds, chosen, rejected) - worlds.log_reference
    noise = torch.randn(best.shape, generator=generator_of(setting.seed + 2), dtype=torch.float64)
    least = dpo_loss(best, worlds.beta, joint)
    beside = dpo_loss(best + noise, worlds.beta, joint)
    solved = dpo_optimum(joint)
    formula = worlds.beta * best
    centred = formula - formula.mean(-1, keepdim=True)
    pairs = labelled(chosen, chosen, worlds.preference)
    marginal = ratio_optimum(worlds, pairs.sum(-1), pairs.sum(-2))
    slope = dpo_gradient(marginal - worlds.log_reference, worlds.beta, pairs)
    ratio = (pairs.sum(-1) / pairs.sum(-2)).log()
    true = worlds.reward - worlds.reward.mean(-1, keepdim=True)
    ranks = true.reshape(-1).argsort()[:: max(1, true.numel() // 400)]
    shown = (ratio - ratio.mean(-1, keepdim=True)).reshape(-1)[ranks]
    return Evidence(
        [
            equality("DPO's gradient vanishes at Eq. 7", dpo_gradient(best, worlds.beta, joint)),
            rule("no other policy has a smaller loss", beside < least),
            equality("Newton's method ends there", solved - centred),
            counterexample("Eq. 7 with the marginals of pairs that were drawn, then labelled",
                           slope.abs() > SMALL),
        ],
        Figure("Drawn, then labelled by Bradley-Terry: implied reward", "true reward, centred",
               "implied reward, centred",
               [curve("log π_w/π_l of the marginals", true.reshape(-1)[ranks], shown),
                curve("DPO's optimum", true.reshape(-1)[ranks],
                      dpo_optimum(pairs).reshape(-1)[ranks])], points=True),
    )  # fmt: skip


def check_equivalent(setting: Setting) -> Evidence:
    """Proposition 4.4: the same optimum as of an RLHF objective."""
    worlds = draw_worlds(setting.worlds, seed=setting.seed)
    chosen, rejected = _others(worlds, setting.seed, 2)
    best = ratio_optimum(worlds, chosen, rejected)
    beta = worlds.beta[..., 0]

    def objective(log_policy: Tensor) -> Tensor:
        gain = (log_policy.exp() * (chosen / rejected).log()).sum(-1)
        return beta * kl(log_policy, worlds.log_reference) - gain

    policy = worlds.log_policy
    divergences = kl(policy, chosen.log()) - kl(policy, rejected.log())
    other = divergences + beta * kl(policy, worlds.log_reference)
    excess = objective(policy) - objective(best)
    shares = torch.linspace(0, 1, 41, dtype=torch.float64)
    along = [
        (objective(log_normalised((1 - t) * policy + t * best)) - objective(best)).mean()
        for t in shares
    ]
    return Evidence(
        [
            equality("Eq. 8 = Eq. 9", objective(policy) - other),
            equality("its excess over the optimum is β KL(π, π_DPO)",
                     excess - beta * kl(policy, best)),
            rule("no policy is below π_DPO", excess < 0),
        ],
        Figure("Eq. 8 on the way to π_DPO", "share of the way", "mean excess",
               [curve("geometric path", shares, along)]),
    )  # fmt: skip


def _online(worlds: Worlds, chosen: Tensor, beta: float) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients by logits: of DPO with rejected responses from π, of SFT, of the KL."""
    logits = worlds.log_policy.clone().requires_grad_()
    log_policy = logits.log_softmax(-1)
    joint = chosen[..., :, None] * worlds.log_policy.exp()[..., None, :]
    scale = torch.full_like(worlds.beta, beta)
    losses = (
        dpo_loss(log_policy - worlds.log_reference, scale, joint).sum(),
        -(chosen * log_policy).sum(),
        kl(log_policy, worlds.log_reference).sum(),
    )
    dpo, sft, divergence = (
        torch.autograd.grad(each, logits, retain_graph=True)[0] for each in losses
    )
    return dpo, sft, divergence


def _cross(worlds: Worlds, chosen: Tensor) -> Tensor:
    """-E[(f(y_l) - f(y_w)) ∇ log π(y_w)], the term that the printed theorem calls ε_β."""
    policy = worlds.log_policy.exp()
    f = worlds.log_policy - worlds.log_reference
    weights = chosen * ((policy * f).sum(-1, keepdim=True) - f)
    return -(weights - weights.sum(-1, keepdim=True) * policy)


def check_online(setting: Setting) -> Evidence:
    """Theorem 4.5: DPO with a fixed chosen side is SFT, to which order?"""
    worlds = draw_worlds(setting.worlds, seed=setting.seed)
    (chosen,) = _others(worlds, setting.seed, 1)
    betas = torch.logspace(-2.5, -0.5, 12, dtype=torch.float64)
    crossed = _cross(worlds, chosen)
    errors: list[list[Tensor]] = [[], [], []]
    for beta in betas:
        dpo, sft, divergence = _online(worlds, chosen, float(beta))
        remainder = dpo - beta / 2 * sft
        errors[0].append(remainder.abs().mean())
        errors[1].append((remainder - beta**2 / 4 * divergence).abs().mean())
        errors[2].append((remainder - beta**2 / 4 * (divergence + crossed)).abs().mean())
    sft_only, printed, whole = (torch.stack(each) for each in errors)
    count = worlds.count
    return Evidence(
        [
            order("(β/2)∇SFT alone", betas, sft_only, wanted=2.0, worlds=count),
            order("(β/2)∇SFT + (β²/4)∇KL, as printed: no order is won", betas, printed,
                  wanted=2.0, worlds=count),
            order("with the cross term as well", betas, whole, wanted=4.0, worlds=count),
        ],
        Figure("DPO with a fixed chosen side: error of its approximations", "β",
               "mean error of the gradient",
               [curve("(β/2)∇SFT", betas, sft_only), curve("+ (β²/4)∇KL", betas, printed),
                curve("+ cross term", betas, whole)], log="xy"),
    )  # fmt: skip


PAPER = "DataDPO, arXiv:2508.18312"
CHECKS = (
    Check(
        "data-4.1",
        f"{PAPER}, Theorem 4.1",
        "A gradient step leaves π(y_h) as it is if y_h is outside the data's support.",
        "True of f = log π/π_ref before normalisation, under a functional gradient step. π itself "
        "changes through the normaliser, in first order of the step.",
        check_support,
    ),
    Check(
        "data-4.2",
        f"{PAPER}, Proposition 4.2",
        "π(y_h) rises, stays or falls as the mean preference for y_h in the data is above, at or "
        "below the model's own.",
        "True of f, not of π, and for y_1, y_2 that are exchangeable: from different sources, "
        "both conditionals count.",
        check_signs,
    ),
    Check(
        "data-4.3",
        f"{PAPER}, Theorem 4.3",
        "π_DPO ∝ (π_w/π_l)^(1/β) π_ref.",
        "Chosen and rejected response independent given the prompt, π_w and π_l positive. Pairs "
        "that are drawn and then labelled are not independent: there the formula with their "
        "marginals is not the optimum.",
        check_optimum,
    ),
    Check(
        "data-4.4",
        f"{PAPER}, Proposition 4.4",
        "π_DPO minimises -E_π[log π_w/π_l] + β KL(π, π_ref) "
        "= KL(π, π_w) - KL(π, π_l) + β KL(π, π_ref).",
        "Wherever Eq. 7 is defined.",
        check_equivalent,
    ),
    Check(
        "data-4.5",
        f"{PAPER}, Theorem 4.5",
        "With y_w fixed and y_l from π, ∇L_DPO ≈ (β/2)∇(SFT + (β/2) KL), error of third order.",
        "The term hidden in ε_β is of the order β², as the KL term is: without it the error is of "
        "second order, with the KL or without. With it, it is of fourth order.",
        check_online,
    ),
)
