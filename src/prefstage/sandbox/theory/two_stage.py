"""TwoStage (arXiv:2508.10530): rewards, policies and preferences that determine each other."""

from functools import partial

import torch
from torch import Tensor

from prefstage.sandbox.theory.evidence import (
    EXACT,
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
    HALF,
    NOISE,
    ROUNDING,
    SMALL,
    PreferenceModel,
    Worlds,
    cycle,
    differences,
    dpo_gradient,
    dpo_loss,
    draw_worlds,
    generator_of,
    kl,
    objective,
    optimum,
    parted,
    products,
)

PAPER = "TwoStage, arXiv:2508.10530"

DISTANCES = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
VOTES = (100, 400, 1600, 6400, 25600, 102400)


@check(
    "stage-5.1",
    f"{PAPER}, Theorem 5.1",
    "For any policy π_θ and reference there is a unique reward of which π_θ is the optimum.",
    "Both of full support, and the reward up to a constant for each prompt: the printed proof "
    "moves one reward while the others are held.",
    draw=draw_worlds,
)
def _bijection(worlds: Worlds) -> Evidence:
    implied = worlds.beta * (worlds.log_policy - worlds.log_reference)
    best = optimum(worlds.log_reference, worlds.reward, worlds.beta)
    value = objective(worlds, best, worlds.reward)
    gap = value - objective(worlds, worlds.log_policy, worlds.reward)
    more = worlds.reward + (1 + worlds.reward.abs().amax(-1, keepdim=True))
    moves = torch.linspace(-1, 1, 41, dtype=torch.float64)
    tilted = (best + moves[:, None, None, None] * worlds.reward).log_softmax(-1)
    along = (value - objective(worlds, tilted, worlds.reward)).mean((-1, -2))
    return Evidence(
        [
            equality("the optimum under r = β log π/π_ref is π",
                     optimum(worlds.log_reference, implied, worlds.beta) - worlds.log_policy),
            equality("a policy falls behind the optimum by β KL(π, π*)",
                     gap - worlds.beta[..., 0] * kl(worlds.log_policy, best)),
            rule("no policy exceeds the optimum", gap < 0),
            counterexample("the reward is unique (r + c(x) gives the same policy)",
                           (optimum(worlds.log_reference, more, worlds.beta) - best)
                           .abs().amax(-1) <= EXACT),
        ],
        Figure("Falling behind the optimum", "tilt of π* by the reward", "mean loss of Eq. 3",
               [curve("random worlds", moves, along)]),
    )  # fmt: skip


def _voted(chance: Tensor, votes: int, generator: torch.Generator) -> Tensor:
    # Half a vote is added to each side: a share of 0 or 1 has no finite logit.
    count = torch.binomial(torch.full_like(chance, votes), chance.contiguous(), generator=generator)
    return torch.logit((count + 0.5) / (votes + 1))


@check(
    "stage-5.2",
    f"{PAPER}, Theorem 5.2",
    "The optimum can only be achieved if the data are infinite.",
    "With exact Bradley-Terry labels and K responses to a prompt, K - 1 pairs that link all "
    "of them suffice. Infinite are the votes that an exact label takes, and the responses of "
    "a language. Pairs that leave the responses in separate groups determine no policy.",
    draw=draw_worlds,
)
def _finite(worlds: Worlds) -> Evidence:
    best = optimum(worlds.log_reference, worlds.reward, worlds.beta)
    neighbours = torch.diagonal(worlds.preference, 1, -2, -1)
    # f, up to a constant, that fits neighbours' preferences. [worlds, prompts, responses].
    fitted = torch.nn.functional.pad(-(neighbours.logit() / worlds.beta).cumsum(-1), (1, 0))
    fit = (worlds.log_reference + fitted).log_softmax(-1)
    # Pairs of neighbours alone: K - 1 pairs a prompt, labelled by P. P(y_w, y_l).
    linked = torch.diag(torch.ones(worlds.reward.shape[-1] - 1, dtype=torch.float64), 1)
    joint = (linked + linked.T) * worlds.preference / linked.sum()
    middle = worlds.reward.shape[-1] // 2
    cut = joint.clone()
    cut[..., middle - 1, middle] = cut[..., middle, middle - 1] = 0
    lifted = fitted.clone()
    lifted[..., middle:] += 1
    generator, exact = generator_of(worlds.seed + 1), neighbours.logit()
    errors = torch.stack(
        [(_voted(neighbours, votes, generator) - exact).abs().mean() for votes in VOTES]
    )
    votes = torch.tensor(VOTES, dtype=torch.float64)
    return Evidence(
        [
            equality("K - 1 pairs in a chain, exactly labelled, give π*", fit - best),
            equality("DPO's gradient on them vanishes there",
                     dpo_gradient(fitted, worlds.beta, joint)),
            counterexample("the optimum can only be achieved with infinite data",
                           (fit - best).abs().amax(-1) <= EXACT),
            equality("a chain that is cut leaves the loss alike",
                     dpo_loss(fitted, worlds.beta, cut) - dpo_loss(lifted, worlds.beta, cut)),
            rule("for policies that differ",
                 ((worlds.log_reference + lifted).log_softmax(-1) - fit).abs().amax(-1) <= SMALL),
            order("error of the fitted reward by votes a pair", votes, errors, wanted=-0.5,
                  worlds=len(worlds.reward), within=0.05),
        ],
        Figure("Finite votes: error of the fitted reward", "votes a pair",
               "mean error of a reward difference",
               [curve("pairs of neighbours", votes, errors)], log="xy"),
    )  # fmt: skip


def general_policy(preference: Tensor) -> tuple[Tensor, Tensor]:
    """Solve Definition 5.3 for π_G, and say how far the preference is from having one.

    ``π_G(y_2) = 1 / Σ_{y_1} P(y_1 ≻ y_2)/P(y_2 ≻ y_1)`` (Eq. 24). The misfit is the largest
    ``|logit P(y_1 ≻ y_2) - log π_G(y_1)/π_G(y_2)|``: 0 if and only if a π_G exists.

    Args:
        preference: P(y_i ≻ y_j | x), strictly between 0 and 1. [..., responses, responses].

    Returns:
        log π_G [..., responses], normalised, and the misfit [...], nats.
    """
    odds = torch.logit(preference)
    log_policy = (-torch.logsumexp(odds, -2)).log_softmax(-1)
    return log_policy, (odds - differences(log_policy)).abs().amax((-1, -2))


@check(
    "stage-5.4",
    f"{PAPER}, Definition 5.3 and Theorem 5.4",
    "Every well-defined P* has a unique π_G with P* = σ(log π_G(y_1) - log π_G(y_2)).",
    "Unique always; it exists if and only if logit P* adds up along any path (no noise, ties "
    "or cycles) and 0 < P* < 1.",
    draw=draw_worlds,
)
def _general(worlds: Worlds) -> Evidence:
    log_policy, misfit = general_policy(worlds.preference)
    models: dict[str, PreferenceModel] = {
        "noise": "noisy",
        "ties": "ties",
        "cycles": "intransitive",
    }
    without = {
        label: general_policy(worlds.preferring(model).preference)[1]
        for label, model in models.items()
    }
    margin = differences(worlds.reward)
    sizes = torch.linspace(0, 1, 21, dtype=torch.float64)[:, None, None, None, None]
    circular, noisy = (
        general_policy(preferences)[1].mean((-1, -2))
        for preferences in (
            (margin + sizes * cycle(margin.shape[-1])).sigmoid(),
            sizes * NOISE + (1 - 2 * sizes * NOISE) * margin.sigmoid(),
        )
    )
    return Evidence(
        [
            equality("Eq. 24 gives the softmax of the reward",
                     log_policy - worlds.reward.log_softmax(-1)),
            equality("and its preferences are P*", misfit),
            *[
                counterexample(f"preferences with {label} have a π_G", gap > SMALL)
                for label, gap in without.items()
            ],
            rule("preferences with noise or cycles are always told apart",
                 (without["noise"] <= SMALL) | (without["cycles"] <= SMALL)),
        ],
        Figure("No π_G: how far preferences are from having one",
               "departure from Bradley-Terry (share of the default)", "mean misfit (nats)",
               [curve("label noise", sizes.flatten(), noisy),
                curve("cycles", sizes.flatten(), circular)]),
    )  # fmt: skip


def consistency(first: Tensor, second: Tensor, weights: Tensor) -> Tensor:
    """Definition 5.5: how often two preferences name the same winner.

    Args:
        first: P_1(y_i ≻ y_j | x). [..., responses, responses].
        second: P_2, likewise; both above ½ or both not.
        weights: Probability of each comparison. [..., responses, responses].

    Returns:
        The consistency. [...], in [0, 1].
    """
    return (weights * ((first > HALF) == (second > HALF))).sum((-1, -2))


@check(
    "stage-5.5",
    f"{PAPER}, Definition 5.5",
    "The greatest preference consistency is a sufficient condition of identical preferences.",
    "It is necessary, not sufficient: consistency sees the order of responses alone.",
    draw=draw_worlds,
)
def _consistency(worlds: Worlds) -> Evidence:
    policy = worlds.log_policy.exp()
    drawn, margin = products(policy, policy), differences(worlds.reward)
    tempered = (2 * margin).sigmoid()
    powers = torch.linspace(0.1, 4, 40, dtype=torch.float64)
    sharpened = (powers[:, None, None, None, None] * margin).sigmoid()
    return Evidence(
        [
            equality("π_G and its square have consistency 1",
                     consistency(worlds.preference, tempered, drawn) - 1),
            counterexample("consistency 1 makes the preferences identical",
                           ((tempered - worlds.preference).abs() * drawn).sum((-1, -2)) > SMALL),
        ],
        Figure("Consistency sees the order alone", "power of π_G", "",
               [curve("consistency with P*", powers,
                      consistency(sharpened, worlds.preference, drawn).mean((-1, -2))),
                curve("mean |P - P*|", powers,
                      (sharpened - worlds.preference).abs().mean((-1, -2, -3, -4)))]),
    )  # fmt: skip


def _consistencies(worlds: Worlds, distance: float) -> list[Tensor]:
    # Exact and simplified consistency of π_θ, distinctness, and first and last of π_off.
    policy, off = parted(worlds.log_policy, worlds.log_reference, distance)
    drawn = products(policy.exp(), off.exp())
    ahead, ahead_off = (differences(side).sigmoid() for side in (policy, off))
    return [
        consistency(worlds.preference, ahead, drawn),
        *((drawn * (chance > HALF)).sum((-1, -2)) for chance in (worlds.preference, ahead)),
        consistency(worlds.preference, ahead_off, drawn),
        (drawn * (ahead_off > HALF)).sum((-1, -2)),
    ]


@check(
    "stage-12-13",
    f"{PAPER}, Eqs. 12 and 13",
    "Consistency with P* is the boundary score if π_θ and π_off are distinct.",
    "The error is at most 1 - distinctness.",
    draw=partial(draw_worlds, responses=8),
)
def _simplified(worlds: Worlds) -> Evidence:
    broken, broken_off, rows = [], [], []
    for distance in DISTANCES:
        exact, simple, distinct, exact_off, overlap_off = _consistencies(worlds, distance)
        error = (exact - simple).abs()
        broken.append(error > 1 - distinct + ROUNDING)
        broken_off.append((exact_off - (1 - simple)).abs() > overlap_off + ROUNDING)
        calls = (exact.mean(-1) > exact_off.mean(-1)) != (simple.mean(-1) > HALF)
        rows.append([v.double().mean() for v in (distinct, error, 1 - distinct, calls)])
    share, gap, bound, calls_wrong = (list(column) for column in zip(*rows, strict=True))
    limit, together = _consistencies(worlds, 60.0), _consistencies(worlds, 0.0)
    return Evidence(
        [
            equality("with disjoint supports the simplified consistency is exact",
                     limit[0] - limit[1]),
            equality("the off-policy one likewise", limit[3] - (1 - limit[1])),
            rule("|exact - simplified| <= 1 - distinctness", torch.stack(broken, 1)),
            rule("off-policy: <= share of comparisons that π_off orders the other way",
                 torch.stack(broken_off, 1)),
            counterexample("the simplified consistency is the exact one under overlap",
                           (together[0] - together[1]).abs() > SMALL),
        ],
        Figure("Eq. 12: error of the simplified consistency by distinctness",
               "distinctness (share of comparisons with π_θ(y_1) > π_θ(y_2))", "",
               [curve("mean |exact - simplified|", share, gap), curve("bound", share, bound),
                curve("share of worlds with another stage", share, calls_wrong)]),
    )  # fmt: skip


CHECKS = (_bijection, _finite, _general, _consistency, _simplified)
