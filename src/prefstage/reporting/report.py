"""`write_report`: runs in, one HTML page out."""

import base64
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from importlib.resources import files
from os import PathLike
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined, UndefinedError
from markupsafe import Markup

from prefstage.core import InputError, Outcome, atomic_path, locked_file, read_json, read_result
from prefstage.reporting.blocks import (
    Chart,
    between,
    browser_library,
    compiled,
    draw,
    percent,
)
from prefstage.reporting.measured import read_evaluated, read_measured
from prefstage.reporting.runs import Part, Run, pack, read_if_there
from prefstage.reporting.sections import duration, explored, read_built, sections_of, sums_of
from prefstage.reporting.trainings import read_trained

_ASSETS = "prefstage.reporting"
_LONE = re.compile("[\ud800-\udfff]")
_NUMBER = re.compile(r"^[-+–]?[\d,. ]*( ?(%|s|min|h))?$")

# By kind of part: the file with its results.
FILES = {
    "advise": "advise.json",
    "align": "align.json",
    "experiment": "experiment.json",
    "diagnose": "report.json",
    "measure": "stage.json",
    "build": "build.json",
    "train": "train.json",
    "evaluate": "evaluation.json",
}
# What else of a part's folder the page shows: fields of `Part`.
READERS: Mapping[str, Callable[[Part], dict[str, Any]]] = {
    "measure": read_measured,
    "build": read_built,
    "train": read_trained,
    "evaluate": read_evaluated,
}

Paths = str | PathLike[str] | Sequence[str | PathLike[str]]


@dataclass(frozen=True, kw_only=True)
class Report(Outcome):
    """A page that was written.

    Attributes:
        path: Where it stands.
        charts: Its charts.
        pairs: Number of pairs in the explorer.
        lacks: Run, what is not there, and how to get it.
        figures: The charts as files, if they were asked for.
    """

    path: Path
    charts: Sequence[Chart]
    pairs: int
    lacks: Sequence[tuple[str, str, str]]
    figures: Sequence[Path]


def write_report(runs: Paths, *, out: str | PathLike[str], title: str | None = None) -> Path:
    """Write one self-contained HTML page about one run or several.

    The page needs no network and executes nothing that stands in data.

    Args:
        runs: Run folders of align, experiment, train, measure, build, evaluate or diagnose, or
            the file with the results in one.
        out: The page; made or replaced as a whole.
        title: Its heading; None for one from the runs' names.

    Returns:
        Where the page stands.

    Raises:
        InputError: If a run is missing or not done.
        DataError: If a file of a run cannot be read.
        MissingDependencyError: If the extra `report` is not installed.
    """
    return make_report(runs, out=Path(out), title=title).path


def make_report(
    runs: Paths,
    *,
    out: str | Path = "report.html",
    title: str | None = None,
    figures: str | Path | None = None,
) -> Report:
    """Write a page and, on request, its charts as files.

    Args:
        runs: As for `write_report`.
        out: The page.
        title: Its heading.
        figures: Folder for PNG and SVG of every chart; None: none.

    Returns:
        What was written.

    Raises:
        InputError: As `write_report`.
        DataError: As `write_report`.
        MissingDependencyError: As `write_report`.
        RunFolderError: If another process is making the page.
    """
    out = Path(out)
    with locked_file(out), _as_written(runs) as named:
        read = read_runs(named)
        sections = sections_of(read)
        charts = [chart for section in sections for chart in section.charts]
        lacks, packed = list[tuple[str, str, str]](), list[tuple[str, Any]]()
        for run in read:
            pairs, missing = explored(run)
            packed += [(run.name, rows) for rows in pairs]
            lacks += [(run.name, what, why) for what, why in (*missing, *lacking(run, len(pairs)))]
        explorer = pack(packed)
        scripts = _scripts(charts=bool(charts), pairs=bool(explorer["pairs"]))
        specs = json.dumps({chart.name: compiled(chart) for chart in charts}, separators=(",", ":"))
        pages = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
        html = pages.from_string(_asset("page.html")).render(
            title=title or f"prefstage: {', '.join(run.name for run in read)}",
            policy=_policy(scripts),
            style=Markup(_asset("page.css")),
            scripts=scripts,
            data=Markup(specs.replace("<", "\\u003c").replace(">", "\\u003e")),
            runs=read,
            headline=headline,
            sections=sections,
            lacks=lacks,
            pairs=explorer,
            pair_table=Markup(explorer["table"]),
            blocks=[Markup(block) for block in explorer["blocks"]],
            versions=[(run.name, run.manifest) for run in read if run.manifest],
            version=version("prefstage"),
            is_number=lambda cell: bool(_NUMBER.match(cell)),
        )
        with atomic_path(out) as temporary:
            # UTF-8 has no lone surrogates; outside the explorer's data, which are ASCII, a mark
            # stands for them.
            temporary.write_text(_LONE.sub("\ufffd", html), encoding="utf-8")
        drawn = draw(charts, Path(figures)) if figures is not None else []
    lines = [f"not shown of {run}: {what} ({why})" for run, what, why in lacks]
    return Report(
        summary="\n".join([f"{len(charts)} charts, {explorer['pairs']:,} pairs to read", *lines]),
        result={
            "page": str(out),
            "bytes": out.stat().st_size,
            "charts": [chart.name for chart in charts],
            "pairs": explorer["pairs"],
            "not_shown": [{"run": run, "what": what, "why": why} for run, what, why in lacks],
        },
        written=[out, *drawn],
        path=out,
        charts=charts,
        pairs=explorer["pairs"],
        lacks=lacks,
        figures=drawn,
    )


# Somebody may have edited what stands in a run's files: whatever comes of that is one error.
@contextmanager
def _as_written(runs: Paths) -> Iterator[list[Path]]:
    named = [Path(p) for p in ([runs] if isinstance(runs, str | PathLike) else runs)]
    with InputError.instead_of(
        *(LookupError, TypeError, ValueError, AttributeError, ArithmeticError, UndefinedError),
        saw=f"{' or '.join(map(str, named))}: results not as they were written ({{error}})",
        expected="run folders as prefstage left them",
        cure="repeat the command with the same --out, which makes damaged results anew",
    ):
        yield named


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """Read what several runs hold, whatever commands made them.

    Args:
        paths: Run folders, or the file with the results in one.

    Returns:
        The runs, each with a different name.

    Raises:
        InputError: If one is missing, is not done, or is no run.
        DataError: If a file in it cannot be read.
    """
    InputError.unless(
        paths,
        saw="no run",
        expected="one run folder or more",
        cure="name one",
    )
    runs = [_read(path.parent if path.is_file() else path) for path in paths]
    # as many parent folders as it takes to tell the runs apart
    parts = [run.folder.resolve().parts for run in runs]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(folders[-depth:]) for folders in parts]
        if len(set(names)) == len(names):
            break
    else:
        names = [f"{name} ({number})" for number, name in enumerate(names, start=1)]
    return [replace(run, name=name) for run, name in zip(runs, names, strict=True)]


def _read(folder: Path) -> Run:
    result = read_result(folder)
    config = folder / "config.yaml"
    # Of several steps of one kind in an iteration the last one is the iteration's result (as the
    # mixed pairs after the off-policy ones that they are made of); the others only cost.
    last = {(part["iteration"], part["kind"]): part for part in result["parts"]}
    parts = list[Part]()
    for entry in result["parts"]:
        kind, where = entry["kind"], folder / entry["folder"]
        try:
            part = Part(**{**entry, "folder": where})
            if kind in FILES and entry is last[entry["iteration"], kind]:
                part = replace(part, result=read_json(where / FILES[kind]))
                part = replace(part, **(READERS[kind](part) if kind in READERS else {}))
            parts.append(part)
        except (KeyError, TypeError, AttributeError, ValueError, FileNotFoundError) as error:
            raise InputError.of(
                saw=f"{where / FILES.get(kind, '')}, or a file that it names, is not as it was "
                f"written ({error!r})",
                expected=f"the results of `prefstage {result['command']}`",
                cure="repeat the command with the same --out, which makes damaged results anew",
            ) from error
    return Run(
        name=folder.name,
        command=result["command"],
        folder=folder,
        facts=result["facts"],
        parts=parts,
        config=config.read_text(encoding="utf-8") if config.is_file() else "",
        manifest=read_if_there(folder / "manifest.json"),
    )


def lacking(run: Run, pairs: int) -> list[tuple[str, str]]:
    """What the page would show of a run, were it there.

    Args:
        run: The run.
        pairs: How many pairs the explorer holds of it.

    Returns:
        What is not there, and how to get it.
    """
    aligned, measured, trained = run.command == "align", run.of("measure"), run.of("train")
    why = {
        "advise": "see its folder `steps`",
        "measure": "a measurement keeps votes and own answers, not pairs",
        "diagnose": "a diagnosis keeps figures, not pairs",
        "experiment": f"its cells hold them: `prefstage report {run.folder / 'cells' / 'CELL'}`",
        "train": "without dynamics a training keeps none; see the data that it names",
    }
    cases = [
        (
            not all(part.looks for part in measured),
            "how the interval narrowed",
            "prompts.parquet is not there, or of another run",
        ),
        (
            trained and not any(part.dynamics for part in trained),
            "flip dynamics, loss against the reference log-ratio, intra-diversity",
            f"not recorded; set `{'train.' if aligned else ''}dynamics: {{every: 16}}` "
            "in the recipe",
        ),
        (
            aligned and not run.of("evaluate"),
            "win rates and lengths",
            "set `evaluate` in the recipe",
        ),
        (
            aligned and not measured,
            "the decision",
            "the recipe measures nothing (`measure: false`)",
        ),
        (not pairs, "pairs to read", why.get(run.command, "none on file")),
    ]
    return [(what, how) for lacks, what, how in cases if lacks]


def headline(run: Run) -> Iterator[tuple[str, str]]:
    """A run in a few figures, for the top of the page.

    Args:
        run: The run.

    Yields:
        What, and its value.
    """
    for part in run.of("advise"):
        yield "train on", part.result["choice"] + ("" if part.result["decided"] else " (close)")
    stages = [part.result for part in run.of("measure")]
    if stages:
        last = stages[-1]
        yield "stage", " → ".join(stage["stage"] for stage in stages)
        yield "boundary score", f"{last['boundary_score']:.2f} {between(last['interval'])}"
    for result in (part.result for part in run.of("experiment")):
        failed = f", {len(result['failed'])} failed" if result["failed"] else ""
        yield "cells", f"{len(result['cells'])} done{failed}"
        for ratio in (agreement["means"]["ratio"] for agreement in result["agreement"].values()):
            yield "BS with Δ", f"{percent(ratio['agreement'], 0)}, p = {ratio['p_value']:.2g}"
    if run.iterations:
        yield "trained on", " → ".join(str(row["data"]) for row in run.iterations)
    for part in run.of("evaluate")[-1:]:
        rates = part.result["rates"]
        yield (
            f"win rate over {part.result['baseline']}",
            f"{rates['win_rate']:.1f} % {between(rates['interval'], 1)}",
        )
    built = [part.result["pairs_built"] for part in run.of("build")]
    if built:
        yield "pairs", f"{sum(built):,}"
    if any(part.seconds is not None for part in run.parts):
        sums, seconds = sums_of(run)
        judged = sums["judgments"] + sums["judge_replies"]
        yield "bought", f"{judged:,} judgments, {sums['response_tokens']:,} tokens"
        yield "time", duration(seconds)


def _asset(name: str) -> str:
    return (files(_ASSETS) / "assets" / name).read_text(encoding="utf-8")


# The page's scripts; the charts' library, 0.9 MB of them, only where there is a chart.
def _scripts(*, charts: bool, pairs: bool) -> list[Markup]:
    names = ["page.js", *(["charts.js"] if charts else []), *(["explorer.js"] if pairs else [])]
    # An HTML parser ends a script at </script and changes its mode at <!--, even within a string;
    # \x3c is the same character to JavaScript.
    return [
        Markup(re.sub(r"<(?=/script|!--)", r"\\x3c", text, flags=re.IGNORECASE))
        for text in (*([browser_library()] if charts else []), *map(_asset, names))
    ]


def _policy(scripts: Sequence[str]) -> str:
    # The browser runs these scripts, known by their hashes, and loads nothing: whatever a data
    # set holds, nothing of it is executed, even if a text should slip through the escaping.
    hashes = (
        f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
        for script in scripts
    )
    return (
        f"default-src 'none'; script-src {' '.join(hashes)}; style-src 'unsafe-inline'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
