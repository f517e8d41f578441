"""The sections of a page, from the runs; what no run has is left out."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from prefstage.aligning.advice import advice_rows, how_often_right
from prefstage.aligning.runs import in_sample_lines, reversal_lines
from prefstage.aligning.tables import TableSettings, build_table
from prefstage.building.account import describe_reversal
from prefstage.core import parse_yaml
from prefstage.diagnosing.tables import tables_of
from prefstage.reporting.blocks import (
    Cell,
    Chart,
    Row,
    Section,
    Table,
    between,
    charts,
    layer,
    percent,
    quantity,
    rule_at,
    series_of,
    shown,
    table_of,
    tables,
)
from prefstage.reporting.measured import decision_section, distinct_words, evaluation_section
from prefstage.reporting.runs import PairRows, Part, Run, label, labelled, read_pairs, with_dynamics
from prefstage.reporting.trainings import (
    TRAIN_SET,
    dynamics_section,
    followed_pairs,
    intra_diversity,
    training_section,
)
from prefstage.training.export import describe_steps

_COSTS = {
    "judgments": "judgments",
    "judge_replies": "judge's replies",
    "answers": "answers",
    "prompt_tokens": "prompt tokens",
    "response_tokens": "response tokens",
}
_KINDS = {"ratio": "Δ > 1", "gain": "off gained more than on"}
_BINS = 30


def read_built(part: Part) -> dict[str, Any]:
    """A build's pairs, of every part whose file is there."""
    return {
        "pairs": [
            (name, read_pairs(file, title))
            for name, file, title in [
                ("", part.folder / "pairs.parquet", f"iteration {part.iteration}: trained on"),
                *(
                    (name, part.folder / name / f"{split}.parquet", f"{name}, {split}")
                    for name, splits in part.result["parts"].items()
                    for split in splits
                ),
            ]
            if file.is_file()
        ]
    }


def sections_of(runs: Sequence[Run]) -> list[Section]:
    """All sections that have something to show.

    Args:
        runs: The runs.

    Returns:
        The sections in the order of the page.
    """
    diversity, means = intra_diversity(runs)
    sections = [
        *_experiments(runs),
        _advice(runs),
        decision_section(runs),
        _iterations(runs),
        evaluation_section(runs),
        training_section(runs),
        dynamics_section(runs),
        Section(
            "diversity",
            "Diversity",
            "Intra-diversity is log π(chosen) - log π(rejected) over pairs; distinct-n the share "
            "of different n-grams of words among all held-out answers of a policy.",
            (*diversity, *distinct_words(runs)),
            means,
        ),
        _pairs(runs),
        *_diagnoses(runs),
        _costs(runs),
    ]
    return [section for section in sections if section.charts or section.tables]


# By the command, and in iterations of a loop that takes advice.
def _advice(runs: Sequence[Run]) -> Section:
    made = [(label(run, part, runs), part.result) for run in runs for part in run.of("advise")]
    made += [
        (f"{run.name}, iteration {row['iteration']}", row["advice"])
        for run in runs
        for row in run.iterations
        if row.get("advice") is not None
    ]
    return Section(
        "advice",
        "What to train on next",
        "A forecast is the gain of one step, to first order, from gradients; its cosine and the "
        "agreement of the data's pairs say how far it lasts. A pilot is a short training, valued "
        "by judged answers. Intervals are of 95 %.",
        tables=tuple(
            table
            for name, result in made
            for table in tables(f"{name}: {result['depth']}", *advice_rows(result))
        ),
        notes=tuple(
            f"{name}: {line}"
            for name, result in made
            for line in (result["reason"], *how_often_right(result))
        ),
    )


def explored(run: Run) -> tuple[list[PairRows], list[tuple[str, str]]]:
    """The run's pairs for the explorer.

    Args:
        run: The run.

    Returns:
        The pairs, and those that cannot be shown: what, and why.
    """
    if run.command == "train":
        return followed_pairs(run)
    followed = {
        part.iteration: part.dynamics.of(TRAIN_SET)
        for part in run.of("train")
        if part.dynamics and TRAIN_SET in part.dynamics.sets
    }
    pairs = list[PairRows]()
    for part in run.parts:
        rows = [rows for _, rows in part.pairs]
        if rows and part.kind == "build":
            if table := followed.get(part.iteration):
                rows = [with_dynamics(some, table, table["pair"].to_pylist()) for some in rows]
            data = f" ({_data(run, part)})" if run.command == "align" else ""
            rows = [replace(some, part=some.part + data) for some in rows]
        pairs += rows
    return pairs, []


# What a build's pairs are: "off", "on" and so on in the loop, else the method's name.
def _data(run: Run, part: Part) -> str:
    data = {row["iteration"]: row["data"] for row in run.iterations}
    return str(data.get(part.iteration, part.result["method"]))


def duration(seconds: float) -> str:
    """Seconds in words."""
    minutes = seconds / 60
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes:.0f} min" if minutes < 60 else f"{minutes / 60:.1f} h"  # noqa: PLR2004 - an hour


def sums_of(run: Run) -> tuple[dict[str, int], float]:
    """What a run bought, by kind, and how many seconds it took."""
    sums = {name: sum(part.costs.get(name, 0) for part in run.parts) for name in _COSTS}
    return sums, sum(part.seconds or 0.0 for part in run.parts)


def _iterations(runs: Sequence[Run]) -> Section:
    rows = [(run.name, row) for run in runs for row in run.iterations]
    return Section(
        "iterations",
        "Iterations",
        "Each row is one turn of sample, judge, measure, choose, build, train, evaluate.",
        tables=table_of("Iterations", [{"run": name, **_iteration(row)} for name, row in rows]),
        notes=(
            *(
                f"An iteration by the rule {row['rule']} did not end: see the run."
                for _, row in rows
                if row["stopped"]
            ),
            *(
                f"{name}, iteration {row['iteration']}: {note}"
                for name, row in rows
                for part in ("training", "evaluation")
                for note in ((row[part] or {}).get("notes") or ())
            ),
            *(
                f"{run.name}, {line}"
                for run in runs
                for lines in (reversal_lines, in_sample_lines)
                for line in lines({"iterations": run.iterations})
            ),
        ),
    )


def _iteration(row: Row) -> dict[str, Cell]:
    training, evaluation = row["training"], row["evaluation"]
    ends = [training["first_loss"], training["last_loss"]] if training else [None]
    return {
        "iteration": row["iteration"],
        "rule": row["rule"],
        "stage": row["stage"] and row["stage"]["stage"],
        "data": row["data"],
        "why": row["reason"],
        "pairs": row["pairs"],
        "left out": None if row["left_out"] is None else sum(row["left_out"].values()),
        "steps": training and describe_steps(training),
        "loss": None if None in ends else " to ".join(map(shown, ends)),
        "win rate": evaluation
        and f"{evaluation['win_rate']:.1f} % {between(evaluation['interval'], 1)}",
        "length (baseline)": evaluation
        and f"{evaluation['avg_length']:.0f} ({evaluation['avg_length_start']:.0f})",
    }


def _pairs(runs: Sequence[Run]) -> Section:
    rows, notes = list[dict[str, Cell]](), list[str]()
    for run, part in [(r, part) for r in runs for part in r.of("build")]:
        where, data, result = label(run, part, runs), _data(run, part), part.result
        rows += [
            {
                "pairs of": where,
                "part": name if name == data else f"{name} ({data})",
                "pairs": figures["pairs"],
                "prompts": figures["prompts"],
                "Avg.Chs": figures["average_chosen"],
                "Avg.Diff": figures["average_difference"],
                "gap: 25 %": figures["gap"]["q25"],
                "median": figures["gap"]["median"],
                "75 %": figures["gap"]["q75"],
                "without gap": figures["gap"]["missing"],
            }
            for name, figures in result["statistics"].items()
        ]
        lines = [
            *(f"left out {n:,} x {why}" for why, n in result["left_out"].items()),
            *(
                f"{name.replace('_', ' ')} {f'{value:.4g}' if isinstance(value, float) else value}"
                for name, value in result["figures"].items()
            ),
            *([] if result["reversal"] is None else [describe_reversal(result["reversal"])]),
        ]
        notes += [f"{where}: {note}" for note in (*lines, *result["notes"])]
    return Section(
        "pairs",
        "Tiers and gaps",
        "Scores are the judge's, where it gives scores; the gap is chosen minus rejected.",
        _gaps(runs),
        table_of("Scores of the pairs", rows),
        tuple(notes),
    )


def _gaps(runs: Sequence[Run]) -> tuple[Chart, ...]:
    # The score gap of every pair that has one, by run, iteration and part.
    sets = dict[str, list[float]]()
    for name, built in labelled(runs, "build"):
        for part, rows in built.pairs:
            gaps = [gap for gap in rows.numbers["gap"] if gap is not None]
            if gaps:
                sets.setdefault(f"{name} {part}".strip(), []).extend(gaps)
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
    medians = (f"{name}: median {np.median(g):.3g} of {len(g)}" for name, g in sets.items())
    return charts(
        "gaps",
        "Score gaps",
        f"Histogram of score gaps. {'; '.join(medians)}.",
        values,
        head,
        layer(
            {"type": "area", "interpolate": "step-after", "opacity": 0.25, "line": True},
            head,
            x=quantity("low", "score gap, chosen - rejected"),
            y=quantity("share", "share of pairs", scale={"zero": True}, stack=None),
            color=series_of("set", values),
        ),
    )


def _diagnoses(runs: Sequence[Run]) -> Iterator[Section]:
    for number, run in enumerate(runs, start=1):
        reports = [report for part in run.of("diagnose") for report in part.result["diagnoses"]]
        for count, report in enumerate(reports, start=1):
            names = ", ".join(filter(None, (report["dataset"], report.get("policy"))))
            table, notes = list[Table](), list[str]()
            for caption, (rows, remarks) in tables_of(report).items():
                table += table_of(caption, [{k: str(cell) for k, cell in r.items()} for r in rows])
                notes += remarks
            notes += [
                f"Warning: {warning['what']} ({warning['figure']}). Remedy: {warning['remedy']}."
                for warning in report["warnings"]
            ]
            yield Section(
                f"diagnosis-{number}-{count}",
                f"Diagnosis of {names}",
                tables=tuple(table),
                notes=tuple(notes),
            )


def _costs(runs: Sequence[Run]) -> Section:
    rows = list[dict[str, Cell]]()
    for run in runs:
        steps = [(part, part.seconds) for part in run.parts if part.seconds is not None]
        rows += [
            {
                "run": run.name,
                "iteration": part.iteration or "before",
                "step": part.folder.name,
                "time": f"{seconds:.1f} s",
                **{title: part.costs.get(name, 0) for name, title in _COSTS.items()},
            }
            for part, seconds in steps
        ]
        if steps:
            sums, seconds = sums_of(run)
            rows.append(
                {"run": run.name, "iteration": "all", "step": "", "time": duration(seconds)}
                | {title: sums[name] for name, title in _COSTS.items()}
            )
    return Section(
        "costs",
        "Costs",
        "What each step took and bought when it was done; nothing is bought twice.",
        _times(runs),
        table_of("Steps and what they bought", rows),
    )


def _times(runs: Sequence[Run]) -> tuple[Chart, ...]:
    seconds = defaultdict[tuple[str, str], float](float)
    for run in runs:
        for part in run.parts:
            if part.seconds is not None:
                seconds[label(run, part, runs), part.kind] += part.seconds
    values = [{"where": w, "kind": k, "seconds": round(s, 2)} for (w, k), s in seconds.items()]
    wheres = list(dict.fromkeys(where for where, _ in seconds))
    head = {"where": "iteration", "kind": "step", "seconds": "seconds"}
    return charts(
        "time",
        "Where the time went",
        f"Seconds by iteration and step; {sum(seconds.values()):.0f} in all.",
        values,
        head,
        layer(
            {"type": "bar", "height": {"band": 0.7}},
            head,
            y={"field": "where", "type": "nominal", "title": None, "sort": wheres},
            x=quantity("seconds", "seconds", scale={"zero": True}, stack="zero"),
            color=series_of("kind", values),
        ),
        height=40 * len(wheres) + 20,
    )


def _experiments(runs: Sequence[Run]) -> Iterator[Section]:
    for number, run in enumerate(runs, start=1):
        before = f"{run.name}: " if len(runs) > 1 else ""
        for result in (part.result for part in run.of("experiment")):
            for name, settings in (parse_yaml(run.config) or {})["tables"].items():
                yield _tabulated(name, settings, result, f"table-{number}-{name}", before)
            yield Section(
                f"failed-{number}",
                f"{before}cells that failed",
                "The same command tries them again; the tables are of the other cells.",
                tables=tables("Cells that failed", ("cell", "why"), list(result["failed"].items())),
            )


def _tabulated(name: str, settings: Row, result: Row, anchor: str, before: str) -> Section:
    table = build_table(TableSettings(**settings), result["cells"])
    rows = list[Sequence[str]]()
    for heading, entries in table.blocks:
        rows += [(heading, *[""] * (len(table.head) - 1))] if heading else []
        rows += [tuple("–" if entry is None else str(entry) for entry in row) for row in entries]
    several = tables(f"{name}.md, .tex and .csv in the run's tables", table.head, rows)
    text = "Means ± standard errors over what the rows and blocks do not name, such as seeds."
    drawn: tuple[Chart, ...] = ()
    agreement = result["agreement"].get(name)
    if agreement is not None:
        drawn = _advantages(agreement["means"]["starts"], anchor)
        several += tables(
            "Boundary score against which data gained more",
            (
                "over",
                "against",
                "BS < 0.5: yes",
                "no",
                "BS >= 0.5: yes",
                "no",
                "agreement",
                "Fisher's exact p",
                "left out",
            ),
            [
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
            ],
        )
        text += (
            " Δ is the gain of training on off-policy data over that of training on on-policy data "
            "from the same start. A boundary score (BS) below one half foretells Δ > 1."
        )
    return Section(anchor, f"{before}{table.title or name}", text, drawn, several)


def _advantages(starts: Sequence[Row], anchor: str) -> tuple[Chart, ...]:
    values = [
        {"where": s["where"], "score": s["boundary_score"], "more": s["off"] - s["on"]}
        for s in starts
    ]
    head = {"where": "start", "score": "boundary score", "more": "gain of off minus gain of on"}
    fits = sum((row["score"] < 1 / 2) == (row["more"] > 0) for row in values)
    return charts(
        f"advantage-{anchor}",
        "Which data gained more, against the boundary score",
        f"Boundary score of {len(values)} starts against the gain of off-policy minus that of "
        f"on-policy data; {fits} stand where theory puts them: left of one half above zero, or "
        "right of it below.",
        values,
        head,
        layer(
            {"type": "point", "color": "@c1", "opacity": 0.85},
            head,
            x=quantity("score", "boundary score of the start"),
            y=quantity("more", "gain of off-policy minus gain of on-policy data"),
        ),
        rule_at(0),
        rule_at(0.5, axis="x"),
    )
