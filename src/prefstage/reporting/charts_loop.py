"""Charts of the loop: the decision, win rate and length, loss, costs."""

from collections.abc import Sequence

from prefstage.reporting.blocks import Chart, chart_values
from prefstage.reporting.marks import Spec, chart, iterations, quantity, rule_at, series, tooltips
from prefstage.reporting.results import Run

HALF, HALF_PERCENT = 0.5, 50.0
STAGES = ("injection", "undecided", "fine-tuning")


def label(run: Run, number: int, runs: Sequence[Run]) -> str:
    """What a series is called: the iteration, with the run where there are several."""
    what = f"iteration {number}" if number else "before the loop"
    if run.command != "align":
        return run.name
    return f"{run.name}: {what}" if len(runs) > 1 else what


def narrowing(runs: Sequence[Run]) -> Chart | None:
    """The boundary score and its interval against the prompts used."""
    values = [
        {
            "series": label(run, each.iteration, runs),
            "prompts": look.prompts,
            "score": look.score,
            "low": look.low,
            "high": look.high,
        }
        for run in runs
        for each in run.decisions
        for look in each.looks
    ]
    if not values:
        return None
    names = list(dict.fromkeys(str(row["series"]) for row in values))
    head = {
        "series": "measurement",
        "prompts": "prompts",
        "score": "boundary score",
        "low": "low",
        "high": "high",
    }
    ends = [
        f"{name}: {last['score']:.2f} [{last['low']:.2f}, {last['high']:.2f}] after "
        f"{last['prompts']} prompts"
        for name in names
        for last in [[row for row in values if row["series"] == name][-1]]
    ]
    alt = "Boundary score with its interval against the prompts used. " + "; ".join(ends) + "."
    return Chart(
        "interval",
        "The interval as it narrowed",
        alt,
        chart(values, *_band_and_line(names, head), rule_at(HALF)),
        chart_values(values, head),
    )


def _band_and_line(names: Sequence[str], head: dict[str, str]) -> tuple[Spec, Spec]:
    """The interval as a band, and the score as a line."""
    x = quantity("prompts", "prompts used", axis={"tickMinStep": 1})
    y = {"scale": {"domain": [0, 1], "zero": True}}
    colour = series("series", names)
    band = {
        "mark": {"type": "area", "opacity": 0.16, "interpolate": "step-after"},
        "encoding": {
            "x": x,
            "y": quantity("low", "boundary score", **y),
            "y2": {"field": "high"},
            "color": colour,
        },
    }
    line = {
        "mark": {"type": "line", "point": {"size": 25}},
        "encoding": {
            "x": x,
            "y": quantity("score", "boundary score", **y),
            "color": colour,
            "tooltip": tooltips(head),
        },
    }
    return band, line


def boundary_scores(runs: Sequence[Run]) -> Chart | None:
    """The boundary score of each measurement, with its interval."""
    values = [
        {
            "run": run.name,
            "iteration": each.iteration,
            "score": each.stage["boundary_score"],
            "low": each.stage["interval"][0],
            "high": each.stage["interval"][1],
            "stage": each.stage["stage"],
        }
        for run in runs
        if run.command == "align"
        for each in run.decisions
    ]
    if len(values) < 2:  # noqa: PLR2004 - one point is no course
        return None
    head = {
        "run": "run",
        "iteration": "iteration",
        "score": "boundary score",
        "low": "low",
        "high": "high",
        "stage": "stage",
    }
    return _course(
        values,
        head,
        name="boundary",
        title="Boundary score at the beginning of each iteration",
        field="score",
        axis="boundary score",
        alt="Boundary score by iteration; below one half off-policy data win",
        line=HALF,
        domain=[0, 1],
    )


def _course(
    values: list[dict[str, object]],
    head: dict[str, str],
    *,
    name: str,
    title: str,
    field: str,
    axis: str,
    alt: str,
    line: float | None = None,
    domain: list[float] | None = None,
) -> Chart:
    """A value by iteration with its interval, a line a run."""
    names = list(dict.fromkeys(str(row["run"]) for row in values))
    x = iterations(values)
    scale = {"scale": {"domain": domain}} if domain else {}
    colour = series("run", names)
    points = {
        "mark": {"type": "line", "point": {"size": 60}},
        "encoding": {
            "x": x,
            "y": quantity(field, axis, **scale),
            "color": colour,
            "tooltip": tooltips(head),
        },
    }
    bars = {
        "transform": [{"filter": "isValid(datum.low)"}],
        "mark": {"type": "rule", "strokeWidth": 2},
        "encoding": {
            "x": x,
            "y": quantity("low", axis, **scale),
            "y2": {"field": "high"},
            "color": colour,
        },
    }
    layers = [bars, points] if any("low" in row for row in values) else [points]
    layers += [] if line is None else [rule_at(line)]
    course = "; ".join(
        f"{row['run']}, iteration {row['iteration']}: {float(str(row[field])):.3g}"
        for row in values
    )
    return Chart(
        name, title, f"{alt}. {course}.", chart(values, *layers), chart_values(values, head)
    )


def win_rates(runs: Sequence[Run]) -> Chart | None:
    """Win rate over the start by iteration; length-controlled too where it was computed."""
    values = list[dict[str, object]]()
    for run in runs:
        for each in run.evaluations:
            rates, controlled = each.result["rates"], each.result["controlled"]
            plain = {"run": run.name, "iteration": each.iteration, "model": each.model}
            low, high = rates["interval"]
            values.append({**plain, "rate": rates["win_rate"], "low": low, "high": high})
            if controlled is not None:
                rate = {"rate": controlled["length_controlled_win_rate"]}
                ends = each.result["controlled_interval"]
                rate |= {} if ends is None else {"low": ends[0], "high": ends[1]}
                values.append({**plain, **rate, "run": f"{run.name}, length-controlled"})
    if not values:
        return None
    head = {
        "run": "run",
        "iteration": "iteration",
        "model": "model",
        "rate": "win rate, %",
        "low": "low",
        "high": "high",
    }
    return _course(
        values,
        head,
        name="win-rate",
        title="Win rate on held-out prompts",
        field="rate",
        axis="win rate over the baseline, %",
        alt="Win rate in percent with its interval",
        line=HALF_PERCENT,
    )


def lengths(runs: Sequence[Run]) -> Chart | None:
    """Mean length of the held-out answers by iteration."""
    values = list[dict[str, object]]()
    for run in runs:
        for place, each in enumerate(run.evaluations):
            row = {"run": run.name, "iteration": each.iteration, "model": each.model}
            if place == 0 and run.command == "align":
                first = {**row, "iteration": 0, "model": each.baseline}
                values.append({**first, "length": each.result["avg_length_baseline"]})
            values.append({**row, "length": each.result["avg_length"]})
    if not values:
        return None
    head = {
        "run": "run",
        "iteration": "iteration",
        "model": "model",
        "length": "mean length, characters",
    }
    return _course(
        values,
        head,
        name="length",
        title="Length of the held-out answers",
        field="length",
        axis="mean length, characters",
        alt="Mean length of held-out answers in characters; 0 is the start",
    )


def losses(runs: Sequence[Run]) -> Chart | None:
    """The training loss, step by step."""
    values = [
        {
            "series": label(run, each.iteration, runs),
            "step": line["step"],
            "loss": line["loss"],
            "accuracy": line.get("rewards/accuracies"),
        }
        for run in runs
        for each in run.trainings
        for line in each.history
        if "loss" in line
    ]
    if not values:
        return None
    names = list(dict.fromkeys(str(row["series"]) for row in values))
    head = {
        "series": "training",
        "step": "step",
        "loss": "loss",
        "accuracy": "reward accuracy",
    }
    line = {
        "mark": {"type": "line", "point": {"size": 20}},
        "encoding": {
            "x": quantity("step", "optimiser step", axis={"tickMinStep": 1}),
            "y": quantity("loss", "training loss"),
            "color": series("series", names),
            "tooltip": tooltips(head),
        },
    }
    ends = [
        f"{name}: {own[0]['loss']:.3g} to {own[-1]['loss']:.3g}"
        for name in names
        for own in [[row for row in values if row["series"] == name]]
    ]
    alt = "Training loss by optimiser step. " + "; ".join(ends) + "."
    return Chart("loss", "Training loss", alt, chart(values, line), chart_values(values, head))


def times(runs: Sequence[Run]) -> Chart | None:
    """Seconds by kind of step and iteration."""
    found: dict[tuple[str, str], float] = {}
    for run in runs:
        for each in run.costs:
            key = (label(run, each.iteration, runs), each.kind)
            found[key] = found.get(key, 0.0) + each.seconds
    if not found:
        return None
    values = [{"where": w, "kind": k, "seconds": round(s, 2)} for (w, k), s in found.items()]
    kinds = list(dict.fromkeys(str(row["kind"]) for row in values))
    places = list(dict.fromkeys(str(row["where"]) for row in values))
    head = {"where": "iteration", "kind": "step", "seconds": "seconds"}
    bars = {
        "mark": {"type": "bar", "height": {"band": 0.7}},
        "encoding": {
            "y": {"field": "where", "type": "nominal", "title": None, "sort": places},
            "x": quantity("seconds", "seconds", scale={"zero": True}, stack="zero"),
            "color": series("kind", kinds),
            "tooltip": tooltips(head),
        },
    }
    alt = f"Seconds by iteration and step; {sum(found.values()):.0f} in all."
    height = 40 * len(places) + 20
    spec = chart(values, bars, height=height)
    return Chart("time", "Where the time went", alt, spec, chart_values(values, head))
