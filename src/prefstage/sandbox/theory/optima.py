"""What the distribution of the data does to DPO's optimum, in one training and in many."""

import torch
from torch import Tensor

from prefstage.sandbox.theory.evidence import (
    Evidence,
    Figure,
    check,
    counterexample,
    curve,
    equality,
    order,
    rule,
)
from prefstage.sandbox.theory.worlds import (
    ROUNDING,
    SMALL,
    Worlds,
    differences,
    dpo_gradient,
    dpo_loss,
    dpo_optimum,
    draw_worlds,
    generator_of,
    kl,
    labelled,
    normal,
    objective,
    optimum,
    products,
)

DATA_DPO = "DataDPO, arXiv:2508.18312"

RATE = 0.5
UNSEEN = 0


def _others(worlds: Worlds, count: int) -> list[Tensor]:
    # Further random distributions over the responses. [worlds, prompts, responses].
    generator = generator_of(worlds.seed + 1)
    return [normal(generator, *worlds.reward.shape).softmax(-1) for _ in range(count)]


def _stepped(worlds: Worlds, joint: Tensor, rate: Tensor | float) -> tuple[Tensor, Tensor, Tensor]:
    # f before and after a functional gradient step, and log π after it.
    before = worlds.log_policy - worlds.log_reference
    after = before - rate * dpo_gradient(before, worlds.beta, joint)
    return before, after, (worlds.log_reference + after).log_softmax(-1)


@check(
    "data-4.1",
    f"{DATA_DPO}, Theorem 4.1",
    "A gradient step leaves π(y_h) as it is if y_h is outside the data's support.",
    "True of f = log π/π_ref before normalisation, under a functional gradient step. π itself "
    "changes through the normaliser, in first order of the step.",
    draw=draw_worlds,
)
def _support(worlds: Worlds) -> Evidence:
    (drawn,) = _others(worlds, 1)
    drawn[..., UNSEEN] = 0
    drawn = drawn / drawn.sum(-1, keepdim=True)
    joint = labelled(drawn, drawn, worlds.preference)
    before, after, policy = _stepped(worlds, joint, RATE)
    moved = policy[..., UNSEEN] - worlds.log_policy[..., UNSEEN]
    rates = torch.logspace(-4, -1, 10, dtype=torch.float64)
    moves = _stepped(worlds, joint, rates[:, None, None, None])[2] - worlds.log_policy
    changes = moves[..., UNSEEN].abs().mean((-1, -2))
    return Evidence(
        [
            equality("f = log π/π_ref of an unseen response stays", (after - before)[..., UNSEEN]),
            counterexample("π itself of an unseen response stays", moved.abs() > SMALL),
            equality("π changes by the normaliser alone",
                     moved + torch.logsumexp(worlds.log_reference + after, -1)),
            order("the change of log π is first order in the step", rates, changes, wanted=1.0,
                  worlds=len(worlds.reward)),
        ],
        Figure("An unseen response moves all the same", "step size", "mean |Δ log π(y_h)|",
               [curve("unseen response", rates, changes)], log="xy"),
    )  # fmt: skip


@check(
    "data-4.2",
    f"{DATA_DPO}, Proposition 4.2",
    "π(y_h) rises, stays or falls as the mean preference for y_h in the data is above, at or "
    "below the model's own.",
    "True of f, not of π, and for y_1, y_2 that are exchangeable: from different sources, "
    "both conditionals count.",
    draw=draw_worlds,
)
def _signs(worlds: Worlds) -> Evidence:
    first, second = _others(worlds, 2)
    before, after, policy = _stepped(worlds, labelled(first, first, worlds.preference), RATE)
    excess = worlds.preference - differences(worlds.beta * before).sigmoid()
    mean_excess = (excess * first[..., None, :]).sum(-1)
    rise, moved = after - before, policy - worlds.log_policy
    unlike = _stepped(worlds, labelled(first, second, worlds.preference), RATE)
    shown = _some_in_order(mean_excess, rise, moved)
    return Evidence(
        [
            equality("rise of f = 2·step·β·μ(y)·(P̄ - P̄_BT)",
                     rise - 2 * RATE * worlds.beta * first * mean_excess),
            rule("f rises if and only if P̄ > P̄_BT",
                 ((rise > 0) != (mean_excess > 0)) & (mean_excess.abs() > ROUNDING)),
            counterexample("π itself rises if and only if P̄ > P̄_BT",
                           (moved > 0) != (mean_excess > 0)),
            counterexample("the sign holds when y_1 and y_2 are drawn from different sources",
                           (unlike[1] > unlike[0])
                           != ((excess * second[..., None, :]).sum(-1) > 0)),
        ],
        Figure("Movement of a response after one step", "P̄ - P̄_BT", "change",
               [curve("of f", shown[0], shown[1]), curve("of log π", shown[0], shown[2])],
               points=True),
    )  # fmt: skip


def _some_in_order(first: Tensor, *others: Tensor) -> list[Tensor]:
    # Some 400 values in the order of the first: a figure shows no more points than that.
    order = first.reshape(-1).argsort()[:: max(1, first.numel() // 400)]
    return [values.reshape(-1)[order] for values in (first, *others)]


def _centred(values: Tensor) -> Tensor:
    return values - values.mean(-1, keepdim=True)


def ratio_optimum(worlds: Worlds, chosen: Tensor, rejected: Tensor) -> Tensor:
    """Log π_DPO of Eq. 7: ``π_DPO ∝ (π_w/π_l)^(1/β) π_ref``.

    Args:
        worlds: Reference and β.
        chosen: π_w. [worlds, prompts, responses].
        rejected: π_l, likewise.

    Returns:
        log π_DPO. [worlds, prompts, responses].
    """
    return (worlds.log_reference + (chosen / rejected).log() / worlds.beta).log_softmax(-1)


@check(
    "data-4.3",
    f"{DATA_DPO}, Theorem 4.3",
    "π_DPO ∝ (π_w/π_l)^(1/β) π_ref.",
    "Chosen and rejected response independent given the prompt, π_w and π_l positive. Pairs "
    "that are drawn and then labelled are not independent: there the formula with their "
    "marginals is not the optimum.",
    draw=draw_worlds,
)
def _optimum(worlds: Worlds) -> Evidence:
    chosen, rejected = _others(worlds, 2)
    joint = products(chosen, rejected)
    best = ratio_optimum(worlds, chosen, rejected) - worlds.log_reference
    away = normal(generator_of(worlds.seed + 2), *best.shape)
    pairs = labelled(chosen, chosen, worlds.preference)
    won, lost = pairs.sum(-1), pairs.sum(-2)
    marginal = ratio_optimum(worlds, won, lost) - worlds.log_reference
    true, implied, solved = _some_in_order(
        _centred(worlds.reward), _centred((won / lost).log()), dpo_optimum(pairs)
    )
    return Evidence(
        [
            equality("DPO's gradient vanishes at Eq. 7", dpo_gradient(best, worlds.beta, joint)),
            rule("no other policy has a smaller loss",
                 dpo_loss(best + away, worlds.beta, joint) < dpo_loss(best, worlds.beta, joint)),
            equality("Newton's method ends there",
                     dpo_optimum(joint) - _centred(worlds.beta * best)),
            counterexample("Eq. 7 with the marginals of pairs that were drawn, then labelled",
                           dpo_gradient(marginal, worlds.beta, pairs).abs() > SMALL),
        ],
        Figure("Drawn, then labelled by Bradley-Terry: implied reward", "true reward, centred",
               "implied reward, centred",
               [curve("log π_w/π_l of the marginals", true, implied),
                curve("DPO's optimum", true, solved)], points=True),
    )  # fmt: skip


@check(
    "data-4.4",
    f"{DATA_DPO}, Proposition 4.4",
    "π_DPO minimises -E_π[log π_w/π_l] + β KL(π, π_ref) "
    "= KL(π, π_w) - KL(π, π_l) + β KL(π, π_ref).",
    "Wherever Eq. 7 is defined.",
    draw=draw_worlds,
)
def _equivalent(worlds: Worlds) -> Evidence:
    chosen, rejected = _others(worlds, 2)
    best = ratio_optimum(worlds, chosen, rejected)
    # Eq. 8 is the alignment objective of the reward log π_w/π_l, with its sign turned.
    reward, policy, beta = (chosen / rejected).log(), worlds.log_policy, worlds.beta[..., 0]
    most = objective(worlds, best, reward)
    excess = most - objective(worlds, policy, reward)
    shares = torch.linspace(0, 1, 41, dtype=torch.float64)
    share = shares[:, None, None, None]
    between = ((1 - share) * policy + share * best).log_softmax(-1)
    along = (most - objective(worlds, between, reward)).mean((-1, -2))
    return Evidence(
        [
            equality("Eq. 8 = Eq. 9",
                     objective(worlds, policy, reward)
                     + kl(policy, chosen.log()) - kl(policy, rejected.log())
                     + beta * kl(policy, worlds.log_reference)),
            equality("its excess over the optimum is β KL(π, π_DPO)",
                     excess - beta * kl(policy, best)),
            rule("no policy is below π_DPO", excess < 0),
        ],
        Figure("Eq. 8 on the way to π_DPO", "share of the way", "mean excess",
               [curve("geometric path", shares, along)]),
    )  # fmt: skip


def _online_gradients(worlds: Worlds, chosen: Tensor, beta: float) -> list[Tensor]:
    # Gradients by logits: of DPO with rejected responses from π, of SFT, of the KL.
    logits = worlds.log_policy.clone().requires_grad_()
    log_policy = logits.log_softmax(-1)
    losses = (
        dpo_loss(
            log_policy - worlds.log_reference, beta, products(chosen, worlds.log_policy.exp())
        ),
        -(chosen * log_policy),
        kl(log_policy, worlds.log_reference),
    )
    return [torch.autograd.grad(v.sum(), logits, retain_graph=True)[0] for v in losses]


def _cross(worlds: Worlds, chosen: Tensor) -> Tensor:
    # -E[(f(y_l) - f(y_w)) ∇ log π(y_w)], the term that the printed theorem calls ε_β.
    policy = worlds.log_policy.exp()
    f = worlds.log_policy - worlds.log_reference
    weights = chosen * ((policy * f).sum(-1, keepdim=True) - f)
    return -(weights - weights.sum(-1, keepdim=True) * policy)


@check(
    "data-4.5",
    f"{DATA_DPO}, Theorem 4.5",
    "With y_w fixed and y_l from π, ∇L_DPO ≈ (β/2)∇(SFT + (β/2) KL), error of third order.",
    "The term hidden in ε_β is of the order β², as the KL term is: without it the error is of "
    "second order, with the KL or without. With it, it is of fourth order.",
    draw=draw_worlds,
)
def _online(worlds: Worlds) -> Evidence:
    (chosen,) = _others(worlds, 1)
    betas = torch.logspace(-2.5, -0.5, 12, dtype=torch.float64)
    errors = []
    for beta in betas:
        dpo, sft, divergence = _online_gradients(worlds, chosen, float(beta))
        remainders = [
            dpo - beta / 2 * sft - beta**2 / 4 * v
            for v in (0, divergence, divergence + _cross(worlds, chosen))
        ]
        errors.append(torch.stack([remainder.abs().mean() for remainder in remainders]))
    sft_only, printed, whole = torch.stack(errors, 1)
    count = len(worlds.reward)
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


ROUNDS = 12
FLOOR = 1e-3
"""Share of the pairs drawn evenly, so that every comparison keeps some weight."""


def trained(worlds: Worlds, sampled: Tensor, log_start: Tensor) -> Tensor:
    """Log π that minimises DPO's loss on pairs from a sampling distribution.

    Args:
        worlds: Preferences and β.
        sampled: Probabilities that both responses are drawn with. [..., worlds, prompts,
            responses].
        log_start: log π_ref. [worlds, prompts, responses].

    Returns:
        log π. [..., worlds, prompts, responses].
    """
    mixed = (1 - FLOOR) * sampled + FLOOR / sampled.shape[-1]
    return (
        log_start + dpo_optimum(labelled(mixed, mixed, worlds.preference)) / worlds.beta
    ).log_softmax(-1)


@check(
    "sampling-concentrates",
    "Rafailov et al. 2023, arXiv:2305.18290, Eq. 4, repeated",
    "Repeated on-policy DPO, each round's reference the last policy, puts all mass on the best "
    "response.",
    "Exact Bradley-Terry preferences and full support. Reward and mass of the best response "
    "rise in every round; the entropy may first rise, where the start is sure and wrong.",
    draw=draw_worlds,
)
def _concentration(worlds: Worlds) -> Evidence:
    # On-policy rounds in closed form, π_T ∝ π_0 exp(T r/β), start included; and one by one.
    rounds = torch.stack(
        [
            optimum(worlds.log_reference, step * worlds.reward, worlds.beta)
            for step in range(ROUNDS + 1)
        ],
        -1,
    )
    steps = [worlds.log_reference]
    for _ in range(ROUNDS):
        steps.append(optimum(steps[-1], worlds.reward, worlds.beta))
    gains = (rounds.exp() * worlds.reward[..., None]).sum(-2)
    best = worlds.reward.argmax(-1)[..., None, None].expand(*gains.shape[:2], 1, ROUNDS + 1)
    on_best = rounds.gather(-2, best)[..., 0, :]
    spread = -(rounds.exp() * rounds).sum(-2)
    moves = torch.arange(ROUNDS + 1, dtype=torch.float64)
    return Evidence(
        [
            equality("T rounds, each with the last policy as reference: π_0 exp(T r/β)",
                     (torch.stack(steps, -1).exp() - rounds.exp())[..., 1:]),
            rule("the expected reward never falls", gains.diff(dim=-1) < -ROUNDING),
            rule("the best response never loses", on_best.diff(dim=-1) < -ROUNDING),
            counterexample("the entropy never rises", spread.diff(dim=-1) > SMALL),
        ],
        Figure("Repeated on-policy DPO concentrates", "round", "mean over worlds",
               [curve("entropy (nats)", moves, spread.mean((0, 1))),
                curve("π(best response)", moves, on_best.exp().mean((0, 1))),
                curve("expected reward", moves, gains.mean((0, 1)))]),
    )  # fmt: skip


@check(
    "sampling-moves",
    "How Sampling Shapes LLM Alignment (the statement in our words)",
    "DPO's optimum depends on the distribution that the pairs are drawn from.",
    "Only where preferences are not Bradley-Terry (or the support is not full): with a "
    "Bradley-Terry P* the optimum is the same for every sampling of full support.",
    draw=draw_worlds,
)
def _sampling(worlds: Worlds) -> Evidence:
    start = worlds.log_reference
    draws = normal(generator_of(worlds.seed + 1), 2, *worlds.reward.shape).softmax(-1)
    circular = worlds.preferring("intransitive")
    curves = []
    for label, world in (("Bradley-Terry", worlds), ("intransitive", circular)):
        policies = [start]
        for _ in range(ROUNDS):
            policies.append(trained(world, policies[-1].exp(), start))
        changes = torch.stack(policies).exp().diff(dim=0).abs().sum(-1).mean((-1, -2)) / 2
        curves.append(curve(label, list(range(1, ROUNDS + 1)), changes))
    return Evidence(
        [
            equality("under Bradley-Terry DPO's gradient vanishes at π* for any sampling",
                     dpo_gradient(worlds.reward / worlds.beta, worlds.beta,
                                  labelled(draws[0], draws[0], worlds.preference))),
            counterexample("without it the optimum does not depend on the sampling",
                           trained(circular, draws, start).diff(dim=0)[0].abs() > SMALL),
        ],
        Figure("Sampling from the last round's policy, fixed reference", "round",
               "mean change of the policy (total variation)", curves),
    )  # fmt: skip


DATA_CHECKS = (_support, _signs, _optimum, _equivalent, _online)
SAMPLING_CHECKS = (_concentration, _sampling)
