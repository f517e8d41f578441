"""Charts outside the page: Vega-Lite compiled, as PNG and SVG, and the browser's library."""

from functools import cache
from pathlib import Path
from typing import Any

from prefstage.core.errors import MissingDependencyError
from prefstage.core.files import atomic_path, write_text
from prefstage.reporting.blocks import Chart
from prefstage.reporting.marks import configured, themed

VL_VERSION = "v6.1"
_WIDTH, _SCALE = 640, 3.0
# Named, since Vega measures its texts by it; the style sheet names the same.
_PAGE_FONT = 'system-ui, "Segoe UI", "DejaVu Sans", sans-serif'
_FONT = "DejaVu Sans, Helvetica, Arial, sans-serif"

# Okabe and Ito's colours, told apart with any colour vision.
LIGHT = {
    **{"c1": "#0072B2", "c2": "#D55E00", "c3": "#009E73", "c4": "#CC79A7"},
    **{"c5": "#56B4E9", "c6": "#E69F00", "c7": "#5B5EA6", "c8": "#777777"},
    **{"right": "#0072B2", "lost": "#E69F00", "won": "#56B4E9", "wrong": "#D55E00"},
    **{"ink": "#222222", "ink2": "#555555", "grid": "#dddddd", "paper": "#ffffff"},
}
# In the page the style sheet says what they are, by theme.
PAGE = {name: f"var(--{name})" for name in LIGHT} | {"paper": "transparent"}


def library() -> Any:
    """The package that compiles and draws Vega-Lite.

    Returns:
        The module.

    Raises:
        MissingDependencyError: If it is not installed.
    """
    try:
        import vl_convert
    except ImportError as error:
        raise MissingDependencyError.of(
            saw="a report, and no package vl_convert",
            expected="vl-convert-python, which draws the charts",
            cure="pip install 'prefstage[report]'",
        ) from error
    return vl_convert


@cache
def browser_library() -> str:
    """Vega and its interpreter of expressions, for the page: sets ``window.vegaEmbed``."""
    return str(library().javascript_bundle(vl_version=VL_VERSION))


def compiled(chart: Chart) -> dict[str, Any]:
    """A chart for the page: Vega, with the style sheet's colours.

    Args:
        chart: The chart.

    Returns:
        The specification.
    """
    spec = {**chart.spec, "config": configured(_PAGE_FONT)}
    found: dict[str, Any] = library().vegalite_to_vega(themed(spec, PAGE), vl_version=VL_VERSION)
    return found


def draw(charts: list[Chart], folder: Path) -> list[Path]:
    """Draw charts as PNG and SVG, light, on white.

    Args:
        charts: The charts.
        folder: Gets ``NAME.png`` and ``NAME.svg`` of each.

    Returns:
        The files.
    """
    vega, written = library(), list[Path]()
    for each in charts:
        spec = {**each.spec, "width": _WIDTH, "config": configured(_FONT)}
        paper = themed(spec, LIGHT)
        stem = folder / each.name
        png, svg = stem.with_name(f"{stem.name}.png"), stem.with_name(f"{stem.name}.svg")
        with atomic_path(png) as temporary:
            temporary.write_bytes(vega.vegalite_to_png(paper, vl_version=VL_VERSION, scale=_SCALE))
        write_text(svg, vega.vegalite_to_svg(paper, vl_version=VL_VERSION))
        written += [png, svg]
    return written
