"""What a check of a statement finds: residuals, exceptions, orders, counterexamples."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

EXACT = 1e-10
"""The largest residual of an equality that holds."""

Kind = Literal["equality", "rule", "order", "counterexample", "calibration"]


@dataclass(frozen=True)
class Finding:
    """One claim, and what the worlds say to it.

    Attributes:
        claim: In words.
        kind: ``equality``: `value` is the largest residual. ``rule``: the number of
            exceptions. ``order``: the fitted order. ``counterexample``: the share of worlds in
            which the statement as printed fails. ``calibration``: how far told chances are
            from frequencies.
        value: See `kind`.
        wanted: What `value` must be.
        worlds: In how many worlds it was tried.
        holds: Whether `value` is as wanted.
    """

    claim: str
    kind: Kind
    value: float
    wanted: str
    worlds: int
    holds: bool


@dataclass(frozen=True)
class Curve:
    """One line of a figure."""

    label: str
    x: list[float]
    y: list[float]


@dataclass(frozen=True)
class Figure:
    """What is plotted; `log` names the logarithmic axes, `points` asks for no lines."""

    title: str
    x_title: str
    y_title: str
    curves: list[Curve]
    log: str = ""
    points: bool = False


@dataclass(frozen=True)
class Evidence:
    """What a check found, and its figure."""

    findings: list[Finding]
    figure: Figure


@dataclass(frozen=True)
class Setting:
    """How many random worlds a check draws, and from which seed."""

    worlds: int
    seed: int


@dataclass(frozen=True)
class Check:
    """A statement that can be run.

    Attributes:
        name: As the command takes it.
        source: Paper and number.
        statement: In words and formulas, as printed.
        valid: Where it holds: the conditions that it needs.
        run: Draws worlds and finds.
    """

    name: str
    source: str
    statement: str
    valid: str
    run: Callable[[Setting], Evidence]


def equality(claim: str, residual: Tensor) -> Finding:
    """An equality: its largest residual, wanted at most 1e-10.

    Args:
        claim: In words.
        residual: Left side minus right side. [worlds, ...].

    Returns:
        The finding.
    """
    worst = float(residual.detach().abs().max())
    return Finding(claim, "equality", worst, f"<= {EXACT}", len(residual), worst <= EXACT)


def rule(claim: str, broken: Tensor) -> Finding:
    """An inequality or implication: the number of its exceptions, wanted 0.

    Args:
        claim: In words.
        broken: True where it does not hold. [worlds, ...].

    Returns:
        The finding.
    """
    exceptions = int(broken.sum())
    return Finding(claim, "rule", exceptions, "0 exceptions", len(broken), exceptions == 0)


def counterexample(claim: str, fails: Tensor) -> Finding:
    """A statement that is false as printed: the share of worlds in which it fails.

    Args:
        claim: What is false.
        fails: True where it fails. [worlds, ...].

    Returns:
        The finding; it holds if there is at least one counterexample.
    """
    share = float(fails.reshape(len(fails), -1).any(-1).double().mean())
    return Finding(claim, "counterexample", share, "> 0 of the worlds", len(fails), share > 0)


def order(
    claim: str, x: Tensor, error: Tensor, *, wanted: float, worlds: int, within: float = 0.1
) -> Finding:
    """An approximation: the order of its error, fitted in logs.

    Args:
        claim: In words.
        x: The small (or large) quantity. [points].
        error: Mean error at each. [points].
        wanted: The order it should have.
        worlds: In how many worlds.
        within: Allowed distance of the fitted order.

    Returns:
        The finding.
    """
    slope = fitted_order(x, error)
    bound = f"{wanted:g} within {within:g}"
    return Finding(claim, "order", slope, bound, worlds, abs(slope - wanted) <= within)


def fitted_order(x: Tensor, error: Tensor) -> float:
    """Slope of log error on log x, by least squares."""
    return float(np.polyfit(x.log().numpy(), error.detach().log().numpy(), 1)[0])


def curve(label: str, x: Tensor | list[float], y: Tensor | list[Any]) -> Curve:
    """A line of a figure, from tensors or lists of numbers."""
    first, second = (torch.as_tensor(each, dtype=torch.float64).tolist() for each in (x, y))
    return Curve(label, first, second)
