"""The papers' statements as checks: what a check finds, how checks are run and drawn."""

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from prefstage.core import MissingDependencyError, Outcome, atomic_path, locked_file, write_json

EXACT = 1e-10
"""The largest residual of an equality that holds."""
RESULT = "theory.json"
_OF_CHECKS = ("name", "source", "statement", "valid")
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#000000")
STYLES = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)))
_DOTS_PER_INCH = 110

Kind = Literal["equality", "rule", "order", "counterexample", "calibration"]
_VALUES: dict[Kind, str] = {
    "equality": "equal to {:.1e}",
    "rule": "{:.0f} exceptions",
    "order": "order {:.2f}",
    "calibration": "within {:.1%}",
    "counterexample": "FALSE in {:.0%} of the worlds",
}


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
        draw: Makes worlds, or what else `find` takes, of their number and a `seed`.
        find: What these worlds say to the statement.
    """

    name: str
    source: str
    statement: str
    valid: str
    draw: Callable[..., Any]
    find: Callable[[Any], Evidence]


def check(
    name: str, source: str, statement: str, valid: str, *, draw: Callable[..., Any]
) -> Callable[[Callable[[Any], Evidence]], Check]:
    """Make a check of the function below, which finds evidence in what `draw` makes.

    Args:
        name: As of `Check`.
        source: Likewise.
        statement: Likewise.
        valid: Likewise.
        draw: Likewise.

    Returns:
        A decorator.
    """
    return partial(Check, name, source, statement, valid, draw)


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
    slope = float(np.polyfit(x.log().numpy(), error.detach().log().numpy(), 1)[0])
    return Finding(
        claim,
        "order",
        slope,
        f"{wanted:g} within {within:g}",
        worlds,
        abs(slope - wanted) <= within,
    )


def curve(label: str, x: Tensor | list[float], y: Tensor | list[Any]) -> Curve:
    """A line of a figure, from tensors or lists of numbers."""
    return Curve(label, *(torch.as_tensor(v, dtype=torch.float64).tolist() for v in (x, y)))


@dataclass(frozen=True)
class Checked:
    """A check that was run.

    Attributes:
        check: The statement.
        evidence: What was found.
        seconds: How long it took.
        picture: Its figure's file, if it was drawn.
    """

    check: Check
    evidence: Evidence
    seconds: float
    picture: Path | None

    @property
    def holds(self) -> bool:
        """Whether every finding is as it should be."""
        return all(finding.holds for finding in self.evidence.findings)


def run_checks(
    checks: Sequence[Check],
    setting: Setting,
    *,
    out: Path | None = None,
    figures: bool = True,
) -> list[Checked]:
    """Run checks, draw their figures, write the result.

    Args:
        checks: Which.
        setting: Number of worlds, and the seed.
        out: Folder for figures and `theory.json`; None writes nothing.
        figures: Whether to draw.

    Returns:
        What was found, in order.

    Raises:
        MissingDependencyError: If figures are wanted without matplotlib.
        RunFolderError: If another process works in `out`.
    """
    done = []
    with locked_file(None if out is None else out / RESULT):
        for check in checks:
            started, picture = time.monotonic(), None
            evidence = check.find(check.draw(setting.worlds, seed=setting.seed))
            if out is not None and figures:
                words = re.sub(r"[^a-z0-9]+", "-", check.name)
                picture = draw_figure(evidence.figure, out / f"theory-{words}.png")
            done.append(Checked(check, evidence, time.monotonic() - started, picture))
        if out is not None:
            write_json(out / RESULT, outcome_of(done, setting, out=out).result)
    return done


def outcome_of(done: Sequence[Checked], setting: Setting, *, out: Path | None) -> Outcome:
    """The chapter for people, and for machines.

    Args:
        done: The checks that were run.
        setting: How.
        out: The folder in which the result was written.

    Returns:
        Failed if a check is not as expected.
    """
    result = {
        "worlds": setting.worlds,
        "seed": setting.seed,
        "holds": all(checked.holds for checked in done),
        "seconds": round(sum(checked.seconds for checked in done), 1),
        "checks": [
            {
                **{name: getattr(checked.check, name) for name in _OF_CHECKS},
                "holds": checked.holds,
                **asdict(checked.evidence),
                "picture": checked.picture.name if checked.picture else None,
                "seconds": round(checked.seconds, 2),
            }
            for checked in done
        ],
    }
    failed = [checked.check.name for checked in done if not checked.holds]
    verdict = f"not as expected: {', '.join(failed)}" if failed else "all as expected"
    end = f"{len(done)} checks on {setting.worlds:,} worlds: {verdict}. {result['seconds']:.0f}"
    written = [*(checked.picture for checked in done), out and out / RESULT]
    return Outcome(
        "\n".join([*map(_statement, done), "", f"{end} seconds."]),
        result,
        [path for path in written if path],
        failed,
    )


def _statement(checked: Checked) -> str:
    lines = [
        f"  {_VALUES[finding.kind].format(finding.value):<32} {finding.claim}"
        + ("" if finding.holds else f"  NOT as expected ({finding.wanted})")
        for finding in checked.evidence.findings
    ]
    return "\n".join([f"{checked.check.name}  {checked.check.statement}", *lines])


def draw_figure(figure: Figure, path: Path) -> Path:
    """Draw the figure of a check.

    Args:
        figure: What to draw.
        path: The picture's file; its ending says the format.

    Returns:
        The file.

    Raises:
        MissingDependencyError: If matplotlib is not installed.
    """
    with MissingDependencyError.instead_of(
        ImportError,
        saw="no package matplotlib",
        expected="matplotlib, which draws",
        cure="pip install 'prefstage[plots]', or leave the pictures out (--no-figures)",
    ):
        from matplotlib.figure import Figure as Canvas
    canvas: Any = Canvas(figsize=(6.4, 3.8), layout="constrained")
    panel = canvas.subplots()
    for line, colour, style in zip(figure.curves, cycle(COLOURS), cycle(STYLES), strict=False):
        panel.plot(
            line.x,
            line.y,
            color=colour,
            label=line.label,
            **({"marker": ".", "linestyle": ""} if figure.points else {"linestyle": style}),
        )
    panel.set(
        xlabel=figure.x_title,
        ylabel=figure.y_title,
        **{f"{axis}scale": "log" for axis in figure.log},
    )
    panel.set_title(figure.title, fontsize=10)
    panel.legend(frameon=False, fontsize=8)
    panel.grid(alpha=0.2)
    panel.spines[["top", "right"]].set_visible(False)
    with atomic_path(path) as temporary:
        canvas.savefig(temporary, dpi=_DOTS_PER_INCH)
    return path
