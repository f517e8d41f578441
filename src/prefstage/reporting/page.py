"""The page: sections, charts, pairs, styles and scripts in one HTML text."""

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from prefstage.reporting.blocks import Chart
from prefstage.reporting.figures import browser_library, compiled
from prefstage.reporting.pairs import Packed, pack
from prefstage.reporting.results import Run
from prefstage.reporting.sections import headline, lacking, sections_of

_ASSETS = "prefstage.reporting"
_LONE = re.compile("[\ud800-\udfff]")
_NUMBER = re.compile(r"^[-+–]?[\d,. ]*( ?(%|s|min|h))?$")


@dataclass(frozen=True)
class Page:
    """A page.

    Attributes:
        html: All of it.
        charts: Its charts.
        pairs: Pairs in the explorer.
        lacks: Run, what is not there, and how to get it.
    """

    html: str
    charts: list[Chart]
    pairs: int
    lacks: list[tuple[str, str, str]]


def page_of(runs: Sequence[Run], *, title: str | None = None) -> Page:
    """Make the page of some runs.

    Args:
        runs: The runs.
        title: Its heading; None for one from their names.

    Returns:
        The page.
    """
    sections, lacks = sections_of(runs), lacking(runs)
    charts = [chart for section in sections for chart in section.charts]
    packed = pack([(run.name, rows) for run in runs for rows in run.pairs])
    scripts = _scripts(charts, packed)
    html = _template().render(
        title=title or f"prefstage: {', '.join(run.name for run in runs)}",
        policy=_policy(scripts),
        style=Markup(_asset("page.css")),
        scripts=scripts,
        data=_data(charts),
        runs=runs,
        headline=headline,
        sections=sections,
        lacks=lacks,
        pairs=packed,
        pair_table=Markup(packed.table),
        blocks=[Markup(each) for each in packed.blocks],
        versions=_versions(runs),
        version=version("prefstage"),
        is_number=_is_number,
    )
    return Page(_writable(html), charts, packed.pairs, lacks)


def _writable(html: str) -> str:
    """UTF-8 has no lone surrogates; outside the explorer's data a mark stands for them."""
    try:
        html.encode("utf-8")
    except UnicodeEncodeError:
        return _LONE.sub("\ufffd", html)
    return html


def _asset(name: str) -> str:
    return (files(_ASSETS) / "assets" / name).read_text(encoding="utf-8")


def _template() -> Any:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return environment.from_string(_asset("page.html"))


def _scripts(charts: Sequence[Chart], packed: Packed) -> list[Markup]:
    """The page's own scripts; the charts' library only where there is a chart."""
    names = ["page.js", *(["charts.js"] if charts else [])]
    names += ["explorer.js"] if packed.pairs else []
    texts = [browser_library()] if charts else []
    texts += [_asset(name) for name in names]
    return [Markup(_inside_script(text)) for text in texts]


def _inside_script(text: str) -> str:
    """JavaScript that no HTML parser takes for the end of its element."""
    return re.sub(r"<(?=/script|!--)", r"\\x3c", text, flags=re.IGNORECASE)


def _policy(scripts: Sequence[str]) -> str:
    """What the browser may do: run these scripts, known by their hashes, and load nothing."""
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(each.encode()).digest()).decode()}'"
        for each in scripts
    )
    allowed = {"script-src": hashes or "'none'", "style-src": "'unsafe-inline'"}
    allowed |= {"img-src": "data:", "base-uri": "'none'", "form-action": "'none'"}
    return "; ".join(["default-src 'none'", *(f"{k} {v}" for k, v in allowed.items())])


def _data(charts: Sequence[Chart]) -> Markup:
    """The charts as JSON that stands in an element of the page."""
    specs = {each.name: compiled(each) for each in charts}
    text = json.dumps(specs, ensure_ascii=True, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e"))


def _versions(runs: Sequence[Run]) -> list[tuple[str, Mapping[str, Any]]]:
    return [(run.name, run.manifest) for run in runs if run.manifest]


def _is_number(cell: str) -> bool:
    return bool(_NUMBER.match(cell))
