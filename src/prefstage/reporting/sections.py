"""The sections of a page, from the runs; what no run has is left out."""

from collections.abc import Mapping, Sequence
from typing import Any

from prefstage.aligning.results import reversals_told
from prefstage.reporting import charts_loop as loop
from prefstage.reporting.blocks import (
    Chart,
    Section,
    Table,
    between,
    percent,
    shown,
    table_of,
)
from prefstage.reporting.results import Evaluation, Run
from prefstage.reporting.sections_experiment import experiment_sections
from prefstage.reporting.sections_pairs import (
    diversity_section,
    dynamics_section,
    pairs_section,
)
from prefstage.training.best import exported_told, steps_told

_MINUTE_S, _HOUR_S = 60.0, 3600.0


def sections_of(runs: Sequence[Run]) -> list[Section]:
    """All sections that have something to show.

    Args:
        runs: The runs.

    Returns:
        The sections in the order of the page.
    """
    found = [
        *experiment_sections(runs),
        _decision(runs),
        _iterations(runs),
        _evaluation(runs),
        _training(runs),
        dynamics_section(runs),
        diversity_section(runs),
        pairs_section(runs),
        *_diagnoses(runs),
        _costs(runs),
    ]
    return [each for each in found if each.charts or each.tables]


def lacking(runs: Sequence[Run]) -> list[tuple[str, str, str]]:
    """What the page would show of a run, were it there.

    Args:
        runs: The runs.

    Returns:
        Run, what is not there, and how to get it.
    """
    found = list[tuple[str, str, str]]()
    for run in runs:
        told = [*run.lacks]
        if run.decisions and not all(each.looks for each in run.decisions):
            told.append(
                ("how the interval narrowed", "prompts.parquet is not there, or of another run")
            )
        if run.trainings and all(each.dynamics is None for each in run.trainings):
            setting = "train.dynamics" if run.command == "align" else "dynamics"
            told.append(
                (
                    "flip dynamics, loss against the reference log-ratio, intra-diversity",
                    f"not recorded; set `{setting}: {{every: 16}}` in the recipe",
                )
            )
        if run.command == "align" and not run.evaluations:
            told.append(("win rates and lengths", "set `evaluate` in the recipe"))
        if run.command == "align" and not run.decisions:
            told.append(("the decision", "the recipe measures nothing (`measure: false`)"))
        if not run.pairs:
            told.append(("pairs to read", _no_pairs(run)))
        found += [(run.name, what, why) for what, why in told]
    return found


def _no_pairs(run: Run) -> str:
    why = {
        "measure": "a measurement keeps votes and own answers, not pairs",
        "diagnose": "a diagnosis keeps figures, not pairs",
        "experiment": f"its cells hold them: `prefstage report {run.folder / 'cells' / 'CELL'}`",
        "train": "without dynamics a training keeps none; see the data that it names",
    }
    return why.get(run.command, "none on file")


def headline(run: Run) -> list[tuple[str, str]]:
    """A run in a few figures, for the top of the page.

    Args:
        run: The run.

    Returns:
        What, and its value.
    """
    found = list[tuple[str, str]]()
    if run.decisions:
        found.append(("stage", " → ".join(each.stage["stage"] for each in run.decisions)))
        last = run.decisions[-1].stage
        score = f"{last['boundary_score']:.2f} {between(last['interval'])}"
        found.append(("boundary score", score))
    if run.cells or run.failed:
        failed = f", {len(run.failed)} failed" if run.failed else ""
        found.append(("cells", f"{len(run.cells)} done{failed}"))
    for each in run.tables:
        if each.agreement is not None:
            told = each.agreement["means"]["ratio"]
            found.append(
                ("BS with Δ", f"{percent(told['agreement'], 0)}, p = {told['p_value']:.2g}")
            )
    if run.iterations:
        found.append(("trained on", " → ".join(str(row["data"]) for row in run.iterations)))
    if run.evaluations:
        rates = run.evaluations[-1].result["rates"]
        rate = f"{rates['win_rate']:.1f} % {between(rates['interval'], 1)}"
        found.append((f"win rate over {run.evaluations[-1].baseline}", rate))
    if run.built:
        total = sum(each.result["pairs_built"] for each in run.built)
        found.append(("pairs", f"{total:,}"))
    if run.costs:
        sums = _sums(run)
        found.append(("bought", f"{sums['judgments']:,} judgments, {sums['tokens']:,} tokens"))
        found.append(("time", duration(sums["seconds"])))
    return found


def duration(seconds: float) -> str:
    """Seconds in words."""
    if seconds < _MINUTE_S:
        return f"{seconds:.0f} s"
    return f"{seconds / _MINUTE_S:.0f} min" if seconds < _HOUR_S else f"{seconds / _HOUR_S:.1f} h"


def _present(*charts: Chart | None) -> tuple[Chart, ...]:
    return tuple(each for each in charts if each is not None)


def _decision(runs: Sequence[Run]) -> Section:
    head: tuple[str, ...] = (
        "measured",
        "stage",
        "boundary score",
        "interval",
        "prompts",
        "votes on : off : tie",
    )
    head += ("stopped", "Algorithm 1")
    rows = [
        [
            loop.label(run, each.iteration, runs),
            each.stage["stage"],
            f"{each.stage['boundary_score']:.3f}",
            f"{between(each.stage['interval'], 3)} ({percent(each.stage['confidence'], 0)})",
            f"{each.stage['prompts_used']:,} of {each.stage['prompts_available']:,}",
            " : ".join(f"{each.stage[name]:,}" for name in ("votes_on", "votes_off", "ties")),
            each.stage["stopped"],
            each.stage["algorithm_1"],
        ]
        for run in runs
        for each in run.decisions
    ]
    text = (
        "The boundary score is the share of comparisons that the policy's own answers win against "
        "the off-policy ones. While its interval is below one half, the off-policy pairs teach "
        "more (injection stage); above, pairs of the policy's own answers do (fine-tuning stage)."
    )
    charts = _present(loop.narrowing(runs), loop.boundary_scores(runs))
    return Section("decision", "Decision", text, charts, _tables("Measured stages", head, rows))


def _tables(caption: str, head: Sequence[str], rows: Sequence[Sequence[Any]]) -> tuple[Table, ...]:
    return (table_of(caption, head, rows),) if rows else ()


def _iterations(runs: Sequence[Run]) -> Section:
    head: tuple[str, ...] = (
        "run",
        "iteration",
        "rule",
        "stage",
        "data",
        "why",
        "pairs",
        "left out",
        "steps",
    )
    head += ("loss", "win rate", "length (start)")
    rows = [[run.name, *_iteration(row)] for run in runs for row in run.iterations]
    names = (row["rule"] for run in runs for row in run.iterations if row["stopped"])
    notes = [f"An iteration by the rule {name} did not end: see the run." for name in names]
    notes += [
        f"{run.name}, iteration {row['iteration']}: {note}"
        for run in runs
        for row in run.iterations
        for part in ("training", "evaluation")
        for note in ((row[part] or {}).get("notes") or ())
    ]
    notes += [f"{run.name}, {told}" for run in runs for told in _reversals(run)]
    text = "Each row is one turn of sample, judge, measure, choose, build, train, evaluate."
    tables = _tables("Iterations", head, rows)
    return Section("iterations", "Iterations", text, (), tables, tuple(notes))


def _reversals(run: Run) -> list[str]:
    return reversals_told({"iterations": run.iterations})


def _iteration(row: Mapping[str, Any]) -> list[Any]:
    training, evaluation = row["training"], row["evaluation"]
    left = row["left_out"]
    cells: list[Any] = [row["iteration"], row["rule"]]
    cells += [row["stage"] and row["stage"]["stage"], row["data"], row["reason"], row["pairs"]]
    cells.append(None if left is None else sum(left.values()))
    if training is None:
        cells += [None, None]
    else:
        ends = [training["first_loss"], training["last_loss"]]
        cells += [steps_told(training), None if None in ends else " to ".join(map(shown, ends))]
    if evaluation is None:
        return [*cells, None, None]
    rate = f"{evaluation['win_rate']:.1f} % {between(evaluation['interval'], 1)}"
    return [*cells, rate, f"{evaluation['avg_length']:.0f} ({evaluation['avg_length_start']:.0f})"]


def _evaluation(runs: Sequence[Run]) -> Section:
    head: tuple[str, ...] = (
        "run",
        "model",
        "baseline",
        "win rate",
        "interval",
        "length-controlled",
        "prompts",
    )
    head += ("won : lost : drawn", "undecided", "length", "baseline's")
    rows = [[run.name, *_evaluated(each)] for run in runs for each in run.evaluations]
    notes = tuple(
        f"{run.name}, {each.model}: {note}"
        for run in runs
        for each in run.evaluations
        for note in each.result["notes"]
    )
    text = "Answers to held-out prompts, compared by the same judge with the baseline's."
    charts = _present(loop.win_rates(runs), loop.lengths(runs))
    tables = _tables("Evaluations", head, rows)
    return Section("evaluation", "Win rate and length", text, charts, tables, notes)


def _evaluated(each: Evaluation) -> list[Any]:
    rates, controlled = each.result["rates"], each.result["controlled"]
    rate = None
    if controlled is not None:
        ends = each.result["controlled_interval"]
        rate = f"{controlled['length_controlled_win_rate']:.1f} % {between(ends, 1)}"
    votes = " : ".join(f"{rates[name]:,}" for name in ("wins", "losses", "draws"))
    return [
        each.model,
        each.baseline,
        f"{rates['win_rate']:.1f} %",
        f"{between(rates['interval'], 1)} ({percent(rates['confidence'], 0)})",
        rate,
        rates["n_total"],
        votes,
        rates["n_missing"],
        f"{each.result['avg_length']:.0f}",
        f"{each.result['avg_length_baseline']:.0f}",
    ]


def _training(runs: Sequence[Run]) -> Section:
    head = ("training", "items", "epochs", "steps", "tokens", "mean loss", "first", "last")
    rows = [
        [
            loop.label(run, each.iteration, runs),
            *(each.result[name] for name in ("items", "epochs")),
            steps_told(each.result),
            each.result["tokens"],
            *(each.result[name] for name in ("train_loss", "first_loss", "last_loss")),
        ]
        for run in runs
        for each in run.trainings
    ]
    notes = tuple(
        f"{loop.label(run, each.iteration, runs)}: {note}"
        for run in runs
        for each in run.trainings
        for note in each.result["notes"]
    )
    notes += tuple(
        f"{loop.label(run, each.iteration, runs)}: exported: {told}"
        for run in runs
        for each in run.trainings
        if (told := exported_told(each.result)) is not None
    )
    charts = _present(loop.losses(runs))
    return Section("training", "Training", "", charts, _tables("Trainings", head, rows), notes)


def _diagnoses(runs: Sequence[Run]) -> list[Section]:
    from prefstage.diagnosing.tables import tables_of
    from prefstage.reporting.markdown import read_tables

    found = list[Section]()
    for run in runs:
        for number, report in enumerate(run.diagnoses, start=1):
            title = f"Diagnosis of {report['dataset']}"
            title += f", {report['policy']}" if report.get("policy") else ""
            tables, notes = list[Table](), list[str]()
            for caption, text in tables_of(report).items():
                own, rest = read_tables(text, caption)
                tables += own
                notes += rest
            notes += [
                f"Warning: {each['what']} ({each['figure']}). Remedy: {each['remedy']}."
                for each in report["warnings"]
            ]
            name = f"diagnosis-{runs.index(run) + 1}-{number}"
            found.append(Section(name, title, "", (), tuple(tables), tuple(notes)))
    return found


def _sums(run: Run) -> dict[str, Any]:
    def total(*names: str) -> int:
        return sum(each.bought.get(name, 0) for each in run.costs for name in names)

    return {
        "seconds": sum(each.seconds for each in run.costs),
        "judgments": total("judgments", "judge_replies"),
        "answers": total("answers"),
        "tokens": total("response_tokens"),
    }


def _costs(runs: Sequence[Run]) -> Section:
    head: tuple[str, ...] = (
        "run",
        "iteration",
        "step",
        "time",
        "judgments",
        "judge's replies",
        "answers",
    )
    head += ("prompt tokens", "response tokens")
    names = ("judgments", "judge_replies", "answers", "prompt_tokens", "response_tokens")
    rows = list[list[Any]]()
    for run in runs:
        for each in run.costs:
            counts = [each.bought.get(name, 0) for name in names]
            where = each.iteration or "before"
            rows.append([run.name, where, each.step, f"{each.seconds:.1f} s", *counts])
        if run.costs:
            sums = [sum(each.bought.get(name, 0) for each in run.costs) for name in names]
            rows.append([run.name, "all", "", duration(_sums(run)["seconds"]), *sums])
    text = "What each step took and bought when it was done; nothing is bought twice."
    charts = _present(loop.times(runs))
    return Section(
        "costs", "Costs", text, charts, _tables("Steps and what they bought", head, rows)
    )
