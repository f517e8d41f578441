"""What was measured: stages, and answers to held-out prompts; what it did over the iterations."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow.parquet as pq

from prefstage.diagnosing.numbers import distinct_share
from prefstage.measuring.boundary import ConfidenceSequence
from prefstage.reporting.blocks import (
    Cell,
    Chart,
    Row,
    Section,
    between,
    charts,
    iterations,
    layer,
    percent,
    quantity,
    rule_at,
    series_of,
    table_of,
)
from prefstage.reporting.runs import Part, Run, label, labelled, pairs_of_annotations, read_if_there

_LOOKS = 60


def read_measured(part: Part) -> dict[str, Any]:
    """A measurement's looks, from the prompts' scores if they are there."""
    path, stage = part.folder / "prompts.parquet", part.result
    scores = pq.read_table(path).sort_by("order")["score"].to_pylist() if path.is_file() else []
    if len(scores) != stage["prompts_used"]:  # another measurement's prompts
        scores = []
    finite = stage.get("population", "these prompts") == "these prompts"
    available = stage["prompts_available"] if finite else None
    return {"looks": list(looks_of(scores, available=available, confidence=stage["confidence"]))}


def looks_of(
    scores: Sequence[float], *, available: int | None, confidence: float
) -> Iterator[dict[str, float]]:
    """The interval after growing numbers of prompts, at most 60 of them.

    Args:
        scores: Score of each prompt, in the order of use. [prompts], in [0, 1].
        available: Prompts that there are; None if the interval is about new ones.
        confidence: Of the interval.

    Yields:
        "prompts", "score", "low" and "high" of each look, the last one after all prompts.
    """
    sequence = ConfidenceSequence(available=available, confidence=confidence)
    for count in sorted({math.ceil(len(scores) * (k + 1) / _LOOKS) for k in range(_LOOKS)} - {0}):
        sequence.update(scores[sequence.count : count])
        low, high = sequence.interval
        yield {"prompts": count, "score": sequence.mean, "low": low, "high": high}


def decision_section(runs: Sequence[Run]) -> Section:
    """The measured stages of all runs."""
    # Which scores are in-sample, known of the loop's alone.
    learnt = {
        (run.name, row["iteration"]): "{prompts:,} of {of:,}".format(**row["in_sample"])
        for run in runs
        for row in run.iterations
        if row.get("in_sample")
    }
    measured = [(run, part) for run in runs for part in run.of("measure")]
    return Section(
        "decision",
        "Decision",
        "The boundary score is the share of comparisons that the policy's own answers win against "
        "the off-policy ones. While its interval is below one half, the off-policy pairs teach "
        "more (injection stage); above, pairs of the policy's own answers do (fine-tuning stage). "
        "Of prompts that the policy was trained on before, the score is in-sample. Unsimplified "
        "is the consistency of judge and policy's log-probs that the score stands for.",
        (*_narrowing(runs), *_scores(runs)),
        table_of(
            "Measured stages",
            [
                {
                    "measured": label(run, part, runs),
                    "stage": stage["stage"],
                    "boundary score": f"{stage['boundary_score']:.3f}",
                    "unsimplified": stage.get("consistency"),
                    "interval": f"{between(stage['interval'], 3)} "
                    f"({percent(stage['confidence'], 0)})",
                    "prompts": f"{stage['prompts_used']:,} of {stage['prompts_available']:,}",
                    "votes on : off : tie": " : ".join(
                        f"{stage[votes]:,}" for votes in ("votes_on", "votes_off", "ties")
                    ),
                    "stopped": stage["stopped"],
                    "Algorithm 1": stage["algorithm_1"],
                    "prompts trained on before": learnt.get((run.name, part.iteration)),
                }
                for run, part in measured
                for stage in (part.result,)
            ],
        ),
    )


def _narrowing(runs: Sequence[Run]) -> tuple[Chart, ...]:
    values = [
        {"series": name, **look} for name, part in labelled(runs, "measure") for look in part.looks
    ]
    ends = {str(row["series"]): row for row in values}
    head = {
        "series": "measurement",
        "prompts": "prompts",
        "score": "boundary score",
        "low": "low",
        "high": "high",
    }
    x = quantity("prompts", "prompts used", axis={"tickMinStep": 1})
    score, low = (
        quantity(field, "boundary score", scale={"domain": [0, 1], "zero": True})
        for field in ("score", "low")
    )
    colour = series_of("series", values)
    after = (
        f"{name}: {row['score']:.2f} [{row['low']:.2f}, {row['high']:.2f}] after "
        f"{row['prompts']} prompts"
        for name, row in ends.items()
    )
    return charts(
        "interval",
        "The interval as it narrowed",
        f"Boundary score with its interval against the prompts used. {'; '.join(after)}.",
        values,
        head,
        layer(
            {"type": "area", "opacity": 0.16, "interpolate": "step-after"},
            x=x,
            y=low,
            y2={"field": "high"},
            color=colour,
        ),
        layer({"type": "line", "point": {"size": 25}}, head, x=x, y=score, color=colour),
        rule_at(0.5),
    )


def _scores(runs: Sequence[Run]) -> tuple[Chart, ...]:
    values = [
        {
            "run": run.name,
            "iteration": part.iteration,
            "score": part.result["boundary_score"],
            "low": part.result["interval"][0],
            "high": part.result["interval"][1],
            "stage": part.result["stage"],
        }
        for run in runs
        if run.command == "align"
        for part in run.of("measure")
    ]
    return course(
        values if len(values) > 1 else [],  # one point is no course
        {"score": "boundary score", "low": "low", "high": "high", "stage": "stage"},
        name="boundary",
        title="Boundary score at the beginning of each iteration",
        axis="boundary score",
        alt="Boundary score by iteration; below one half off-policy data win",
        line=0.5,
        domain=[0, 1],
    )


def course(
    values: Sequence[Row],
    head: Mapping[str, str],
    *,
    name: str,
    title: str,
    axis: str,
    alt: str,
    line: float | None = None,
    domain: Sequence[float] | None = None,
) -> tuple[Chart, ...]:
    """A value by iteration with its interval, a line a run.

    Args:
        values: "run", "iteration", what `head` names, and where known "low" and "high".
        head: Headings of the table; the first one that is a number is drawn.
        name: As of `Chart`.
        title: As of `Chart`.
        axis: Title of the values' axis.
        alt: As of `Chart`; the values are added.
        line: Where a dashed line is drawn.
        domain: Of the axis.

    Returns:
        The chart; nothing without values.
    """
    field = next((name for name in head if name != "model"), "")
    head = {"run": "run", "iteration": "iteration", **head}
    scale = {"scale": {"domain": domain}} if domain else {}
    x, colour = iterations(values), series_of("run", values)
    points = (f"{r['run']}, iteration {r['iteration']}: {float(r[field]):.3g}" for r in values)
    return charts(
        name,
        title,
        f"{alt}. {'; '.join(points)}.",
        values,
        head,
        *(
            [
                layer(
                    {"type": "rule", "strokeWidth": 2},
                    transform=[{"filter": "isValid(datum.low)"}],
                    x=x,
                    y=quantity("low", axis, **scale),
                    y2={"field": "high"},
                    color=colour,
                )
            ]
            if any("low" in row for row in values)
            else []
        ),
        layer(
            {"type": "line", "point": {"size": 60}},
            head,
            x=x,
            y=quantity(field, axis, **scale),
            color=colour,
        ),
        *([] if line is None else [rule_at(line)]),
    )


def read_evaluated(part: Part) -> dict[str, Any]:
    """An evaluation's pairs and diversity, from annotations.json if it is there."""
    rows: list[dict[str, Any]] = read_if_there(part.folder / "annotations.json", list)
    if not rows:
        return {}
    return {
        "pairs": [
            (
                "",
                pairs_of_annotations(
                    rows, f"evaluation: {part.result['model']} against {part.result['baseline']}"
                ),
            )
        ],
        "distinct": {
            rows[0][f"generator_{side}"]: [
                distinct_share([row[f"output_{side}"] for row in rows], size) for size in (1, 2)
            ]
            for side in (1, 2)
        },
    }


def evaluation_section(runs: Sequence[Run]) -> Section:
    """Win rates and lengths of all evaluations."""
    results = [(run.name, part.result) for run in runs for part in run.of("evaluate")]
    lengths = course(
        [
            {"run": run.name, **policy, "length": length}
            for run in runs
            for _, policy, length in _by_policy(run)
        ],
        {"model": "model", "length": "mean length, characters"},
        name="length",
        title="Length of the held-out answers",
        axis="mean length, characters",
        alt="Mean length of held-out answers in characters; 0 is the start",
    )
    return Section(
        "evaluation",
        "Win rate and length",
        "Answers to held-out prompts, compared by the same judge with the baseline's.",
        (*_win_rates(runs), *lengths),
        table_of("Evaluations", [{"run": name, **_cells(result)} for name, result in results]),
        tuple(f"{name}, {r['model']}: {note}" for name, r in results for note in r["notes"]),
    )


def _cells(result: Row) -> dict[str, Cell]:
    rates, controlled = result["rates"], result["controlled"]
    return {
        "model": result["model"],
        "baseline": result["baseline"],
        "win rate": f"{rates['win_rate']:.1f} %",
        "interval": f"{between(rates['interval'], 1)} ({percent(rates['confidence'], 0)})",
        "length-controlled": controlled
        and f"{controlled['length_controlled_win_rate']:.1f} % "
        f"{between(result['controlled_interval'], 1)}",
        "prompts": rates["n_total"],
        "won : lost : drawn": " : ".join(
            f"{rates[name]:,}" for name in ("wins", "losses", "draws")
        ),
        "undecided": rates["n_missing"],
        "length": f"{result['avg_length']:.0f}",
        "baseline's": f"{result['avg_length_baseline']:.0f}",
    }


def _win_rates(runs: Sequence[Run]) -> tuple[Chart, ...]:
    values = list[Row]()
    for name, part in ((run.name, part) for run in runs for part in run.of("evaluate")):
        where = {"iteration": part.iteration, "model": part.result["model"]}
        drawn = [("", part.result["rates"]["win_rate"], part.result["rates"]["interval"])]
        if part.result["controlled"] is not None:
            rate = part.result["controlled"]["length_controlled_win_rate"]
            drawn.append((", length-controlled", rate, part.result["controlled_interval"]))
        values += [
            {"run": f"{name}{kind}", **where, "rate": rate}
            | ({"low": interval[0], "high": interval[1]} if interval else {})
            for kind, rate, interval in drawn
        ]
    return course(
        values,
        {"model": "model", "rate": "win rate, %", "low": "low", "high": "high"},
        name="win-rate",
        title="Win rate on held-out prompts",
        axis="win rate over the baseline, %",
        alt="Win rate in percent with its interval",
        line=50.0,
    )


# Every policy that answered: its evaluation, iteration and name, and length of its answers. The
# start of an alignment, which is every iteration's baseline, comes first and once.
def _by_policy(run: Run) -> list[tuple[Part, dict[str, Any], float]]:
    parts = run.of("evaluate")
    return [
        (part, {"iteration": iteration, "model": part.result[who]}, part.result[length])
        for part, iteration, who, length in (
            *(
                (part, 0, "baseline", "avg_length_baseline")
                for part in (parts[:1] if run.command == "align" else [])
            ),
            *((part, part.iteration, "model", "avg_length") for part in parts),
        )
    ]


def distinct_words(runs: Sequence[Run]) -> tuple[Chart, ...]:
    """Distinct-1 and distinct-2 of the held-out answers, by iteration.

    Args:
        runs: The runs.

    Returns:
        The chart; nothing where no answers are on file.
    """
    values = [
        {
            "series": f"{run.name}: distinct-{size}" if len(runs) > 1 else f"distinct-{size}",
            **policy,
            "share": round(share, 5),
        }
        for run in runs
        for part, policy, _ in _by_policy(run)
        for size, share in enumerate(part.distinct.get(policy["model"], ()), start=1)
    ]
    head = {"series": "figure", "iteration": "iteration", "model": "model", "share": "share"}
    shares = "; ".join(f"{r['series']}, {r['model']}: {r['share']:.3f}" for r in values)
    return charts(
        "distinct",
        "Diversity of the held-out answers",
        f"Share of different 1-grams and 2-grams among all held-out answers of a policy. {shares}.",
        values,
        head,
        layer(
            {"type": "line", "point": {"size": 60}},
            head,
            x=iterations(values),
            y=quantity("share", "share of different n-grams", scale={"zero": True}),
            color=series_of("series", values),
        ),
    )
