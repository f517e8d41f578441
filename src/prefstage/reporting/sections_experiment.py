"""The sections about an experiment: its tables, and the boundary score against what gained more."""

from collections.abc import Mapping, Sequence
from typing import Any

from prefstage.reporting.blocks import Chart, Section, Table, chart_values, percent, table_of
from prefstage.reporting.marks import chart, quantity, rule_at, tooltips
from prefstage.reporting.results import Run, Tabulated

_KINDS = {"ratio": "Δ > 1", "gain": "off gained more than on"}


def experiment_sections(runs: Sequence[Run]) -> list[Section]:
    """A section for each table of each experiment, and one for its cells that failed, if any.

    Args:
        runs: The runs.

    Returns:
        The sections.
    """
    found = list[Section]()
    for place, run in enumerate(runs, start=1):
        before = f"{run.name}: " if len(runs) > 1 else ""
        for each in run.tables:
            found.append(_table_section(each, f"table-{place}-{each.name}", before))
        if run.failed:
            rows = list(run.failed.items())
            failed = table_of("Cells that failed", ("cell", "why"), rows)
            text = "The same command tries them again; the tables are of the other cells."
            name = f"failed-{place}"
            found.append(Section(name, f"{before}cells that failed", text, (), (failed,)))
    return found


def _table_section(tabulated: Tabulated, anchor: str, before: str) -> Section:
    table, agreement = tabulated.table, tabulated.agreement
    rows = list[tuple[str, ...]]()
    for heading, entries in table.blocks:
        if heading:
            rows.append((heading, *[""] * (len(table.head) - 1)))
        rows += [tuple("–" if each is None else str(each) for each in row) for row in entries]
    title = table.title or tabulated.name
    caption = f"{tabulated.name}.md, .tex and .csv in the run's tables"
    tables, charts = [Table(caption, table.head, tuple(rows))], list[Chart]()
    text = "Means ± standard errors over what the rows and blocks do not name, such as seeds."
    if agreement is not None:
        charts += _advantages(agreement["means"]["starts"], anchor)
        tables.append(_contingencies(agreement))
        text += (
            " Δ is the gain of training on off-policy data over that of training on on-policy data "
            "from the same start. A boundary score (BS) below one half foretells Δ > 1."
        )
    return Section(anchor, f"{before}{title}", text, tuple(charts), tuple(tables))


def _contingencies(agreement: Mapping[str, Any]) -> Table:
    head = ("over", "against", "BS < 0.5: yes", "no", "BS >= 0.5: yes", "no", "agreement")
    rows = [
        [
            over,
            against,
            *(str(count) for row in found[kind]["counts"] for count in row),
            percent(found[kind]["agreement"], 0),
            f"{found[kind]['p_value']:.3g}",
            str(found[kind]["left_out"]),
        ]
        for over, found in agreement.items()
        for kind, against in _KINDS.items()
    ]
    caption = "Boundary score against which data gained more"
    return table_of(caption, (*head, "Fisher's exact p", "left out"), rows)


def _advantages(starts: Sequence[Mapping[str, Any]], anchor: str) -> list[Chart]:
    """Each start: its boundary score, and what off-policy data gained more."""
    values = [
        {"where": each["where"], "score": each["boundary_score"], "more": each["off"] - each["on"]}
        for each in starts
    ]
    if not values:
        return []
    head = {"where": "start", "score": "boundary score", "more": "gain of off minus gain of on"}
    points = {
        "mark": {"type": "point", "color": "@c1", "opacity": 0.85},
        "encoding": {
            "x": quantity("score", "boundary score of the start"),
            "y": quantity("more", "gain of off-policy minus gain of on-policy data"),
            "tooltip": tooltips(head),
        },
    }
    fits = sum((each["score"] < 1 / 2) == (each["more"] > 0) for each in values)
    alt = (
        f"Boundary score of {len(values)} starts against the gain of off-policy minus that of "
        f"on-policy data; {fits} stand where theory puts them: left of one half above zero, or "
        "right of it below."
    )
    spec = chart(values, points, rule_at(0), rule_at(0.5, axis="x"))
    title = "Which data gained more, against the boundary score"
    return [Chart(f"advantage-{anchor}", title, alt, spec, chart_values(values, head))]
