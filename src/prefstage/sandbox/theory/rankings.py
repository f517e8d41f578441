"""Rankings (arXiv:2405.19534): what DPO and IPO losses say about rankings."""

import torch
from torch import Tensor

from prefstage.diagnosing.flips import (
    dpo_losses,
    flip_threshold,
    ipo_flip_threshold,
    reference_log_ratio,
    threshold_violations,
)
from prefstage.diagnosing.rankings import (
    idealized_log_ratio,
    idealized_ranking_accuracy,
    ranking_accuracy,
)
from prefstage.losses import IPO
from prefstage.sandbox.theory.evidence import (
    Check,
    Evidence,
    Figure,
    Setting,
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
    optimum,
)

BETA = 0.1
TAU = 0.2
SANE_LOSS = 0.6
RAISED_LOSS = 0.7
SMALL = 1e-3
PROBE_BETAS = (0.01, 0.1, 1.0)


def _pairs(setting: Setting) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """ℓ_w, ℓ_l under policy and reference: long responses, so log-probs far from 0."""
    generator = generator_of(setting.seed)
    draws = torch.randn(4, setting.worlds, generator=generator, dtype=torch.float64)
    policy_w, policy_l, reference_w, reference_l = -50 + 8 * draws
    return policy_w, policy_l, reference_w, reference_l


def check_sanity(setting: Setting) -> Evidence:
    """Proposition 2.6, and how far its bound may be moved."""
    policy_w, policy_l, reference_w, reference_l = _pairs(setting)
    better = torch.maximum(reference_w, reference_l), torch.minimum(reference_w, reference_l)
    loss = dpo_losses(policy_w, policy_l, reference_log_ratio(*better), beta=BETA)
    right = ranking_accuracy(policy_w, policy_l) > 0
    turned = dpo_losses(policy_w, policy_l, reference_log_ratio(*better[::-1]), beta=BETA)
    edge_wrong = -(better[0] - better[1]) / 100  # a tied reference, a policy a little wrong
    edge = dpo_losses(edge_wrong, 0 * edge_wrong, 0 * edge_wrong, beta=BETA)
    at = torch.linspace(0.02, 1.2, 60, dtype=torch.float64)
    wrong = [(~right[loss <= bound]).double().sum() / len(loss) for bound in at]
    imperfect = [(~right[turned <= bound]).double().sum() / len(loss) for bound in at]
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
    """Reference log-probs of the first two responses, and α. [worlds · prompts]."""
    reference = worlds.log_reference.reshape(-1, worlds.log_reference.shape[-1])
    return reference[:, 0], reference[:, 1], worlds.preference[..., 0, 1].reshape(-1)


def _idealized(worlds: Worlds) -> Tensor:
    """The library's log π*(y_w)/π*(y_l), each world at its own β. [worlds, prompts]."""
    first, second, agreement = _pair_of(worlds)
    unit = idealized_log_ratio(
        torch.zeros_like(first), torch.zeros_like(first), agreement, beta=1.0
    )
    shape = worlds.reward.shape[:2]
    return (first - second).reshape(shape) + unit.reshape(shape) / worlds.beta[..., 0]


def check_ratio(setting: Setting) -> Evidence:
    """Theorem 3.1: the optimum's log-ratio."""
    worlds = draw_worlds(setting.worlds, seed=setting.seed)
    best = optimum(worlds.log_reference, worlds.reward, worlds.beta)
    whole = (best[..., 0] - best[..., 1]) - _idealized(worlds)
    moved = best - worlds.log_reference
    even = torch.full_like(best, 1 / best.shape[-1])
    slope = dpo_gradient(moved, worlds.beta, labelled(even, even, worlds.preference))
    circular = worlds.preferring("intransitive")
    scaled = dpo_optimum(labelled(even, even, circular.preference))
    reached = worlds.log_reference + scaled / worlds.beta
    distance = (reached[..., 0] - reached[..., 1]) - _idealized(circular)
    first, second, agreement = _pair_of(worlds)
    betas = torch.logspace(-2, 1, 40, dtype=torch.float64)
    ratios = [
        idealized_log_ratio(first, second, agreement, beta=float(beta)).abs().mean()
        for beta in betas
    ]
    return Evidence(
        [
            equality("RLHF's optimum has the ratio of Eq. 2", whole),
            equality("and it is where DPO's gradient vanishes", slope),
            counterexample("without Bradley-Terry DPO's optimum has the ratio of Eq. 2",
                           distance.abs() > SMALL),
        ],
        Figure("How far perfect training parts a pair", "β", "mean |log π*(y_w)/π*(y_l)| (nats)",
               [curve("Eq. 2", betas, ratios)], log="xy"),
    )  # fmt: skip


def check_idealized(setting: Setting) -> Evidence:
    """Corollary 3.3: the idealized accuracy is the optimum's accuracy."""
    worlds = draw_worlds(setting.worlds, seed=setting.seed)
    first, second, agreement = _pair_of(worlds)
    found, direct = [], []
    for beta in PROBE_BETAS:
        best = optimum(worlds.log_reference, worlds.reward, torch.full_like(worlds.beta, beta))
        right = ranking_accuracy(best[..., 0].reshape(-1), best[..., 1].reshape(-1))
        ideal = idealized_ranking_accuracy(first, second, agreement, betas=[beta])
        found.append(ideal.by_beta[beta])
        direct.append(float(right.mean()))
    gap = torch.tensor(found).double() - torch.tensor(direct).double()
    alike = torch.zeros(worlds.count, dtype=torch.float64)
    split = idealized_ranking_accuracy(alike, alike, alike + 0.5, betas=[1.0]).by_beta[1.0]
    betas = [float(each) for each in torch.logspace(-2, 2, 40)]
    swept = idealized_ranking_accuracy(first, second, agreement, betas=betas).by_beta
    spread = gap.expand(worlds.count, -1)
    return Evidence(
        [
            equality("R* is the ranking accuracy of π*, counted", spread),
            counterexample("a tie of π* counts the same in Eq. 3 (>) and Eq. 1 (>=)",
                           ranking_accuracy(alike, alike) != split),
        ],
        Figure("Idealized ranking accuracy", "β", "R*",
               [curve("random worlds", betas, [swept[beta] for beta in betas])], log="x"),
    )  # fmt: skip


def check_threshold(setting: Setting) -> Evidence:
    """Theorem 4.1: right order if and only if the loss is at most -log σ(βc)."""
    policy_w, policy_l, reference_w, reference_l = _pairs(setting)
    c = reference_log_ratio(reference_w, reference_l)
    loss, bar = dpo_losses(policy_w, policy_l, c, beta=BETA), flip_threshold(c, beta=BETA)
    right = ranking_accuracy(policy_w, policy_l) > 0
    tie = dpo_losses(policy_w, policy_w, c, beta=BETA) - bar
    reach = torch.linspace(-40, 40, 161, dtype=torch.float64)
    curves = [
        curve(f"β = {beta:g}", reach, flip_threshold(reach, beta=beta)) for beta in (0.05, 0.1, 0.5)
    ]
    return Evidence(
        [
            rule("right if and only if the loss is at most -log σ(βc)", right != (loss <= bar)),
            rule("so says the library's own watch", threshold_violations(loss, bar, right)),
            equality("a tie stands on the threshold", tie),
        ],
        Figure("The loss that flips a ranking", "reference log-ratio c (nats)",
               "-log σ(βc) (nats)", curves, log="y"),
    )  # fmt: skip


def check_ipo(setting: Setting) -> Evidence:
    """Proposition A.7: what IPO's loss says about the order."""
    policy_w, policy_l, reference_w, reference_l = _pairs(setting)
    c = reference_log_ratio(reference_w, reference_l)
    loss = IPO(tau=TAU).of_ratios(policy_w - reference_w, policy_l - reference_l)
    bar = ipo_flip_threshold(c, tau=TAU)
    right = ranking_accuracy(policy_w, policy_l) > 0
    goal = 1 / (2 * TAU) - c
    hopeless = bar.isnan()
    at_optimum = ranking_accuracy(goal, torch.zeros_like(goal)) > 0
    reach = torch.linspace(-10, 10, 201, dtype=torch.float64)
    curves = [
        curve(f"c = {ratio:g}", reach, (reach + ratio - 1 / (2 * TAU)).square())
        for ratio in (-2.0, 0.0, 4.0)
    ]
    return Evidence(
        [
            rule("where -c < -1/(2τ), zero loss has the wrong order", hopeless & at_optimum),
            rule("elsewhere a loss <= (1/(2τ) - c)² guarantees the right order",
                 ~hopeless & (loss <= bar * (1 - 1e-12)) & ~right),
            counterexample("the guarantee is an equivalence, as DPO's is",
                           ~hopeless & right & (loss > bar)),
        ],
        Figure("IPO's loss by the policy's log-ratio (right of 0 the order is right)",
               "log π(y_w)/π(y_l) (nats)", f"IPO loss at τ = {TAU:g}", curves),
    )  # fmt: skip


PAPER = "Rankings, arXiv:2405.19534"
CHECKS = (
    Check(
        "rankings-2.6",
        f"{PAPER}, Proposition 2.6",
        "If π_ref(y_w) >= π_ref(y_l) and the DPO loss is at most 0.6, the order is right.",
        "Any β. The bound may be raised to log 2 = 0.693, and no further.",
        check_sanity,
    ),
    Check(
        "rankings-3.1",
        f"{PAPER}, Theorem 3.1",
        "π*(y_w)/π*(y_l) = π_ref(y_w)/π_ref(y_l) · (α/(1-α))^(1/β).",
        "Preferences of all pairs together are Bradley-Terry, and 0 < α < 1. Data of a single "
        "pair a prompt always are.",
        check_ratio,
    ),
    Check(
        "rankings-3.3",
        f"{PAPER}, Corollary 3.3",
        "R* is the ranking accuracy of the optimum.",
        "Where π* ties nothing: Eq. 3 counts a tie as wrong, Eq. 1 as right.",
        check_idealized,
    ),
    Check(
        "rankings-4.1",
        f"{PAPER}, Theorem 4.1",
        "The order is right if and only if the DPO loss is at most -log σ(βc).",
        "Everywhere; in floating point the policy's log-ratio must be taken first.",
        check_threshold,
    ),
    Check(
        "rankings-a.7",
        f"{PAPER}, Proposition A.7",
        "IPO: if log π_ref(y_w)/π_ref(y_l) < -1/(2τ), zero loss means the wrong order; otherwise "
        "a loss of at most (log π_ref(y_w)/π_ref(y_l) + 1/(2τ))² guarantees the right one.",
        "The loss on sums of token log-probs. One direction only: a policy far beyond the goal "
        "has a large loss and the right order.",
        check_ipo,
    ),
)
