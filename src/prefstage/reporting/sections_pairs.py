"""The sections about pairs: what training did to them, their diversity, their scores."""

from collections.abc import Sequence
from typing import Any

from prefstage.building.account import describe_reversal
from prefstage.diagnosing.flips import fluctuation_range
from prefstage.reporting import charts_pairs as pairs
from prefstage.reporting.blocks import Chart, Section, Table, percent, table_of
from prefstage.reporting.charts_loop import label
from prefstage.reporting.results import Built, Run


def dynamics_section(runs: Sequence[Run]) -> Section:
    """Flip dynamics, and the loss against the reference log-ratio with the threshold."""
    charts, tables = list[Chart | None](), list[Table]()
    for place, run in enumerate(runs, start=1):
        for iteration, name, dynamics in pairs.followed(run):
            where = f"{label(run, iteration, runs)}, {name} pairs"
            anchor = f"{place}-{iteration}-{name}"
            title = f"Flip groups: {where}"
            charts.append(pairs.flips(dynamics, name, title, anchor))
            title = f"Loss against the reference log-ratio: {where}"
            charts.append(pairs.threshold(dynamics, name, title, anchor))
            last = dynamics.metrics[-1]
            rows = [
                [group, percent(share), loss, margin]
                for group, share, loss, margin in pairs.group_table(last, name)
            ]
            caption = f"{where}, step {last['step']:.0f}"
            head = ("group", "share", "mean DPO loss", "mean margin")
            tables.append(table_of(caption, head, rows))
    text = (
        "How the reference and the policy rank the followed pairs: right means that the chosen "
        "response is at least as likely. A pair is ranked rightly if and only if its DPO loss is "
        "at most -log σ(βc), c the reference log-ratio log π_ref(rejected) - log π_ref(chosen): "
        "points above the curve are ranked wrongly, however small their loss."
    )
    return Section(
        "dynamics", "What training did to the rankings", text, _kept(charts), tuple(tables)
    )


def diversity_section(runs: Sequence[Run]) -> Section:
    """Intra-diversity over training, and different words in the held-out answers."""
    rows = list[list[Any]]()
    for run in runs:
        for each in run.trainings:
            if each.dynamics is None:
                continue
            key = f"{pairs.prefix_of(each.dynamics.sets[0])}intra_diversity/mean"
            means = [entry[key] for entry in each.dynamics.metrics if key in entry]
            if means:
                name = label(run, each.iteration, runs)
                rows.append([name, means[0], means[-1], fluctuation_range(means)])
    head: tuple[str, ...] = ("training", "first mean, nats", "last", "fluctuation range")
    tables = (table_of("Intra-diversity", head, rows),) if rows else ()
    charts = _kept([pairs.intra_diversities(runs), pairs.distinct_words(runs)])
    text = (
        "Intra-diversity is log π(chosen) - log π(rejected) over pairs; distinct-n the share of "
        "different n-grams of words among all held-out answers of a policy."
    )
    return Section("diversity", "Diversity", text, charts, tables)


def pairs_section(runs: Sequence[Run]) -> Section:
    """Tiers and gaps: the scores of every set of pairs, and what was left out."""
    head: tuple[str, ...] = ("pairs of", "part", "pairs", "prompts", "Avg.Chs", "Avg.Diff")
    head += ("gap: 25 %", "median", "75 %", "without gap")
    rows, notes = list[list[Any]](), list[str]()
    for run in runs:
        for each in run.built:
            where = label(run, each.iteration, runs)
            rows += [[where, *row] for row in _parts(each)]
            left = each.result["left_out"].items()
            notes += [f"{where}: left out {count:,} x {why}" for why, count in left]
            notes += [
                f"{where}: {name.replace('_', ' ')} {_told(value)}"
                for name, value in each.result["figures"].items()
            ]
            found = each.result.get("reversal")  # unknown to runs of older versions
            notes += [] if found is None else [f"{where}: {describe_reversal(found)}"]
            notes += [f"{where}: {note}" for note in each.result["notes"]]
    tables = (table_of("Scores of the pairs", head, rows),) if rows else ()
    text = "Scores are the judge's, where it gives scores; the gap is chosen minus rejected."
    charts = _kept([pairs.score_gaps(runs)])
    return Section("pairs", "Tiers and gaps", text, charts, tables, tuple(notes))


def _parts(built: Built) -> list[list[Any]]:
    return [
        [
            f"{part} ({built.data})" if part != built.data else part,
            each["pairs"],
            each["prompts"],
            each["average_chosen"],
            each["average_difference"],
            *(each["gap"][name] for name in ("q25", "median", "q75")),
            each["gap"]["missing"],
        ]
        for part, each in built.result["statistics"].items()
    ]


def _told(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _kept(charts: Sequence[Chart | None]) -> tuple[Chart, ...]:
    return tuple(each for each in charts if each is not None)
