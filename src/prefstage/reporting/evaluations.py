"""Evaluations: win rate, length and diversity of answers to held-out prompts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prefstage.reporting.blocks import Chart, Section, between, percent, tables
from prefstage.reporting.explorer import PairRows, pairs_of_annotations
from prefstage.reporting.measurements import course
from prefstage.reporting.runs import Part, Run, read_json
from prefstage.reporting.vega import charts, iterations, layer, quantity, series


@dataclass(frozen=True, kw_only=True)
class Evaluated(Part):
    """One comparison with a baseline on held-out prompts.

    Attributes:
        distinct: Share of different 1-grams and 2-grams in all answers, by model.
        pairs: The answers that were compared; None if they are not on file.
    """

    distinct: Mapping[str, Sequence[float]]
    pairs: PairRows | None


def read_evaluated(**part: Any) -> Evaluated:
    """An evaluation: evaluation.json, and annotations.json if it is there."""
    rows: list[dict[str, Any]] = read_json(part["folder"] / "annotations.json") or []
    title = f"evaluation: {part['result']['model']} against {part['result']['baseline']}"
    distinct = {
        rows[0][f"generator_{side}"]: [
            distinct_share([row[f"output_{side}"] for row in rows], size) for size in (1, 2)
        ]
        for side in ((1, 2) if rows else ())
    }
    pairs = pairs_of_annotations(rows, title) if rows else None
    return Evaluated(**part, distinct=distinct, pairs=pairs)


def distinct_share(texts: Sequence[str], size: int) -> float:
    """Share of different n-grams among all n-grams of words in several texts (distinct-n).

    Args:
        texts: The texts, taken together.
        size: n.

    Returns:
        In [0, 1]; 0 without n-grams.
    """
    words = [text.lower().split() for text in texts]
    grams = [tuple(w[i : i + size]) for w in words for i in range(len(w) - size + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


def evaluation_section(runs: Sequence[Run]) -> Section:
    """Win rates and lengths of all evaluations."""
    head = ("run", "model", "baseline", "win rate", "interval", "length-controlled", "prompts")
    results = [(run.name, part.result) for run in runs for part in run.of(Evaluated)]
    rows = [[name, *_cells(result)] for name, result in results]
    notes = [f"{name}, {r['model']}: {note}" for name, r in results for note in r["notes"]]
    text = "Answers to held-out prompts, compared by the same judge with the baseline's."
    columns = (*head, "won : lost : drawn", "undecided", "length", "baseline's")
    return Section(
        *("evaluation", "Win rate and length", text),
        (*_win_rates(runs), *_lengths(runs)),
        tables("Evaluations", columns, rows),
        tuple(notes),
    )


def _cells(result: Mapping[str, Any]) -> list[Any]:
    rates, controlled = result["rates"], result["controlled"]
    rate = None
    if controlled is not None:
        ends = between(result["controlled_interval"], 1)
        rate = f"{controlled['length_controlled_win_rate']:.1f} % {ends}"
    return [
        result["model"],
        result["baseline"],
        f"{rates['win_rate']:.1f} %",
        f"{between(rates['interval'], 1)} ({percent(rates['confidence'], 0)})",
        rate,
        rates["n_total"],
        " : ".join(f"{rates[name]:,}" for name in ("wins", "losses", "draws")),
        rates["n_missing"],
        f"{result['avg_length']:.0f}",
        f"{result['avg_length_baseline']:.0f}",
    ]


def _win_rates(runs: Sequence[Run]) -> tuple[Chart, ...]:
    values = [
        {
            "run": f"{run.name}{kind}",
            "iteration": part.iteration,
            "model": part.result["model"],
            "rate": rate,
            **({"low": interval[0], "high": interval[1]} if interval else {}),
        }
        for run in runs
        for part in run.of(Evaluated)
        for kind, rate, interval in _rates(part.result)
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


def _rates(result: Mapping[str, Any]) -> list[tuple[str, float, Sequence[float] | None]]:
    rates, controlled = result["rates"], result["controlled"]
    raw = ("", rates["win_rate"], rates["interval"])
    if controlled is None:
        return [raw]
    rate = controlled["length_controlled_win_rate"]
    return [raw, (", length-controlled", rate, result["controlled_interval"])]


def _by_policy(run: Run) -> list[tuple[Evaluated, str, int, str]]:
    """Every policy that answered: evaluation, name, iteration, and end of its fields' names.

    The start of an alignment, which is every iteration's baseline, comes first and once.
    """
    parts = run.of(Evaluated)
    start = parts[:1] if run.command == "align" else []
    baseline = [(part, part.result["baseline"], 0, "_baseline") for part in start]
    return baseline + [(part, part.result["model"], part.iteration, "") for part in parts]


def _lengths(runs: Sequence[Run]) -> tuple[Chart, ...]:
    values = [
        {
            "run": run.name,
            "iteration": iteration,
            "model": model,
            "length": part.result[f"avg_length{side}"],
        }
        for run in runs
        for part, model, iteration, side in _by_policy(run)
    ]
    return course(
        values,
        {"model": "model", "length": "mean length, characters"},
        name="length",
        title="Length of the held-out answers",
        axis="mean length, characters",
        alt="Mean length of held-out answers in characters; 0 is the start",
    )


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
            "iteration": iteration,
            "model": model,
            "share": round(share, 5),
        }
        for run in runs
        for part, model, iteration, _ in _by_policy(run)
        for size, share in enumerate(part.distinct.get(model, ()), start=1)
    ]
    names = list(dict.fromkeys(str(row["series"]) for row in values))
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
            color=series("series", names),
        ),
    )
