"""What a page is made of: sections with tables, charts and notes.

Charts are Vega-Lite: made from few words, compiled for the page, drawn for papers. Colours are
names that begin with @: in the page the style sheet says what they are, by theme.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from prefstage.core import MissingDependencyError, atomic_path, write_text

Cell = str | float | int | None
Spec = dict[str, Any]
Row = Mapping[str, Any]
_LARGE, _SMALL = 1000.0, 0.001

VL_VERSION = "v6.1"
_SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"
_WIDTH, _SCALE = 640, 3.0
# Vega measures its texts by the font's name before it places them: a generic name alone would be
# measured as another font than the browser takes. The style sheet names the same fonts.
_PAGE_FONT = 'system-ui, "Segoe UI", "DejaVu Sans", sans-serif'
_FONT = "DejaVu Sans, Helvetica, Arial, sans-serif"

# Okabe and Ito's colours, which people of any colour vision can tell apart.
LIGHT = {
    **{"c1": "#0072B2", "c2": "#D55E00", "c3": "#009E73", "c4": "#CC79A7"},
    **{"c5": "#56B4E9", "c6": "#E69F00", "c7": "#5B5EA6", "c8": "#777777"},
    **{"right": "#0072B2", "lost": "#E69F00", "won": "#56B4E9", "wrong": "#D55E00"},
    **{"ink": "#222222", "ink2": "#555555", "grid": "#dddddd", "paper": "#ffffff"},
}
PAGE = {name: f"var(--{name})" for name in LIGHT} | {"paper": "transparent"}


@dataclass(frozen=True)
class Table:
    """A table of figures.

    Attributes:
        caption: What it holds.
        head: Column headings.
        rows: Cells as text; numbers are aligned to the right.
    """

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Chart:
    """A chart, and its figures as a table.

    Attributes:
        name: Of its file, and its anchor.
        title: Heading.
        alt: What it shows, in words.
        spec: Vega-Lite, without size of the page and colours: those begin with "@".
        table: The figures.
    """

    name: str
    title: str
    alt: str
    spec: Mapping[str, Any]
    table: Table


@dataclass(frozen=True)
class Section:
    """A part of the page.

    Attributes:
        name: Its anchor.
        title: Heading.
        text: What to read from it, a sentence or two.
        charts: Its charts.
        tables: Its tables.
        notes: Statements under them.
    """

    name: str
    title: str
    text: str = ""
    charts: tuple[Chart, ...] = ()
    tables: tuple[Table, ...] = ()
    notes: tuple[str, ...] = ()


def tables(caption: str, head: Iterable[str], rows: Sequence[Iterable[Cell]]) -> tuple[Table, ...]:
    """Make a table, if there is anything to put into it.

    Args:
        caption: What it holds.
        head: Column headings.
        rows: Cells; None shows a dash.

    Returns:
        The table, its cells as text; nothing if there are no rows.
    """
    return (Table(caption, tuple(head), tuple(tuple(map(shown, r)) for r in rows)),) if rows else ()


def table_of(caption: str, rows: Sequence[Mapping[str, Cell]]) -> tuple[Table, ...]:
    """Likewise, of cells by the heading of their column, the same in every row."""
    return tables(caption, rows[0] if rows else (), [row.values() for row in rows])


def shown(value: Cell) -> str:
    """A cell as text: counts with separators, other numbers to four digits."""
    if value is None or isinstance(value, str):
        return "–" if value is None else value
    if isinstance(value, int) or abs(value) >= _LARGE:
        return f"{value:,.0f}"
    return f"{value:.2e}" if value and abs(value) < _SMALL else f"{value:.4g}"


def percent(value: float | None, digits: int = 1) -> str:
    """A share in [0, 1] in percent."""
    return "–" if value is None else f"{100 * value:.{digits}f} %"


def between(interval: Sequence[float] | None, digits: int = 2) -> str:
    """An interval."""
    return "–" if interval is None else f"[{interval[0]:.{digits}f}, {interval[1]:.{digits}f}]"


# --- Charts ------------------------------------------------------------------------------------


def quantity(field: str, title: str, **more: Any) -> Spec:
    """A numeric channel.

    Args:
        field: Name of the field.
        title: Of axis or legend.
        more: As in Vega-Lite; `scale` starts at zero only if that says so.

    Returns:
        The channel.
    """
    return {
        "field": field,
        "type": "quantitative",
        "title": title,
        "scale": {"zero": False, **more.pop("scale", {})},
        **more,
    }


def iterations(values: Sequence[Row]) -> Spec:
    """The channel of iterations: a tick at each, and none between."""
    return quantity(
        "iteration",
        "iteration",
        axis={"values": sorted({int(row["iteration"]) for row in values}), "format": "d"},
    )


def series(field: str, names: Sequence[str], colours: Sequence[str] = ()) -> Spec:
    """A colour by name; one series alone has no legend.

    Args:
        field: Name of the field.
        names: Its values, in order.
        colours: Of each, in place of the eight of the palette.

    Returns:
        The channel.
    """
    return {
        "field": field,
        "type": "nominal",
        "scale": {
            "domain": list(names),
            "range": list(colours) or [f"@c{k % 8 + 1}" for k in range(len(names))],
        },
        "legend": {"title": None} if len(names) > 1 else None,
    }


def series_of(field: str, values: Sequence[Row]) -> Spec:
    """A colour for each value of a field that the rows hold."""
    return series(field, list(dict.fromkeys(row[field] for row in values)))


def layer(mark: Mapping[str, Any], head: Mapping[str, str] | None = None, **channels: Any) -> Spec:
    """One layer of a chart.

    Args:
        mark: Its mark.
        head: What pointing at a mark shows: title of each field.
        channels: As in Vega-Lite's encoding, and `transform`.

    Returns:
        The layer.
    """
    more = {"transform": channels.pop("transform")} if "transform" in channels else {}
    if head is not None:
        channels["tooltip"] = [{"field": f, "title": t, "format": ""} for f, t in head.items()]
    return {**more, "mark": dict(mark), "encoding": channels}


def rule_at(value: float, *, axis: str = "y") -> Spec:
    """A dashed line at a value of the "x" or "y" axis."""
    return {
        "data": {"values": [{"at": value}]},
        **layer(
            {"type": "rule", "strokeDash": [4, 4], "color": "@ink2"},
            **{axis: {"field": "at", "type": "quantitative"}},
        ),
    }


def charts(
    name: str,
    title: str,
    alt: str,
    values: Sequence[Row],
    head: Mapping[str, str],
    *layers: Spec,
    height: int = 260,
) -> tuple[Chart, ...]:
    """A chart of layers over the same data, if there are any.

    Args:
        name: As of `Chart`.
        title: As of `Chart`.
        alt: As of `Chart`.
        values: A row a mark.
        head: Heading of the fields that the chart's table shows.
        layers: Marks and encodings.
        height: Pixels.

    Returns:
        The chart, as wide as the page lets it; nothing without values.
    """
    if not values:
        return ()
    spec = {
        "$schema": _SCHEMA,
        "width": "container",
        "height": height,
        "data": {"values": [dict(row) for row in values]},
        "layer": list(layers),
    }
    return (
        Chart(
            name,
            title,
            alt,
            spec,
            *tables("The chart's figures", head.values(), [map(row.get, head) for row in values]),
        ),
    )


def themed(spec: Any, colours: Mapping[str, str]) -> Any:
    """Put colours in place of their names.

    Args:
        spec: A specification or a part of it; data are left as they are.
        colours: By name, without the @.

    Returns:
        The same with colours.
    """
    if isinstance(spec, Mapping):
        # Data may be anything that people wrote: a text that begins with @ stays one.
        return {key: v if key == "values" else themed(v, colours) for key, v in spec.items()}
    if isinstance(spec, list | tuple):
        return [themed(part, colours) for part in spec]
    return colours[spec[1:]] if isinstance(spec, str) and spec.startswith("@") else spec


def _configured(spec: Mapping[str, Any], font: str) -> Spec:
    words = {"labelColor": "@ink2", "titleColor": "@ink", "labelFontSize": 12, "titleFontSize": 12}
    return {
        **spec,
        "config": {
            "font": font,
            "background": "@paper",
            "view": {"stroke": None},
            "axis": {
                **words,
                **{"gridColor": "@grid", "domainColor": "@ink2", "tickColor": "@ink2"},
                "titleFontWeight": "normal",
            },
            "legend": {**words, "orient": "top", "symbolOpacity": 1, "labelLimit": 400},
            "line": {"strokeWidth": 2},
            "point": {"filled": True, "size": 50},
        },
    }


def _library() -> Any:
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
    return str(_library().javascript_bundle(vl_version=VL_VERSION))


def compiled(chart: Chart) -> Spec:
    """A chart for the page: Vega, with the style sheet's colours."""
    return dict(
        _library().vegalite_to_vega(
            themed(_configured(chart.spec, _PAGE_FONT), PAGE), vl_version=VL_VERSION
        )
    )


def draw(drawn: Sequence[Chart], folder: Path) -> list[Path]:
    """Draw charts as PNG and SVG, light, on white.

    Args:
        drawn: The charts.
        folder: Gets ``NAME.png`` and ``NAME.svg`` of each.

    Returns:
        The files.
    """
    written = list[Path]()
    for chart in drawn:
        spec = themed(_configured({**chart.spec, "width": _WIDTH}, _FONT), LIGHT)
        # not with_suffix: names hold what users call their data sets, with dots
        png, svg = (folder / f"{chart.name}.{ending}" for ending in ("png", "svg"))
        with atomic_path(png) as temporary:
            temporary.write_bytes(
                _library().vegalite_to_png(spec, vl_version=VL_VERSION, scale=_SCALE)
            )
        write_text(svg, _library().vegalite_to_svg(spec, vl_version=VL_VERSION))
        written += [png, svg]
    return written
