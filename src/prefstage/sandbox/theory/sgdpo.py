"""Self-guided DPO (arXiv:2505.12435): its gradients, through the library's own loss."""

import torch
from torch import Tensor

from prefstage.losses import DPO, SGDPO
from prefstage.sandbox.theory.evidence import (
    Check,
    Evidence,
    Figure,
    Setting,
    curve,
    equality,
    rule,
)
from prefstage.sandbox.theory.worlds import generator_of

BETA = 0.1


def _draw(setting: Setting) -> list[Tensor]:
    """a, b, p_w, p_l of random pairs, nats."""
    generator = generator_of(setting.seed)
    return [
        torch.randn(setting.worlds, generator=generator, dtype=torch.float64) * 2 for _ in range(4)
    ]


def slopes(a: Tensor, b: Tensor, p_w: Tensor, p_l: Tensor) -> tuple[Tensor, Tensor]:
    """∂L/∂X1 and ∂L/∂X2 at X1 = e^a, X2 = e^b, by automatic differentiation.

    Args:
        a: Log-ratio of the chosen response. [pairs], nats.
        b: Of the rejected response. [pairs], nats.
        p_w: Pilot of the chosen response. [pairs], nats.
        p_l: Pilot of the rejected response. [pairs], nats.

    Returns:
        Both derivatives. [pairs].
    """
    x1, x2 = (each.exp().requires_grad_() for each in (a, b))
    loss = SGDPO(beta=BETA).of_pilots(x1.log(), x2.log(), p_w, p_l)
    first, second = torch.autograd.grad(loss.sum(), [x1, x2])
    return first, second


def printed_slopes(a: Tensor, b: Tensor, p_w: Tensor, p_l: Tensor) -> tuple[Tensor, Tensor]:
    """The same by the formulas of Theorem 1.

    Args:
        a: As for `slopes`.
        b: Likewise.
        p_w: Likewise.
        p_l: Likewise.

    Returns:
        Both derivatives. [pairs].
    """
    x1, x2, pilot_w, pilot_l = (each.exp() for each in (a, b, p_w, p_l))
    first = -(BETA / 2) * pilot_l**BETA / (x1 * (x1**BETA + pilot_l**BETA))
    second = (BETA / 2) * x2 ** (BETA - 1) / (pilot_w**BETA + x2**BETA)
    return first, second


def check_gradients(setting: Setting) -> Evidence:
    """Theorem 1, and what full pilots give."""
    a, b, p_w, p_l = _draw(setting)
    found, printed = slopes(a, b, p_w, p_l), printed_slopes(a, b, p_w, p_l)
    whole = SGDPO(beta=BETA).of_pilots(a, b, a, b) - DPO(beta=BETA).of_ratios(a, b)
    up, down = (each.clone().requires_grad_() for each in (a, b))
    full = torch.autograd.grad(SGDPO(beta=BETA).of_pilots(up, down, a, b).sum(), [up, down])
    dpo = torch.autograd.grad(DPO(beta=BETA).of_ratios(up, down).sum(), [up, down])
    halves = torch.stack([one - other / 2 for one, other in zip(full, dpo, strict=True)], 1)
    reach = torch.linspace(-4, 4, 81, dtype=torch.float64)
    none = torch.zeros_like(reach)
    return Evidence(
        [
            equality("∂L/∂X1 = -(β/2)·P2^β / [X1(X1^β + P2^β)]", found[0] - printed[0]),
            equality("∂L/∂X2 = (β/2)·X2^(β-1) / (P1^β + X2^β)", found[1] - printed[1]),
            equality("with full pilots the loss is DPO's", whole),
            equality("with full pilots the gradient is half of DPO's", halves),
        ],
        Figure(
            "SGDPO: slope by the chosen response's own log-ratio",
            "a (nats)",
            "|∂L/∂a|",
            [
                curve(f"pilot p_l = {pilot:g}", reach, (found_at * reach.exp()).abs())
                for pilot in (-2.0, 0.0, 2.0)
                for found_at in [slopes(reach, none, none, none + pilot)[0]]
            ],
        ),
    )


def check_monotone(setting: Setting) -> Evidence:
    """Theorem 2: how the slopes move with the pilots."""
    a, b, p_w, p_l = _draw(setting)
    up = torch.rand(setting.worlds, generator=generator_of(setting.seed + 1), dtype=torch.float64)
    base, moved_w, moved_l = (
        slopes(a, b, p_w + w, p_l + low)
        for w, low in ((0 * up, 0 * up), (up, 0 * up), (0 * up, up))
    )
    reach = torch.linspace(-4, 4, 81, dtype=torch.float64)
    none = torch.zeros_like(reach)
    one, other = slopes(none, none, reach, reach)
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
                curve("|∂L/∂X1| by p_l", reach, one.abs()),
                curve("|∂L/∂X2| by p_w", reach, other.abs()),
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
    x1, x2, pilot_w, pilot_l = ((BETA * each).exp() for each in (a, b, p_w, p_l))
    return pilot_l * (pilot_w + x2) / (x2 * (x1 + pilot_l))


def check_ratio(setting: Setting) -> Evidence:
    """Theorem 3: the ratio of the two slopes."""
    a, b, p_w, p_l = _draw(setting)
    up = torch.rand(setting.worlds, generator=generator_of(setting.seed + 1), dtype=torch.float64)
    first, second = slopes(a, b, p_w, p_l)
    share = guided_share(a, b, p_w, p_l)
    ratio = (first.abs() / second).log() - (b - a) - share.log()
    reach = torch.linspace(-4, 4, 81, dtype=torch.float64)
    none = torch.zeros_like(reach)
    return Evidence(
        [
            equality("log ratio of slopes = log(X2/X1) + log h", ratio),
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


PAPER = "Self-Guided DPO, arXiv:2505.12435"
CHECKS = (
    Check(
        "sgdpo-1",
        f"{PAPER}, appendix A.1, Theorem 1",
        "The derivatives of the loss by X1 = e^a and X2 = e^b, pilots held fixed.",
        "Everywhere. The pilots carry no gradient.",
        check_gradients,
    ),
    Check(
        "sgdpo-2",
        f"{PAPER}, appendix A.1, Theorem 2",
        "|∂L/∂X1| grows with the rejected response's pilot P2, |∂L/∂X2| falls with P1.",
        "In absolute value: ∂L/∂X1 itself is negative, so it falls as P2 grows.",
        check_monotone,
    ),
    Check(
        "sgdpo-3",
        f"{PAPER}, appendix A.1, Theorem 3",
        "The ratio of the chosen response's slope to the rejected one's is DPO's times a "
        "monotone function of the pilots.",
        "Everywhere. The formulas of this theorem are lost in the text at hand; h is "
        "derived here from Theorem 1.",
        check_ratio,
    ),
)
