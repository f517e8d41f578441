"""Pictures of the checks."""

import re
from pathlib import Path
from typing import Any

from prefstage.core.errors import MissingDependencyError
from prefstage.core.files import atomic_path
from prefstage.sandbox.theory.evidence import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#000000")
STYLES = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)))
_DOTS_PER_INCH = 110


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
    try:
        from matplotlib.figure import Figure as Canvas
    except ImportError as error:
        raise MissingDependencyError.of(
            saw="no package matplotlib",
            expected="matplotlib, which draws",
            cure="pip install 'prefstage[plots]', or leave the pictures out (--no-figures)",
        ) from error
    canvas: Any = Canvas(figsize=(6.4, 3.8), layout="constrained")
    panel = canvas.subplots()
    for place, each in enumerate(figure.curves):
        colour, style = COLOURS[place % len(COLOURS)], STYLES[place % len(STYLES)]
        marks = {"marker": ".", "linestyle": ""} if figure.points else {"linestyle": style}
        panel.plot(each.x, each.y, color=colour, label=each.label, **marks)
    if "x" in figure.log:
        panel.set_xscale("log")
    if "y" in figure.log:
        panel.set_yscale("log")
    panel.set_title(figure.title, fontsize=10)
    panel.set_xlabel(figure.x_title)
    panel.set_ylabel(figure.y_title)
    panel.legend(frameon=False, fontsize=8)
    panel.grid(alpha=0.2)
    panel.spines[["top", "right"]].set_visible(False)
    with atomic_path(path) as temporary:
        canvas.savefig(temporary, dpi=_DOTS_PER_INCH)
    return path


def figure_name(check: str) -> str:
    """The file name of a check's picture."""
    return f"theory-{re.sub(r'[^a-z0-9]+', '-', check)}.png"
