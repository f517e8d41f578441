"""How a log-ratio is scored: the f-divergence that holds the policy near its reference."""

import math
from typing import Literal

import torch
from torch.nn.functional import logsigmoid

from prefstage.losses.batches import Items

Divergence = Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"]

MAX_EXPONENT = 30.0
"""Beyond it e^x goes on as a straight line of slope e^30, so that scores, and their squares in
IPO, stay finite in float32 and yet keep a slope."""


def divergence_score(log_ratio: Items, *, divergence: Divergence, alpha: float) -> Items:
    """f'(t) at t = π(y|x)/π_ref(y|x), up to a constant that cancels between two responses.

    reverse KL: ``log t``; forward KL: ``1 - 1/t``; Jensen-Shannon: ``log 2t/(1+t)``;
    α-divergence: ``(t^(α-1) - 1)/(α-1)``, which is ``log t`` at α = 1.

    Args:
        log_ratio: log t. [items], nats.
        divergence: Which divergence.
        alpha: α of the α-divergence; no other one reads it.

    Returns:
        The score of each response. [items].

    Source:
        Wang et al. 2023, arXiv:2309.16240, Table 1; the α-divergence in the form of TRL.
        Departure: exponents beyond `MAX_EXPONENT`.
    """
    if divergence == "forward_kl":
        return -_growth(-log_ratio)
    if divergence == "js_divergence":
        return math.log(2) + logsigmoid(log_ratio)
    if divergence == "alpha_divergence" and alpha != 1:
        return _growth((alpha - 1) * log_ratio) / (alpha - 1)
    return log_ratio


def _growth(exponent: Items) -> Items:
    """e^x - 1, a straight line beyond `MAX_EXPONENT`."""
    beyond = torch.relu(exponent - MAX_EXPONENT)
    return torch.expm1(exponent.clamp(max=MAX_EXPONENT)) + math.exp(MAX_EXPONENT) * beyond
