"""The sections of a page, from the runs; what no run has is left out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import yaml

from prefstage.aligning.loop import reversal_lines
from prefstage.aligning.tables import TableSettings, build_table
from prefstage.building.account import describe_reversal
from prefstage.diagnosing.tables import tables_of
from prefstage.reporting.blocks import (
    Chart,
    Section,
    Table,
    between,
    markdown_table,
    percent,
    shown,
    tables,
)
from prefstage.reporting.evaluations import Evaluated, distinct_words, evaluation_section
from prefstage.reporting.explorer import PairRows, read_pairs, with_dynamics
from prefstage.reporting.measurements import Measured, decision_section
from prefstage.reporting.runs import Part, Run, label, labelled
from prefstage.reporting.trainings import (
    TRAIN_SET,
    Trained,
    dynamics_section,
    followed_pairs,
    intra_diversity,
    training_section,
)
from prefstage.reporting.vega import charts, layer, quantity, rule_at, series
from prefstage.training.export import describe_steps

_COSTS = ("judgments", "judge_replies", "answers", "prompt_tokens", "response_tokens")
_KINDS = {"ratio": "Δ > 1", "gain": "off gained more than on"}
_BINS = 30


@dataclass(frozen=True, kw_only=True)
class Built(Part):
    """Pairs that were built.

    Attributes:
        pairs: Part of the build ("" for the one part of a step of the loop), and its pairs.
    """

    pairs: Sequence[tuple[str, PairRows]]

    def gaps(self) -> dict[str, list[float]]:
        """Score gap of every pair that has one, by part."""
        gaps: dict[str, list[float]] = {}
        for part, rows in self.pairs:
            gaps.setdefault(part, []).extend(g for g in rows.numbers["gap"] if g is not None)
        return gaps


def read_built(**part: Any) -> Built:
    """A build: build.json, and its pairs if they are there."""
    folder, iteration = part["folder"], part["iteration"]
    files = [("", folder / "pairs.parquet", f"iteration {iteration}: trained on")]
    files += [
        (name, folder / name / f"{split}.parquet", f"{name}, {split}")
        for name, splits in part["result"]["parts"].items()
        for split in splits
    ]
    known = [(name, read_pairs(file, title)) for name, file, title in files if file.is_file()]
    return Built(**part, pairs=known)


def sections_of(runs: Sequence[Run]) -> list[Section]:
    """All sections that have something to show.

    Args:
        runs: The runs.

    Returns:
        The sections in the order of the page.
    """
    diversity, means = intra_diversity(runs)
    text = (
        "Intra-diversity is log π(chosen) - log π(rejected) over pairs; distinct-n the share of "
        "different n-grams of words among all held-out answers of a policy."
    )
    drawn = (*diversity, *distinct_words(runs))
    sections = [
        *_experiments(runs),
        decision_section(runs),
        _iterations(runs),
        evaluation_section(runs),
        training_section(runs),
        dynamics_section(runs),
        Section("diversity", "Diversity", text, drawn, means),
        _pairs(runs),
        *_diagnoses(runs),
        _costs(runs),
    ]
    return [section for section in sections if section.charts or section.tables]


def explored(run: Run) -> tuple[list[PairRows], list[tuple[str, str]]]:
    """The run's pairs for the explorer.

    Args:
        run: The run.

    Returns:
        The pairs, and those that cannot be shown: what, and why.
    """
    if run.command == "train":
        return followed_pairs(run)
    dynamics = {part.iteration: part.dynamics for part in run.of(Trained) if part.dynamics}
    pairs = list[PairRows]()
    for part in run.parts:
        if isinstance(part, Evaluated) and part.pairs is not None:
            pairs.append(part.pairs)
        elif isinstance(part, Built):
            built = [rows for _, rows in part.pairs]
            recorded = dynamics.get(part.iteration)
            if recorded is not None and TRAIN_SET in recorded.sets:
                table = recorded.of(TRAIN_SET)
                built = [with_dynamics(rows, table, table["pair"].to_pylist()) for rows in built]
            data = f" ({_data(run, part)})" if run.command == "align" else ""
            pairs += [replace(rows, part=rows.part + data) for rows in built]
    return pairs, []


def _data(run: Run, part: Part) -> str:
    """What a build's pairs are: "off", "on" and so on in the loop, else the method's name."""
    data = {row["iteration"]: row["data"] for row in run.iterations}
    return str(data.get(part.iteration, part.result["method"]))


def lacking(run: Run, pairs: int) -> list[tuple[str, str]]:
    """What the page would show of a run, were it there.

    Args:
        run: The run.
        pairs: How many pairs the explorer holds of it.

    Returns:
        What is not there, and how to get it.
    """
    aligned, measured, trained = run.command == "align", run.of(Measured), run.of(Trained)
    why = {
        "measure": "a measurement keeps votes and own answers, not pairs",
        "diagnose": "a diagnosis keeps figures, not pairs",
        "experiment": f"its cells hold them: `prefstage report {run.folder / 'cells' / 'CELL'}`",
        "train": "without dynamics a training keeps none; see the data that it names",
    }
    dynamics = "flip dynamics, loss against the reference log-ratio, intra-diversity"
    setting = f"{'train.' if aligned else ''}dynamics"
    narrowed = all(part.looks for part in measured)
    cases = [
        (
            not narrowed,
            "how the interval narrowed",
            "prompts.parquet is not there, or of another run",
        ),
        (
            trained and not any(part.dynamics for part in trained),
            dynamics,
            f"not recorded; set `{setting}: {{every: 16}}` in the recipe",
        ),
        (
            aligned and not run.of(Evaluated),
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


def headline(run: Run) -> list[tuple[str, str]]:
    """A run in a few figures, for the top of the page.

    Args:
        run: The run.

    Returns:
        What, and its value.
    """
    stages, evaluated = run.results("measure"), run.results("evaluate")[-1:]
    built, steps = run.of(Built), [part for part in run.parts if part.seconds is not None]
    sums, seconds = _sums(run)
    judged = sums["judgments"] + sums["judge_replies"]
    figures = [("stage", " → ".join(stage["stage"] for stage in stages))] if stages else []
    for last in stages[-1:]:
        score = f"{last['boundary_score']:.2f} {between(last['interval'])}"
        figures.append(("boundary score", score))
    for result in run.results("experiment"):
        failed = f", {len(result['failed'])} failed" if result["failed"] else ""
        figures.append(("cells", f"{len(result['cells'])} done{failed}"))
        for ratio in (agreement["means"]["ratio"] for agreement in result["agreement"].values()):
            share = f"{percent(ratio['agreement'], 0)}, p = {ratio['p_value']:.2g}"
            figures.append(("BS with Δ", share))
    if run.iterations:
        figures.append(("trained on", " → ".join(str(row["data"]) for row in run.iterations)))
    for last in evaluated:
        rate = f"{last['rates']['win_rate']:.1f} % {between(last['rates']['interval'], 1)}"
        figures.append((f"win rate over {last['baseline']}", rate))
    if built:
        figures.append(("pairs", f"{sum(part.result['pairs_built'] for part in built):,}"))
    if steps:
        bought = f"{judged:,} judgments, {sums['response_tokens']:,} tokens"
        figures += [("bought", bought), ("time", duration(seconds))]
    return figures


def duration(seconds: float) -> str:
    """Seconds in words."""
    minutes = seconds / 60
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes:.0f} min" if minutes < 60 else f"{minutes / 60:.1f} h"  # noqa: PLR2004 - an hour


def _sums(run: Run) -> tuple[dict[str, int], float]:
    sums = {name: sum(part.costs.get(name, 0) for part in run.parts) for name in _COSTS}
    return sums, sum(part.seconds or 0.0 for part in run.parts)


def _iterations(runs: Sequence[Run]) -> Section:
    rows = [(run.name, row) for run in runs for row in run.iterations]
    notes = [
        f"An iteration by the rule {row['rule']} did not end: see the run."
        for _, row in rows
        if row["stopped"]
    ]
    notes += [
        f"{name}, iteration {row['iteration']}: {note}"
        for name, row in rows
        for part in ("training", "evaluation")
        for note in ((row[part] or {}).get("notes") or ())
    ]
    reversals = ((run, reversal_lines({"iterations": run.iterations})) for run in runs)
    notes += [f"{run.name}, {line}" for run, lines in reversals for line in lines]
    head = ("run", "iteration", "rule", "stage", "data", "why", "pairs", "left out", "steps")
    table = tables(
        "Iterations",
        (*head, "loss", "win rate", "length (start)"),
        [[name, *_iteration(row)] for name, row in rows],
    )
    text = "Each row is one turn of sample, judge, measure, choose, build, train, evaluate."
    return Section("iterations", "Iterations", text, (), table, tuple(notes))


def _iteration(row: Mapping[str, Any]) -> list[Any]:
    left, training, evaluation = row["left_out"], row["training"], row["evaluation"]
    steps = losses = rate = length = None
    if training is not None:
        steps, ends = describe_steps(training), (training["first_loss"], training["last_loss"])
        losses = None if None in ends else " to ".join(map(shown, ends))
    if evaluation is not None:
        rate = f"{evaluation['win_rate']:.1f} % {between(evaluation['interval'], 1)}"
        length = f"{evaluation['avg_length']:.0f} ({evaluation['avg_length_start']:.0f})"
    stage = row["stage"] and row["stage"]["stage"]
    cells = [row["iteration"], row["rule"], stage, row["data"], row["reason"], row["pairs"]]
    return [*cells, None if left is None else sum(left.values()), steps, losses, rate, length]


def _pairs(runs: Sequence[Run]) -> Section:
    rows, notes = list[list[Any]](), list[str]()
    for run in runs:
        for part in run.of(Built):
            where, data, result = label(run, part, runs), _data(run, part), part.result
            rows += [
                [where, *_statistics(name, data, s)] for name, s in result["statistics"].items()
            ]
            notes += [f"{where}: left out {n:,} x {why}" for why, n in result["left_out"].items()]
            notes += [
                f"{where}: {name.replace('_', ' ')} "
                f"{f'{value:.4g}' if isinstance(value, float) else value}"
                for name, value in result["figures"].items()
            ]
            reversal = result["reversal"]
            notes += [] if reversal is None else [f"{where}: {describe_reversal(reversal)}"]
            notes += [f"{where}: {note}" for note in result["notes"]]
    head = ("pairs of", "part", "pairs", "prompts", "Avg.Chs", "Avg.Diff")
    columns = (*head, "gap: 25 %", "median", "75 %", "without gap")
    text = "Scores are the judge's, where it gives scores; the gap is chosen minus rejected."
    table = tables("Scores of the pairs", columns, rows)
    return Section("pairs", "Tiers and gaps", text, _gaps(runs), table, tuple(notes))


def _statistics(part: str, data: str, figures: Mapping[str, Any]) -> list[Any]:
    name, gap = part if part == data else f"{part} ({data})", figures["gap"]
    means = (figures["average_chosen"], figures["average_difference"])
    quartiles = (gap["q25"], gap["median"], gap["q75"])
    return [name, figures["pairs"], figures["prompts"], *means, *quartiles, gap["missing"]]


def _gaps(runs: Sequence[Run]) -> tuple[Chart, ...]:
    sets = {
        f"{name} {part}".strip(): gaps
        for name, built in labelled(runs, Built)
        for part, gaps in built.gaps().items()
        if gaps
    }
    if not sets:
        return ()
    edges = np.histogram_bin_edges(np.concatenate(list(sets.values())), bins=_BINS)
    low_ends = [float(f"{edge:.4g}") for edge in edges]
    values = [
        {
            "set": name,
            "low": low_ends[k],
            "high": low_ends[k + 1],
            "pairs": count,
            "share": round(count / len(gaps), 6),
        }
        for name, gaps in sets.items()
        for k, count in enumerate(np.histogram(gaps, bins=edges)[0].tolist())
    ]
    head = {"set": "pairs of", "low": "gap from", "high": "to", "pairs": "pairs", "share": "share"}
    steps = {"type": "area", "interpolate": "step-after", "opacity": 0.25, "line": True}
    medians = (f"{name}: median {np.median(g):.3g} of {len(g)}" for name, g in sets.items())
    return charts(
        "gaps",
        "Score gaps",
        f"Histogram of score gaps. {'; '.join(medians)}.",
        values,
        head,
        layer(
            steps,
            head,
            x=quantity("low", "score gap, chosen - rejected"),
            y=quantity("share", "share of pairs", scale={"zero": True}, stack=None),
            color=series("set", list(sets)),
        ),
    )


def _diagnoses(runs: Sequence[Run]) -> list[Section]:
    sections = list[Section]()
    for number, run in enumerate(runs, start=1):
        reports = [report for result in run.results("diagnose") for report in result["diagnoses"]]
        for count, report in enumerate(reports, start=1):
            title = f"Diagnosis of {report['dataset']}"
            title += f", {report['policy']}" if report.get("policy") else ""
            parts = [markdown_table(text, title) for title, text in tables_of(report).items()]
            notes = [note for _, lines in parts for note in lines]
            notes += [
                f"Warning: {warning['what']} ({warning['figure']}). Remedy: {warning['remedy']}."
                for warning in report["warnings"]
            ]
            table = tuple(table for some, _ in parts for table in some)
            name = f"diagnosis-{number}-{count}"
            sections.append(Section(name, title, tables=table, notes=tuple(notes)))
    return sections


def _costs(runs: Sequence[Run]) -> Section:
    rows = list[list[Any]]()
    for run in runs:
        steps = [part for part in run.parts if part.seconds is not None]
        rows += [
            [run.name, part.iteration or "before", part.folder.name, f"{part.seconds:.1f} s"]
            + [part.costs.get(name, 0) for name in _COSTS]
            for part in steps
        ]
        if steps:
            sums, seconds = _sums(run)
            rows.append([run.name, "all", "", duration(seconds), *sums.values()])
    head = ("run", "iteration", "step", "time", "judgments", "judge's replies", "answers")
    text = "What each step took and bought when it was done; nothing is bought twice."
    table = tables("Steps and what they bought", (*head, "prompt tokens", "response tokens"), rows)
    return Section("costs", "Costs", text, _times(runs), table)


def _times(runs: Sequence[Run]) -> tuple[Chart, ...]:
    seconds: dict[tuple[str, str], float] = {}
    for name, part in labelled(runs, Part):
        if part.seconds is not None:
            seconds[name, part.kind] = seconds.get((name, part.kind), 0.0) + part.seconds
    values = [{"where": w, "kind": k, "seconds": round(s, 2)} for (w, k), s in seconds.items()]
    wheres, kinds = (list(dict.fromkeys(key[k] for key in seconds)) for k in (0, 1))
    head = {"where": "iteration", "kind": "step", "seconds": "seconds"}
    bars = layer(
        {"type": "bar", "height": {"band": 0.7}},
        head,
        y={"field": "where", "type": "nominal", "title": None, "sort": wheres},
        x=quantity("seconds", "seconds", scale={"zero": True}, stack="zero"),
        color=series("kind", kinds),
    )
    alt = f"Seconds by iteration and step; {sum(seconds.values()):.0f} in all."
    height = 40 * len(wheres) + 20
    return charts("time", "Where the time went", alt, values, head, bars, height=height)


def _experiments(runs: Sequence[Run]) -> list[Section]:
    sections = list[Section]()
    for number, run in enumerate(runs, start=1):
        before = f"{run.name}: " if len(runs) > 1 else ""
        for result in run.results("experiment"):
            for name, settings in (yaml.safe_load(run.config) or {})["tables"].items():
                sections.append(
                    _tabulated(name, settings, result, f"table-{number}-{name}", before)
                )
            failed = tables("Cells that failed", ("cell", "why"), list(result["failed"].items()))
            text = "The same command tries them again; the tables are of the other cells."
            title = f"{before}cells that failed"
            sections.append(Section(f"failed-{number}", title, text, (), failed))
    return sections


def _tabulated(
    name: str, settings: Mapping[str, Any], result: Mapping[str, Any], anchor: str, before: str
) -> Section:
    table = build_table(TableSettings(**settings), result["cells"])
    rows = list[Sequence[str]]()
    for heading, entries in table.blocks:
        rows += [(heading, *[""] * (len(table.head) - 1))] if heading else []
        rows += [tuple("–" if entry is None else str(entry) for entry in row) for row in entries]
    caption = f"{name}.md, .tex and .csv in the run's tables"
    text = "Means ± standard errors over what the rows and blocks do not name, such as seeds."
    drawn: tuple[Chart, ...] = ()
    several = tables(caption, table.head, rows)
    agreement = result["agreement"].get(name)
    if agreement is not None:
        drawn = _advantages(agreement["means"]["starts"], anchor)
        several += _contingencies(agreement)
        text += (
            " Δ is the gain of training on off-policy data over that of training on on-policy data "
            "from the same start. A boundary score (BS) below one half foretells Δ > 1."
        )
    return Section(anchor, f"{before}{table.title or name}", text, drawn, several)


def _contingencies(agreement: Mapping[str, Any]) -> tuple[Table, ...]:
    head = ("over", "against", "BS < 0.5: yes", "no", "BS >= 0.5: yes", "no", "agreement")
    rows = [
        [
            over,
            against,
            *(str(count) for row in counted[kind]["counts"] for count in row),
            percent(counted[kind]["agreement"], 0),
            f"{counted[kind]['p_value']:.3g}",
            str(counted[kind]["left_out"]),
        ]
        for over, counted in agreement.items()
        for kind, against in _KINDS.items()
    ]
    caption = "Boundary score against which data gained more"
    return tables(caption, (*head, "Fisher's exact p", "left out"), rows)


def _advantages(starts: Sequence[Mapping[str, Any]], anchor: str) -> tuple[Chart, ...]:
    values = [
        {"where": s["where"], "score": s["boundary_score"], "more": s["off"] - s["on"]}
        for s in starts
    ]
    head = {"where": "start", "score": "boundary score", "more": "gain of off minus gain of on"}
    points = layer(
        {"type": "point", "color": "@c1", "opacity": 0.85},
        head,
        x=quantity("score", "boundary score of the start"),
        y=quantity("more", "gain of off-policy minus gain of on-policy data"),
    )
    fits = sum((row["score"] < 1 / 2) == (row["more"] > 0) for row in values)
    alt = (
        f"Boundary score of {len(values)} starts against the gain of off-policy minus that of "
        f"on-policy data; {fits} stand where theory puts them: left of one half above zero, or "
        "right of it below."
    )
    title, half = "Which data gained more, against the boundary score", rule_at(0.5, axis="x")
    name = f"advantage-{anchor}"
    return charts(name, title, alt, values, head, points, rule_at(0), half)
