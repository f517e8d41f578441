"""What the iterations came to: the figures on disk, and the table for people."""

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from prefstage.aligning.recipe import BuildSettings, StopRules
from prefstage.aligning.steps import FOLDER, MANIFEST, Step, Steps
from prefstage.building.account import check_reversal, describe_reversal
from prefstage.training.export import describe_exported, describe_steps

RESULT = "align.json"
REVERSAL_SETTING = "build.accept_reversal"
_HOUR_S = 3600.0


class Budget:
    """What a run may still spend.

    Args:
        rules: The limits.
        steps: What was done; costs are read from the manifests.
    """

    def __init__(self, rules: StopRules, steps: Steps) -> None:
        self._rules = rules
        self._steps = steps

    def spent(self) -> str | None:
        """Which limit is reached, or None."""
        rules, costs = self._rules, total_costs(self._steps)
        judged = costs.get("judgments", 0) + costs.get("judge_replies", 0)
        if rules.judgments is not None and judged >= rules.judgments:
            return f"budget of {rules.judgments} judgments reached"
        if rules.tokens is not None and costs.get("response_tokens", 0) >= rules.tokens:
            return f"budget of {rules.tokens} tokens reached"
        if rules.hours is not None and self._seconds() >= rules.hours * _HOUR_S:
            return f"budget of {rules.hours:g} hours reached"
        return None

    def _seconds(self) -> float:
        return sum(float(each["seconds"]) for each in _manifests(self._steps))


def total_costs(steps: Steps) -> dict[str, int]:
    """What the steps of this result bought when they were done, summed.

    Args:
        steps: The run's steps.

    Returns:
        Judgments, answers and their tokens.
    """
    found = Counter[str]()
    for manifest in _manifests(steps):
        found.update(manifest["costs"])
    return dict(found)


def iteration_result(
    number: int, told: Mapping[str, Any], done: Mapping[str, Step], *, stopped: str | None = None
) -> dict[str, Any]:
    """One iteration's figures.

    Args:
        number: From 1.
        told: Rule, data, reason and stage, and how often the judge reversed the labels that it
            replaced; where the iteration ended, also what was built, trained and evaluated.
        done: Its steps by role.
        stopped: Why it did not end.

    Returns:
        JSON-serialisable figures.
    """
    stage, evaluation = told["stage"], told.get("evaluation")
    built, trained = told.get("built"), told.get("trained")
    return {
        "iteration": number,
        "rule": told["rule"],
        "data": told["data"],
        "reason": told["reason"],
        "stage": None if stage is None else stage.as_dict(),
        "pairs": None if built is None else built["pairs_built"],
        "left_out": None if built is None else built["left_out"],
        "reversal": told.get("reversal"),
        "build_figures": None if built is None else built["figures"],
        "training": None if trained is None else _training(trained),
        "evaluation": None if evaluation is None else _evaluation(evaluation),
        "stopped": stopped,
        "steps": {role: step.name for role, step in done.items()},
    }


def facts_of(result: Mapping[str, Any]) -> dict[str, str]:
    """The run in short statements, for ``result.json``.

    Args:
        result: As in align.json.

    Returns:
        Statements by what they are about.
    """
    fixed = "fixed: the first iteration's start"
    bad = (
        f"{n['rows']:,} of {n['of']:,} rows of {name}" for name, n in result["put_aside"].items()
    )
    return {
        "start": result["start"],
        "judge": result["judge"],
        "schedule": ", ".join(result["schedule"]),
        "reference": "each iteration's start" if result["reference"] == "iteration" else fixed,
        "ended": result["stopped"],
        "policy": result["policy"],
        "put aside as bad": ", ".join(bad),
    }


def parts_of(steps: Steps) -> list[dict[str, Any]]:
    """The steps of every iteration, for ``result.json``.

    Args:
        steps: The run's steps.

    Returns:
        A part for each step in each iteration; what it took stands at its first use.
    """
    parts, costs = list[dict[str, Any]](), dict.fromkeys(each.step for each in steps.records)
    taken = dict(zip(costs, _manifests(steps), strict=True))
    for each in steps.records:
        part = {"kind": each.kind, "iteration": each.iteration, "folder": f"{FOLDER}/{each.step}"}
        manifest = taken.pop(each.step, None)
        known = {} if manifest is None else {name: manifest[name] for name in ("seconds", "costs")}
        parts.append(part | known)
    return parts


def table(result: Mapping[str, Any]) -> str:
    """The iterations as a Markdown table, a row each.

    Args:
        result: As in align.json.

    Returns:
        The table; a dash where something was not measured or done.
    """
    head = (
        "| iteration | stage | boundary score | data | pairs | steps | loss | win rate | length |"
    )
    lines = [head, "|---|---|---|---|---|---|---|---|---|"]
    lines += [_row(each) for each in result["iterations"]]
    return "\n".join(lines)


def accepted_reversal(built: Mapping[str, Any], settings: BuildSettings) -> dict[str, Any] | None:
    """What a judge says of the labels that it replaced, if that may be trained on.

    Args:
        built: As in build.json.
        settings: Say whether any share of reversed labels is accepted.

    Returns:
        As of `Reversal.as_dict`; None where no labels were replaced.

    Raises:
        InputError: If more than 40 % are reversed, and that is not accepted.
    """
    found: dict[str, Any] | None = built["reversal"]
    if found is not None:
        yes, judge = settings.accept_reversal, str(built["judge"])
        check_reversal(found, accepted=yes, judge=judge, setting=REVERSAL_SETTING)
    return found


def reversals_told(result: Mapping[str, Any]) -> list[str]:
    """Say how often the judge reversed the labels that it replaced.

    Args:
        result: As in align.json.

    Returns:
        A line for each iteration that relabelled.
    """
    return [
        f"iteration {row['iteration']}: {describe_reversal(row['reversal'])}"
        for row in result["iterations"]
        if row.get("reversal") is not None  # unknown to runs of older versions
    ]


def _row(row: Mapping[str, Any]) -> str:
    stage, training, evaluation = row["stage"], row["training"], row["evaluation"]
    cells = [str(row["iteration"]), "-", "-", row["data"], "-", "-", "-", "-", "-"]
    if stage is not None:
        low, high = stage["interval"]
        cells[1:3] = [stage["stage"], f"{stage['boundary_score']:.2f} [{low:.2f}, {high:.2f}]"]
    if row["pairs"] is not None:
        cells[4] = str(row["pairs"])
    if training is not None:
        cells[5] = describe_steps(training)
        if training["first_loss"] is not None:
            cells[6] = f"{training['first_loss']:.3f} to {training['last_loss']:.3f}"
    if evaluation is not None:
        low, high = evaluation["interval"]
        cells[7] = f"{evaluation['win_rate']:.1f} % [{low:.1f}, {high:.1f}]"
        cells[8] = f"{evaluation['avg_length']:.0f} ({evaluation['avg_length_start']:.0f})"
    return "| " + " | ".join(cells) + " |"


def _training(trained: Mapping[str, Any]) -> dict[str, Any]:
    names = ("steps", "epochs", "tokens", "first_loss", "last_loss", "metrics", "notes")
    told = describe_exported(trained)
    notes = [*trained["notes"], *([] if told is None else [f"exported: {told}"])]
    found = {name: trained[name] for name in names}
    return found | {"exported_step": trained.get("exported_step", trained["steps"]), "notes": notes}


def _evaluation(found: Mapping[str, Any]) -> dict[str, Any]:
    rates, controlled = found["rates"], found["controlled"]
    return {
        "win_rate": rates["win_rate"],
        "interval": rates["interval"],
        "confidence": rates["confidence"],
        "prompts": rates["n_total"],
        "undecided": rates["n_missing"],
        "length_controlled_win_rate": (
            None if controlled is None else controlled["length_controlled_win_rate"]
        ),
        "length_controlled_interval": found["controlled_interval"],
        "avg_length": found["avg_length"],
        "avg_length_start": found["avg_length_baseline"],
        "notes": found["notes"],
    }


def _manifests(steps: Steps) -> list[dict[str, Any]]:
    names = dict.fromkeys(record.step for record in steps.records)
    return [json.loads((steps.folder / name / MANIFEST).read_text("utf-8")) for name in names]
