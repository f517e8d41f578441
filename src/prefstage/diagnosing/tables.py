"""A diagnosis as tables and warnings for people."""

from collections.abc import Mapping, Sequence
from typing import Any

from prefstage.core import markdown_table

# The rows of a table, each with its cells by heading, and remarks below it.
Table = tuple[list[dict[str, Any]], list[str]]

LENGTH_EXPLAINS = 0.65
MOST_HARD = 0.5
EVEN = 0.5
FAR_BELOW = 0.75
LITTLE_AGREEMENT = 0.55
MANY_TIES = 0.3
POSITION_DECIDES = 0.2

_LARGE = 100.0
_NUMBERS = {
    **{"mean": "Mean", "std": "Std", "min": "Min", "q25": "25%"},
    **{"median": "Med", "q75": "75%", "max": "Max"},
}


def tables_of(report: Mapping[str, Any]) -> dict[str, Table]:
    """The tables of one diagnosis, by title.

    Args:
        report: As `Diagnosis.as_dict`.

    Returns:
        Tables with a row or a remark.
    """
    data, learnability = report["data"], report.get("learnability")
    rankings = report.get("rankings")
    spread = rankings and rankings["intra_diversity"]
    tables: dict[str, Table] = {
        "Data": _values(
            {
                "pairs": data["pairs"],
                "different prompts": data["prompts"],
                "ties of the raters": data["ties"],
                "pairs with votes (agreement)": data["votes"],
                "same text on both sides": data["identical"],
                '"longer wins" gives the label': _share(data["longer_wins"]),
                "correlation of length difference with the label": data["length_correlation"],
            }
        ),
        "Lengths and scores": _distributions(report),
        "Rankings": ranking_table([report]),
        "Idealized": _idealized(rankings["idealized"]) if rankings else ([], []),
        "Intra-diversity": _values(
            {"mean, nats": spread["mean"], "std, nats": spread["std"]}
            | {f"{float(at):.0%} quantile": v for at, v in spread["quantiles"].items()}
        )
        if spread
        else ([], []),
        "Learnability": _learnability(learnability) if learnability else ([], []),
        "Judges": _judges(report) if report.get("judge") else ([], []),
        "The policy's own answers": _answers(report),
    }
    return {title: table for title, table in tables.items() if any(table)}


def as_text(table: Table) -> str:
    """A table and its remarks as Markdown."""
    rows, remarks = table
    lines = [markdown_table([*rows[0]], [[*row.values()] for row in rows])] if rows else []
    return "\n\n".join([*lines, *remarks])


def order_table(reports: Sequence[Mapping[str, Any]]) -> Table:
    """Whole-order and pairwise accuracies of candidates with scores, a row each.

    Args:
        reports: `OrderFigures` as mappings.

    Returns:
        The table; chance is the whole-order accuracy of random orders.
    """
    rows = []
    for report in reports:
        whole, pairwise, counts = report["whole_order"], report["pairwise"], [*report["responses"]]
        rows.append(
            {
                "dataset": report["dataset"],
                "model": report["policy"],
                "prompts": report["prompts"],
                "responses a prompt": counts[0] + (f" to {counts[-1]}" if counts[1:] else ""),
                "whole order": _interval(whole["log_probs"]),
                "whole order (log π / L)": _interval(whole["normalised"]),
                "by chance": f"{report['by_chance']:.2%}",
                "pairs": pairwise["log_probs"]["pairs"],
                "pairwise": _interval(pairwise["log_probs"]),
                "pairwise (log π / L)": _interval(pairwise["normalised"]),
            }
        )
    return rows, [
        f"Left out of {r['dataset']}: "
        + ", ".join(f"{count} {what}" for what, count in r["left_out"].items())
        + "."
        for r in reports
        if r["left_out"]
    ]


def ranking_table(reports: Sequence[Mapping[str, Any]]) -> Table:
    """Ranking accuracies of several datasets and models in one table.

    Args:
        reports: As `Diagnosis.as_dict`; those without a model are left out.

    Returns:
        One row a dataset and model: R and R̃ with their intervals, median R* and the
        alignment gap where votes allow it, accuracy where ties have to be ties (as published
        and on normalised log-probs), reward accuracy.

    Source:
        arXiv:2405.19534, Tables 2 to 6.
    """
    rows = []
    for report in reports:
        if rankings := report.get("rankings"):
            ideal, ties = rankings["idealized"].get("plain"), rankings["with_ties"]
            shown = [_share(ideal[k]) for k in ("min", "median", "max")] if ideal else ["–"]
            rows.append(
                {
                    "dataset": report["dataset"],
                    "model": report["policy"],
                    "pairs": report["data"]["pairs"],
                    "R": _interval(rankings["accuracy"]),
                    "R̃": _interval(rankings["accuracy_normalised"]),
                    "R* (min/med/max)": "/".join(shown),
                    "gap": _number(ideal["alignment_gap"]) if ideal else "–",
                    "R with ties (π)": _interval(ties.get("probability")),
                    "R with ties (log π / L)": _interval(ties.get("normalised_log_prob")),
                    "reward accuracy": _interval(rankings["reward_accuracy"]),
                }
            )
    return rows, []


def warnings_of(report: Mapping[str, Any]) -> list[dict[str, str]]:
    """Look through a diagnosis for what would hurt training.

    Args:
        report: The figures, as `Diagnosis.as_dict` gives them.

    Returns:
        Of each warning `what` in plain words, `figure`, and `remedy` in prefstage's commands.
    """
    learnability, answers = report.get("learnability"), report.get("own_answers")
    return [
        {"what": what, "figure": figure, "remedy": remedy}
        for is_there, what, figure, remedy in [
            *_data_faults(report["data"]),
            *(_learnability_faults(learnability) if learnability else []),
            *(_judge_faults(report["judge"], report["data"]) if report.get("judge") else []),
            *(_answer_faults(answers) if answers and answers["prompts"] else []),
        ]
        if is_there
    ]


# Of each: whether it is there; what it is, the figure that shows it, and the remedy.
_Faults = list[tuple[bool, str, str, str]]


def _data_faults(data: Mapping[str, Any]) -> _Faults:
    wins = data["longer_wins"]
    most = 0.0 if wins is None else max(wins, 1 - wins)
    which = "longer" if most == wins else "shorter"
    return [
        (
            most >= LENGTH_EXPLAINS,
            f"The labels are largely explained by length: the {which} response mostly wins, "
            "so training would teach length",
            f'"{which} wins" gives {most:.1%} of the labels',
            "prefstage build with method: keep and filters: {length: {max_ratio: 1.5}}, or "
            "prefstage train with a length-aware loss (r_dpo, ld_dpo, simpo)",
        ),
        (
            data["identical"] > 0,
            "Some pairs have the same text on both sides and teach nothing",
            f"{data['identical']} of {data['pairs']} pairs",
            "prefstage build with method: keep, which leaves them out and counts them",
        ),
        (
            data["pairs"] > 0 and data["ties"] / data["pairs"] >= MANY_TIES,
            "Many pairs are ties of their raters, which losses read as preferences",
            f"{data['ties']} of {data['pairs']} pairs",
            "prefstage build with method: keep and filters: {agreement: 0.6}, or with "
            "method: relabel to let a judge decide",
        ),
    ]


def _learnability_faults(learnability: Mapping[str, Any]) -> _Faults:
    total, hard = sum(learnability["groups"].values()), learnability["groups"]["hard"]
    flips = learnability["flippable_at_loss"]
    share = flips["share_of_wrong"]
    return [
        (
            total > 0 and hard / total >= MOST_HARD,
            "Most pairs are hard: the reference finds the rejected response far likelier, "
            "and DPO will hardly turn that round",
            f"{hard} of {total} pairs are beyond the limit of hard pairs",
            "prefstage train with loss: sft on the chosen responses first, or prefstage build "
            "with method: on-policy for pairs of the policy's own answers",
        ),
        (
            share is not None and share < MOST_HARD,
            f"A DPO loss of {flips['loss']:g} at beta {flips['beta']:g} leaves most of the "
            "wrongly ranked pairs wrong",
            f"it mends {_share(share)} of {learnability['wrong']}",
            "prefstage train with a smaller beta or to a lower loss, or with loss: "
            "{name: gamma, gamma: 0.5}",
        ),
    ]


def _judge_faults(judge: Mapping[str, Any], data: Mapping[str, Any]) -> _Faults:
    agreement, longer = judge["agreement"]["agreement"], judge["agreement"]["prefers_longer"]
    bias = judge["position_bias"]
    return [
        (
            agreement is not None and agreement < LITTLE_AGREEMENT,
            "The judge hardly agrees with the labels: they measure different things",
            f"agreement {_share(agreement)}",
            "prefstage build with method: relabel to train on the judge's labels, or use "
            "another judge",
        ),
        (
            longer is not None and longer >= LENGTH_EXPLAINS + 0.1,
            "The judge prefers the longer response",
            f"in {_share(longer)} of pairs of unequal length ({data['pairs']} pairs)",
            "prefstage evaluate, whose win rates are length-controlled, and prefstage build "
            "with method: keep and filters: {length: {max_ratio: 1.5}}",
        ),
        (
            bias is not None and bias >= POSITION_DECIDES,
            "The judge often prefers the place of a response to the response: such verdicts "
            "count as even",
            f"{_share(bias)} of comparisons change with the order",
            "prefstage judge with another judge (prefstage diagnose --second-judge compares them)",
        ),
    ]


def _answer_faults(answers: Mapping[str, Any]) -> _Faults:
    prompts = f"{answers['prompts']} prompts"
    # A longer answer often wins by its length: the figure at equal lengths decides, if known.
    kind = "length_controlled_" if answers["length_controlled_interval"] else ""
    interval = answers[f"{kind}interval"]
    how = "at equal lengths" if kind else "length not controlled for"
    return [
        (
            interval is not None and interval[0] > EVEN,
            "The chosen responses are worse than the policy's own answers: training on them "
            "would pull it down",
            f"win rate of own answers over the chosen responses, {how}: "
            f"{_between(answers[f'{kind}win_rate'], interval)} on {prompts}",
            "prefstage build with method: on-policy, or mixing to put own answers into the pairs",
        ),
        (
            answers["wins_over_both"] >= FAR_BELOW,
            "The pairs' responses are judged far below the policy's own answers: it is past "
            "what this dataset can teach",
            f"own answers win {answers['wins_over_both']:.1%} of comparisons with both responses "
            f"of a pair, on {prompts}",
            "prefstage measure to decide the stage, then prefstage build with method: on-policy",
        ),
    ]


def _distributions(report: Mapping[str, Any]) -> Table:
    named = {
        **{f"{name}, characters": n for name, n in report["data"]["characters"].items()},
        **{f"score, {name}": n for name, n in report["data"]["scores"].items()},
        **{
            f"{judge['judge']}, {name}": n
            for judge in _judges_of(report)
            for name, n in judge["scores"].items()
        },
    }
    return [
        {"": name, **{shown: _number(numbers[k]) for k, shown in _NUMBERS.items()}}
        for name, numbers in named.items()
    ], []


def _idealized(ideal: Mapping[str, Any]) -> Table:
    if "missing" in ideal:
        return [], [f"Not computed: {ideal['missing']}."]
    return [
        {
            "": name,
            **{f"β = {b}": _share(share) for b, share in ideal[kind]["by_beta"].items()},
            "median": _share(ideal[kind]["median"]),
            "now": _share(ideal[kind]["ranking_accuracy"]),
            "alignment gap": _number(ideal[kind]["alignment_gap"]),
            **(
                {"with ties (min/med/max)": "/".join(_share(v) for v in ties.values())}
                if (ties := ideal[kind].get("with_ties"))
                else {}
            ),
        }
        for kind, name in (("plain", "R*"), ("normalised", "R̃*"))
    ], []


def _learnability(learnability: Mapping[str, Any]) -> Table:
    groups, flips = learnability["groups"], learnability["flippable_at_loss"]
    total = sum(groups.values())
    return [{"group": g, "pairs": n, "share": _share(n / total)} for g, n in groups.items()], [
        f"The reference ranks {learnability['wrong']} of {total} pairs wrongly. A DPO loss of "
        f"{flips['loss']:g} at β = {flips['beta']:g} overcomes a log-ratio of "
        f"{flips['largest_log_ratio']:.2f} nats: it mends {_share(flips['share_of_wrong'])} of "
        f"them, and {_share(flips['share_right'])} of all pairs would then be right."
    ]


def _judges(report: Mapping[str, Any]) -> Table:
    return [
        {
            "judge": judge["judge"],
            "agreement with labels": _between(
                judge["agreement"]["agreement"], judge["agreement"]["interval"]
            ),
            "κ": _number(judge["kappa"]),
            "prefers longer": _share(judge["agreement"]["prefers_longer"]),
            "position bias": judge["position_note"] or _share(judge["position_bias"]),
        }
        for judge in _judges_of(report)
    ], [
        f"Preference consistency, {name}: {_share(v)}."
        for name, v in (report.get("consistency") or {}).items()
    ]


def _judges_of(report: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [judge for judge in (report.get("judge"), report.get("second_judge")) if judge]


# Quality, distinctness and diversity of the policy's own answers; nothing without any.
def _answers(report: Mapping[str, Any]) -> Table:
    rows = dict[str, Any]()
    if quality := report.get("own_answers"):
        rows |= {
            "prompts judged": quality["prompts"],
            "win rate of a random own answer over the chosen response": _between(
                quality["win_rate"], quality["interval"]
            ),
            "the same at equal lengths (length-controlled)": _between(
                quality["length_controlled_win_rate"], quality["length_controlled_interval"]
            ),
            "comparisons with both responses of a pair that it wins": _share(
                quality["wins_over_both"]
            ),
            "the longer of own answer and chosen response wins": _share(quality["longer_wins"]),
        }
    if apart := report.get("distinctness"):
        rows |= {
            "comparisons by the policy's log-probs": apart["comparisons"],
            "the own answer is the likelier (distinctness)": _share(apart["share"]),
        }
    if spread := report.get("diversity"):
        rows |= {
            "prompts with several own answers": spread["prompts"],
            "distinct-1": spread["distinct_1"],
            "distinct-2": spread["distinct_2"],
            "self-BLEU (0 to 100; high: alike)": spread["self_bleu"],
        }
    return _values(rows)


def _values(values: Mapping[str, Any]) -> Table:
    return [{"": k.replace("_", " "), "value": _number(v)} for k, v in values.items()], []


def _interval(value: Mapping[str, Any] | None) -> str:
    return _between(value["mean"], (value["low"], value["high"])) if value else "–"


def _between(share: float | None, ends: Sequence[float] | None) -> str:
    return _share(share) + ("" if share is None or not ends else " [{:.1%}, {:.1%}]".format(*ends))


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _number(value: Any) -> str:
    if not isinstance(value, float):
        return "–" if value is None else str(value)
    return f"{value:.3g}" if abs(value) < _LARGE else f"{value:.0f}"
