"""Vega-Lite in few words: fields, lines, bands, rules. Colours are names that begin with @."""

from collections.abc import Mapping, Sequence
from typing import Any

SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"
SERIES = tuple(f"@c{number}" for number in range(1, 9))
Spec = dict[str, Any]


def quantity(field: str, title: str, **more: Any) -> Spec:
    """A numeric channel.

    Args:
        field: Name of the field.
        title: Of axis or legend.
        more: As in Vega-Lite; `scale` starts at zero only if that says so.

    Returns:
        The channel.
    """
    scale = {"zero": False, **more.pop("scale", {})}
    return {"field": field, "type": "quantitative", "title": title, "scale": scale, **more}


def iterations(values: Sequence[Mapping[str, Any]]) -> Spec:
    """The channel of iterations: a tick at each, and none between.

    Args:
        values: The marks, with their "iteration".

    Returns:
        The channel.
    """
    known = sorted({int(row["iteration"]) for row in values})
    return quantity("iteration", "iteration", axis={"values": known, "format": "d"})


def series(field: str, names: Sequence[str], title: str | None = None, **more: Any) -> Spec:
    """A colour by name; one series alone has no legend.

    Args:
        field: Name of the field.
        names: Its values, in order.
        title: Of the legend.
        more: `range`: other colours.

    Returns:
        The channel.
    """
    colours = more.pop("range", None) or [SERIES[k % len(SERIES)] for k in range(len(names))]
    legend = {"title": title} if len(names) > 1 else None
    scale = {"domain": list(names), "range": list(colours)}
    return {"field": field, "type": "nominal", "scale": scale, "legend": legend, **more}


def tooltips(head: Mapping[str, str]) -> list[Spec]:
    """What pointing at a mark shows.

    Args:
        head: Title of each field.

    Returns:
        The channel.
    """
    return [{"field": field, "title": title, "format": ""} for field, title in head.items()]


def rule_at(value: float, *, axis: str = "y") -> Spec:
    """A dashed line at a value.

    Args:
        value: Where.
        axis: "x" or "y".

    Returns:
        The layer.
    """
    return {
        "data": {"values": [{"at": value}]},
        "mark": {"type": "rule", "strokeDash": [4, 4], "color": "@ink2"},
        "encoding": {axis: {"field": "at", "type": "quantitative"}},
    }


def chart(values: Sequence[Mapping[str, Any]], *layers: Spec, height: int = 260) -> Spec:
    """A chart of layers over the same data.

    Args:
        values: A row a mark.
        layers: Marks and encodings.
        height: Pixels.

    Returns:
        The specification, as wide as its place.
    """
    return {
        "$schema": SCHEMA,
        "width": "container",
        "height": height,
        "data": {"values": [dict(each) for each in values]},
        "layer": list(layers),
    }


def themed(spec: Any, colours: Mapping[str, str]) -> Any:
    """Put colours in place of their names.

    Args:
        spec: A specification or a part of it; data are left as they are.
        colours: By name, without the @.

    Returns:
        The same with colours.
    """
    if isinstance(spec, Mapping):
        return {
            key: value if key == "values" else themed(value, colours) for key, value in spec.items()
        }
    if isinstance(spec, list | tuple):
        return [themed(each, colours) for each in spec]
    if isinstance(spec, str) and spec.startswith("@"):
        return colours[spec[1:]]
    return spec


def configured(font: str) -> Spec:
    """Fonts and lines of all charts, colours by name.

    Args:
        font: Family.

    Returns:
        The `config` of a specification.
    """
    words = {"labelColor": "@ink2", "titleColor": "@ink", "labelFontSize": 12, "titleFontSize": 12}
    return {
        "font": font,
        "background": "@paper",
        "view": {"stroke": None},
        "axis": {
            **words,
            "gridColor": "@grid",
            "domainColor": "@ink2",
            "tickColor": "@ink2",
            "titleFontWeight": "normal",
        },
        "legend": {**words, "orient": "top", "symbolOpacity": 1, "labelLimit": 400},
        "line": {"strokeWidth": 2},
        "point": {"filled": True, "size": 50},
    }
