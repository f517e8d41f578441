"""A diagnosis as tables and warnings for people, in Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

_LARGE = 100.0
_NUMBERS = ("mean", "std", "min", "q25", "median", "q75", "max")


def tables_of(report: Mapping[str, Any]) -> dict[str, str]:
    """The tables of one diagnosis, by title.

    Args:
        report: As `Diagnosis.as_dict`.

    Returns:
        Markdown tables.
    """
    found = {"Data": _data(report["data"])}
    found["Lengths and scores"] = _distributions(report)
    if report.get("rankings"):
        found["Rankings"] = ranking_table([report])
        found["Idealized"] = _idealized(report["rankings"]["idealized"])
        found["Intra-diversity"] = _intra(report["rankings"]["intra_diversity"])
    if report.get("learnability"):
        found["Learnability"] = _learnability(report["learnability"])
    if report.get("judge"):
        found["Judges"] = _judges(report)
    if report.get("own_answers") or report.get("distinctness") or report.get("diversity"):
        found["The policy's own answers"] = _own(report)
    return {title: text for title, text in found.items() if text}


def order_table(reports: Sequence[Mapping[str, Any]]) -> str:
    """Whole-order and pairwise accuracies of candidates with scores, a row each.

    Args:
        reports: `OrderFigures` as mappings.

    Returns:
        The table; chance is the whole-order accuracy of random orders.
    """
    header = ["dataset", "model", "prompts", "responses a prompt"]
    header += ["whole order", "whole order (log π / L)", "by chance"]
    header += ["pairs", "pairwise", "pairwise (log π / L)"]
    lines = [_row(header), _row(["---"] * len(header))]
    for each in reports:
        counts = list(each["responses"])
        cells = [each["dataset"], each["policy"], each["prompts"]]
        cells.append(counts[0] if len(counts) == 1 else f"{counts[0]} to {counts[-1]}")
        cells += [_interval(each["whole_order"][kind]) for kind in ("log_probs", "normalised")]
        cells += [f"{each['by_chance']:.2%}", each["pairwise"]["log_probs"]["pairs"]]
        cells += [_interval(each["pairwise"][kind]) for kind in ("log_probs", "normalised")]
        lines.append(_row(cells))
    left = [
        f"\nLeft out of {e['dataset']}: {_counted(e['left_out'])}."
        for e in reports
        if e["left_out"]
    ]
    return "\n".join([*lines, *left])


def ranking_table(reports: Sequence[Mapping[str, Any]]) -> str:
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
    header = ["dataset", "model", "pairs", "R", "R̃", "R* (min/med/max)", "gap"]
    header += ["R with ties (π)", "R with ties (log π / L)", "reward accuracy"]
    lines = [_row(header), _row(["---"] * len(header))]
    for report in reports:
        rankings = report.get("rankings")
        if not rankings:
            continue
        ideal = rankings["idealized"].get("plain")
        shown = "/".join(_share(ideal[k]) for k in ("min", "median", "max")) if ideal else "–"
        ties = rankings["with_ties"]
        cells = [report["dataset"], report["policy"], report["data"]["pairs"]]
        cells += [_interval(rankings[name]) for name in ("accuracy", "accuracy_normalised")]
        cells += [shown, _number(ideal["alignment_gap"]) if ideal else "–"]
        cells += [_interval(ties.get(k)) for k in ("probability", "normalised_log_prob")]
        cells.append(_interval(rankings["reward_accuracy"]))
        lines.append(_row(cells))
    return "\n".join(lines)


def _data(data: Mapping[str, Any]) -> str:
    names = {
        "pairs": "pairs",
        "prompts": "different prompts",
        "ties": "ties of the raters",
        "votes": "pairs with votes (agreement)",
        "identical": "same text on both sides",
    }
    values = {shown: data[name] for name, shown in names.items()}
    values['"longer wins" gives the label'] = _share(data["longer_wins"])
    values["correlation of length difference with the label"] = _number(data["length_correlation"])
    return _flat(values)


def _distributions(report: Mapping[str, Any]) -> str:
    data = report["data"]
    rows = {f"{name}, characters": each for name, each in data["characters"].items()}
    rows |= {f"score, {name}": each for name, each in data["scores"].items()}
    for key in ("judge", "second_judge"):
        judge = report.get(key) or {"scores": {}}
        rows |= {f"{judge['judge']}, {n}": each for n, each in judge["scores"].items()}
    lines = [_row(["", "Mean", "Std", "Min", "25%", "Med", "75%", "Max"]), _row(["---"] * 8)]
    return "\n".join(
        lines + [_row([name, *(_number(each[k]) for k in _NUMBERS)]) for name, each in rows.items()]
    )


def _idealized(ideal: Mapping[str, Any]) -> str:
    if "missing" in ideal:
        return f"Not computed: {ideal['missing']}."
    betas = list(ideal["plain"]["by_beta"])
    lines = [_row(["", *(f"β = {b}" for b in betas), "median", "now", "alignment gap"])]
    lines.append(_row(["---"] * (len(betas) + 4)))
    for kind, name in (("plain", "R*"), ("normalised", "R̃*")):
        each = ideal[kind]
        cells = [_share(each["by_beta"][beta]) for beta in betas]
        cells += [_share(each["median"]), _share(each["ranking_accuracy"])]
        lines.append(_row([name, *cells, _number(each["alignment_gap"])]))
    return "\n".join(lines)


def _intra(found: Mapping[str, Any]) -> str:
    quantiles = {f"{float(level):.0%} quantile": v for level, v in found["quantiles"].items()}
    return _flat({"mean, nats": found["mean"], "std, nats": found["std"], **quantiles})


def _learnability(found: Mapping[str, Any]) -> str:
    total = sum(found["groups"].values())
    lines = [_row(["group", "pairs", "share"]), _row(["---"] * 3)]
    lines += [_row([n, count, _share(count / total)]) for n, count in found["groups"].items()]
    flips = found["flippable_at_loss"]
    lines.append(
        f"\nThe reference ranks {found['wrong']} of {total} pairs wrongly. A DPO loss of "
        f"{flips['loss']:g} at β = {flips['beta']:g} overcomes a log-ratio of "
        f"{flips['largest_log_ratio']:.2f} nats: it mends {_share(flips['share_of_wrong'])} of "
        f"them, and {_share(flips['share_right'])} of all pairs would then be right."
    )
    return "\n".join(lines)


def _judges(report: Mapping[str, Any]) -> str:
    lines = [_row(["judge", "agreement with labels", "κ", "prefers longer", "position bias"])]
    lines.append(_row(["---"] * 5))
    for key in ("judge", "second_judge"):
        each = report.get(key)
        if not each:
            continue
        agreement = each["agreement"]
        low, high = agreement["interval"]
        known = agreement["agreement"]
        share = f"{_share(known)} [{_share(low)}, {_share(high)}]" if known is not None else "–"
        bias = each["position_note"] or _share(each["position_bias"])
        cells = [each["judge"], share, _number(each["kappa"])]
        lines.append(_row([*cells, _share(agreement["prefers_longer"]), bias]))
    consistency = report.get("consistency") or {}
    told = [f"\nPreference consistency, {name}: {_share(v)}." for name, v in consistency.items()]
    return "\n".join([*lines, *told])


def _own(report: Mapping[str, Any]) -> str:
    """Quality, distinctness and diversity of the policy's own answers."""
    quality, apart = report.get("own_answers") or {}, report.get("distinctness") or {}
    spread, rows = report.get("diversity") or {}, dict[str, Any]()
    if quality:
        share = _share(quality["win_rate"])
        if quality["interval"]:
            share += " [{}, {}]".format(*map(_share, quality["interval"]))
        rows["prompts judged"] = quality["prompts"]
        rows["a random own answer beats the chosen response"] = share
        rows["it beats a response of the pair (boundary score)"] = _share(quality["boundary_score"])
        rows["the longer of own answer and chosen response wins"] = _share(quality["longer_wins"])
    if apart:
        rows["comparisons by the policy's log-probs"] = apart["comparisons"]
        rows["the own answer is the likelier (distinctness)"] = _share(apart["share"])
    if spread:
        rows["prompts with several own answers"] = spread["prompts"]
        rows |= {name.replace("_", "-"): spread[name] for name in ("distinct_1", "distinct_2")}
        rows["self-BLEU (0 to 100; high: alike)"] = spread["self_bleu"]
    return _flat(rows)


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {what}" for what, count in counts.items())


def _flat(values: Mapping[str, Any]) -> str:
    lines = [_row(["", "value"]), _row(["---"] * 2)]
    return "\n".join(lines + [_row([k.replace("_", " "), _number(v)]) for k, v in values.items()])


def _row(cells: Sequence[Any]) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def _interval(value: Mapping[str, Any] | None) -> str:
    if not value:
        return "–"
    return f"{_share(value['mean'])} [{_share(value['low'])}, {_share(value['high'])}]"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _number(value: Any) -> str:
    if value is None:
        return "–"
    if not isinstance(value, float):
        return str(value)
    return f"{value:.3g}" if abs(value) < _LARGE else f"{value:.0f}"


LENGTH_EXPLAINS = 0.65
MOST_HARD = 0.5
EVEN = 0.5
FAR_BELOW = 0.75
LITTLE_AGREEMENT = 0.55
MANY_TIES = 0.3
PLACE_DECIDES = 0.2


def warnings_of(report: dict[str, Any]) -> list[dict[str, str]]:
    """Look through a diagnosis for what would hurt training.

    Args:
        report: The figures, as `Diagnosis.as_dict` gives them.

    Returns:
        For each: `what` in plain words, `figure`, and `remedy` in prefstage's commands.
    """
    found = [
        *_data_warnings(report["data"]),
        *_learnability_warnings(report.get("learnability")),
        *_judge_warnings(report.get("judge"), report["data"]),
        *_quality_warnings(report.get("own_answers")),
    ]
    return [{"what": what, "figure": figure, "remedy": remedy} for what, figure, remedy in found]


_Warning = tuple[str, str, str]


def _data_warnings(data: dict[str, Any]) -> list[_Warning]:
    found: list[_Warning] = []
    wins = data["longer_wins"]
    if wins is not None and max(wins, 1 - wins) >= LENGTH_EXPLAINS:
        which = "longer" if wins > 0.5 else "shorter"  # noqa: PLR2004 - a half
        found.append(
            (
                f"The labels are largely explained by length: the {which} response mostly wins, "
                "so training would teach length",
                f'"{which} wins" gives {max(wins, 1 - wins):.1%} of the labels',
                "prefstage build with method: keep and filters: {length: {max_ratio: 1.5}}, or "
                "prefstage train with a length-aware loss (r_dpo, ld_dpo, simpo)",
            )
        )
    if data["identical"]:
        found.append(
            (
                "Some pairs have the same text on both sides and teach nothing",
                f"{data['identical']} of {data['pairs']} pairs",
                "prefstage build with method: keep, which leaves them out and counts them",
            )
        )
    if data["pairs"] and data["ties"] / data["pairs"] >= MANY_TIES:
        found.append(
            (
                "Many pairs are ties of their raters, which losses read as preferences",
                f"{data['ties']} of {data['pairs']} pairs",
                "prefstage build with method: keep and filters: {agreement: 0.6}, or with "
                "method: relabel to let a judge decide",
            )
        )
    return found


def _learnability_warnings(learnability: dict[str, Any] | None) -> list[_Warning]:
    if learnability is None:
        return []
    total = sum(learnability["groups"].values())
    hard = learnability["groups"]["hard"]
    mends = learnability["flippable_at_loss"]
    found: list[_Warning] = []
    if total and hard / total >= MOST_HARD:
        found.append(
            (
                "Most pairs are hard: the reference finds the rejected response far likelier, "
                "and DPO will hardly turn that round",
                f"{hard} of {total} pairs are beyond the limit of hard pairs",
                "prefstage train with loss: sft on the chosen responses first, or prefstage build "
                "with method: on-policy for pairs of the policy's own answers",
            )
        )
    share = mends["share_of_wrong"]
    if share is not None and share < MOST_HARD:
        found.append(
            (
                f"A DPO loss of {mends['loss']:g} at beta {mends['beta']:g} leaves most of the "
                "wrongly ranked pairs wrong",
                f"it mends {share:.1%} of {learnability['wrong']}",
                "prefstage train with a smaller beta or to a lower loss, or with loss: "
                "{name: gamma, gamma: 0.5}",
            )
        )
    return found


def _judge_warnings(judge: dict[str, Any] | None, data: dict[str, Any]) -> list[_Warning]:
    if judge is None:
        return []
    found: list[_Warning] = []
    agreement = judge["agreement"]["agreement"]
    if agreement is not None and agreement < LITTLE_AGREEMENT:
        found.append(
            (
                "The judge hardly agrees with the labels: they measure different things",
                f"agreement {agreement:.1%}",
                "prefstage build with method: relabel to train on the judge's labels, or use "
                "another judge",
            )
        )
    longer = judge["agreement"]["prefers_longer"]
    if longer is not None and longer >= LENGTH_EXPLAINS + 0.1:
        found.append(
            (
                "The judge prefers the longer response",
                f"in {longer:.1%} of pairs of unequal length ({data['pairs']} pairs)",
                "prefstage evaluate, whose win rates are length-controlled, and prefstage build "
                "with method: keep and filters: {length: {max_ratio: 1.5}}",
            )
        )
    bias = judge["position_bias"]
    if bias is not None and bias >= PLACE_DECIDES:
        found.append(
            (
                "The judge often prefers the place of a response to the response: such verdicts "
                "count as even",
                f"{bias:.1%} of comparisons change with the order",
                "prefstage judge with another judge (prefstage diagnose --second-judge compares "
                "them)",
            )
        )
    return found


def _quality_warnings(own: dict[str, Any] | None) -> list[_Warning]:
    if own is None or not own["prompts"]:
        return []
    found: list[_Warning] = []
    prompts = f"of {own['prompts']} prompts"
    if own["interval"][0] > EVEN:
        low, high = own["interval"]
        found.append(
            (
                "The chosen responses are worse than the policy's own answers: training on them "
                "would pull it down",
                f"own answers beat the chosen response on {own['win_rate']:.1%} {prompts} "
                f"[{low:.1%}, {high:.1%}]",
                "prefstage build with method: on-policy, or mixing to put own answers into the "
                "pairs",
            )
        )
    if own["boundary_score"] >= FAR_BELOW:
        found.append(
            (
                "The pairs' responses are judged far below the policy's own answers: it is past "
                "what this dataset can teach",
                f"own answers win {own['boundary_score']:.1%} of comparisons with both responses "
                f"of a pair, {prompts}",
                "prefstage measure to decide the stage, then prefstage build with method: "
                "on-policy",
            )
        )
    return found
